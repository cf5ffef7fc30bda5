//! A tile of channels on its way through time. Time is cut into chunks whose values stay in the
//! cache: load and apply softplus, run the recurrence, gate, store.
//!
//! Loops have one of three forms that the compiler turns into vectors: a pass over a flat slice; "for
//! each token, for each lane" around a function; and, where a token needs the one before it,
//! [`lanes`].

use super::scan::{Outputs, ScanInputs, ScanWeight, Source, States};
use super::scan_block::Map;
use super::scan_codes::{CodeTable, GateTable};
use super::scan_formula::Formula;
use super::scan_sum::Term;
use crate::arith::binary16::narrow;
use crate::arith::real::{LANES, Lanes, RealMath, lanes};
use crate::arith::saturate::Status;
use crate::isa::Isa;
use crate::kernels::columns::SplitColumns;
use crate::kernels::lines::Lines;
#[cfg(target_arch = "x86_64")]
use crate::kernels::{self, transpose};
use crate::profile::SumOrder;
use half::f16;
use std::ops::Range;

/// A tile of channels: what it reads and where it writes.
pub(super) struct Tile<'a> {
    pub weight: &'a ScanWeight,
    pub inputs: &'a ScanInputs<'a>,
    /// B of all tokens, `[L, N]`, dequantized.
    pub b: &'a [f32],
    /// C of all tokens, `[L, N]`, dequantized.
    pub c: &'a [f32],
    /// exp(A_log) of these channels, `[N]`.
    pub alpha: &'a [Lanes],
    /// The sum over states, where it has an order of its own, and its terms.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub sum: SumOrder,
    pub terms: &'a [Term],
    /// What z alone decides of the gate, by its code.
    pub gate: Option<&'a GateTable>,
    /// The first channel.
    pub first: usize,
    /// Channels, at most [`LANES`].
    pub width: usize,
    /// `[L, E]`.
    pub y: &'a Outputs<'a>,
    /// Between stretches of time and after the last, `[E, N]`.
    pub state: &'a States<'a>,
}

/// What a thread needs for one tile at a time.
pub(super) struct Scratch {
    /// softplus(dt) of the chunk's tokens.
    pub delta: Lines<f32, LANES>,
    /// u of the chunk's tokens.
    pub u: Lines<f32, LANES>,
    /// What all states share of their inputs, token by token.
    pub drive: Lines<f32, LANES>,
    /// Output of the chunk's tokens.
    pub out: Lines<f32, LANES>,
    /// The same, rounded to binary16.
    halves: Vec<[f16; LANES]>,
    /// s_D ⊗ q_D and the bias of dt, once for each token: passes over many tokens then are passes over flat
    /// slices.
    skip: Lines<f32, LANES>,
    bias: Lines<f32, LANES>,
    /// Decays of some tokens, `[tokens, N]`.
    pub decay: Lines<f32, LANES>,
    /// softplus and decays by code, where dt has codes.
    pub table: Option<CodeTable>,
    /// Of the block scan's threads.
    pub maps: Vec<Map>,
    /// Partial sums over states, token by token, one below the other.
    pub sums: Lines<f32, LANES>,
    /// The states, `[N]`.
    pub state: Lines<f32, LANES>,
    /// The states as tensors have them, `[channels, N]`.
    rows: Vec<f32>,
}

impl Scratch {
    /// For chunks of `tokens`, and the decays of as many as `decays`.
    pub fn new(
        tokens: usize,
        decays: usize,
        states: usize,
        terms: &[Term],
        table: Option<CodeTable>,
    ) -> Self {
        let zeros = |count| Lines::new(0.0, count);
        // In memory in this order, most often: what is written lies below what is read with it, so that
        // a read never has the low address bits of a write just made, for which it would have to wait.
        let (out, decay) = (zeros(tokens), zeros(decays * states));
        let depth = deepest(terms);
        Self {
            out,
            decay,
            table,
            maps: Vec::new(),
            halves: vec![[f16::ZERO; LANES]; tokens],
            drive: zeros(tokens),
            u: zeros(tokens),
            delta: zeros(tokens),
            skip: zeros(tokens),
            bias: zeros(tokens),
            sums: zeros(tokens * depth),
            state: zeros(states),
            rows: vec![0.0; LANES * states],
        }
    }
}

/// Partial sums that lie on the stack at once.
fn deepest(terms: &[Term]) -> usize {
    let mut depth = 0;
    let depths = terms.iter().map(|term| {
        depth += 1;
        let there = depth;
        depth -= term.merges;
        there
    });
    depths.max().unwrap_or(0)
}

/// Tokens whose decays fit the first-level cache.
pub(super) fn cached_tokens(states: usize) -> usize {
    (256 / states).clamp(4, 64)
}

/// An order of the recurrence.
pub(super) trait Recurrence<R: RealMath, F: Formula<R>> {
    /// Tokens of a chunk, for a sequence of `length`.
    fn chunk(length: usize) -> usize;

    /// Tokens whose decays a scratch must hold.
    fn decays(_length: usize, states: usize, _by_table: bool) -> usize {
        cached_tokens(states)
    }

    /// The sum over N states in an order; empty where the recurrence adds states up as it goes.
    fn terms(_: SumOrder, _: usize) -> Vec<Term> {
        Vec::new()
    }

    /// Moves the states through the tokens `first..first + tokens` and adds them to the outputs.
    fn advance(tile: &Tile, scratch: &mut Scratch, first: usize, tokens: usize, length: usize);
}

impl Tile<'_> {
    /// The states before the first token.
    #[inline(always)]
    pub fn first_state<R: RealMath>(&self, scratch: &mut Scratch) {
        scratch.state.fill([0.0; LANES]);
        if let Some(source) = &self.inputs.state {
            let rows = &mut scratch.rows[..self.width * scratch.state.len()];
            source.rows_of::<R>(self.first, rows);
            for v in rows.iter_mut() {
                *v = R::operand(*v);
            }
            to_lanes(rows, &mut scratch.state);
        }
    }

    /// The states after the stretch before.
    #[inline(always)]
    pub fn load_state(&self, scratch: &mut Scratch) {
        let States::Real(state) = self.state else {
            unreachable!("INT8 states are those after the last token")
        };
        scratch.state.fill([0.0; LANES]);
        // SAFETY: tiles have different channels, and this is the only segment of this one.
        let rows = unsafe { state.rows_from(self.first, self.width) };
        to_lanes(rows, &mut scratch.state);
    }

    /// The states after the last token of a stretch; counts what a quantizer had to make fit.
    #[inline(always)]
    pub fn store_state(&self, scratch: &mut Scratch) -> Status {
        let rows = &mut scratch.rows[..self.width * scratch.state.len()];
        from_lanes(&scratch.state, rows);
        // SAFETY: tiles have different channels, and this is the only segment of this one.
        match self.state {
            States::Real(state) => {
                unsafe { state.rows_from(self.first, self.width) }.copy_from_slice(rows);
                Status::default()
            }
            States::Int8(codes, scale, rule) => {
                // SAFETY: as above.
                let codes = unsafe { codes.rows_from(self.first, self.width) };
                rule.quantize_slice(rows, *scale, codes)
            }
        }
    }

    /// What the channels' parameters are at every token.
    #[inline(always)]
    pub fn parameters<R: RealMath>(&self, scratch: &mut Scratch) {
        let (skip, bias) = self.weight.skip_and_bias::<R>(self.first, self.width);
        scratch.skip.fill(skip);
        scratch.bias.fill(bias);
    }

    /// Loads a chunk: u, the softplus of dt, and the outputs before the first state.
    #[inline(always)]
    pub fn begin<R: RealMath, F: Formula<R> + Formula<R::OfResults>>(
        &self,
        scratch: &mut Scratch,
        first: usize,
        tokens: usize,
    ) {
        self.inputs
            .u
            .load(first, self.first, self.width, &mut scratch.u[..tokens]);
        let Scratch {
            delta,
            u,
            drive,
            out,
            skip,
            bias,
            table,
            ..
        } = scratch;
        let (u, out) = (flat_mut(u, tokens), flat_mut(out, tokens));
        let scale = self.inputs.u.scale();
        for ((u, out), skip) in u.iter_mut().zip(out).zip(skip.as_flattened()) {
            *u = R::mul(scale, *u);
            *out = <F as Formula<R::OfResults>>::first_output(*skip, *u);
        }
        let delta = &mut delta[..tokens];
        match table {
            Some(table) => table.deltas(first, delta),
            None => {
                self.inputs.dt.load(first, self.first, self.width, delta);
                let delta = delta.as_flattened_mut();
                let scale = self.inputs.dt.scale();
                for (delta, bias) in delta.iter_mut().zip(bias.as_flattened()) {
                    *delta = <F as Formula<R>>::dt(scale, *delta, *bias);
                }
                R::softplus_slice(delta);
                delta
                    .iter_mut()
                    .for_each(|delta| *delta = R::operand(*delta));
            }
        }
        let drive = flat_mut(drive, tokens);
        for ((delta, u), drive) in delta.as_flattened().iter().zip(u).zip(drive) {
            *drive = <F as Formula<R::OfResults>>::drive(*delta, *u);
        }
    }

    /// Decays of some of the chunk's tokens, which begins with token `first`; to the start of their place.
    #[inline(always)]
    pub fn decays<R: RealMath>(&self, scratch: &mut Scratch, first: usize, tokens: Range<usize>) {
        let states = self.alpha.len();
        let decay = &mut scratch.decay[..tokens.len() * states];
        match &scratch.table {
            Some(table) => table.decays(first + tokens.start, states, decay),
            None => {
                let delta = &scratch.delta[tokens];
                for (delta, decay) in delta.iter().zip(decay.chunks_exact_mut(states)) {
                    // A product does not ask which factor is which.
                    R::decays(delta, self.alpha, decay);
                }
            }
        }
    }

    /// Moves all states through some of the chunk's tokens, which begins with token `first`, and adds them to
    /// the outputs, n ascending. `kept` are decays that lie in their place from the chunk's start on.
    #[inline(always)]
    pub fn advance<R: RealMath, F: Formula<R>>(
        &self,
        scratch: &mut Scratch,
        first: usize,
        tokens: Range<usize>,
        kept: bool,
    ) {
        /// States side by side: enough that none waits for the one before, few enough for registers.
        const SIDE_BY_SIDE: usize = 8;
        let states = self.alpha.len();
        let together = states / SIDE_BY_SIDE * SIDE_BY_SIDE;
        let cached = if kept {
            tokens.len()
        } else {
            cached_tokens(states)
        };
        for from in tokens.clone().step_by(cached.max(1)) {
            let tokens = from..(from + cached).min(tokens.end);
            let mut at = from;
            if !kept {
                self.decays::<R>(scratch, first, tokens.clone());
                at = 0;
            }
            for n in (0..together).step_by(SIDE_BY_SIDE) {
                self.advance_states::<R, F, SIDE_BY_SIDE>(scratch, first, tokens.clone(), at, n);
            }
            for n in together..states {
                self.advance_states::<R, F, 1>(scratch, first, tokens.clone(), at, n);
            }
        }
    }

    /// [`Tile::advance`] of G states from n on.
    #[inline(always)]
    fn advance_states<R: RealMath, F: Formula<R>, const G: usize>(
        &self,
        scratch: &mut Scratch,
        first: usize,
        tokens: Range<usize>,
        at: usize,
        n: usize,
    ) {
        let states = self.alpha.len();
        let from = (first + tokens.start) * states + n;
        let (b, c) = (self.b[from..].chunks(states), self.c[from..].chunks(states));
        let decay = scratch.decay[at * states + n..].chunks(states);
        let (drive, u) = (&scratch.drive[tokens.clone()], &scratch.u[tokens.clone()]);
        let out = &mut scratch.out[tokens];
        let mut x: [Lanes; G] = std::array::from_fn(|g| scratch.state[n + g]);
        let of_tokens = out.iter_mut().zip(drive).zip(u).zip(decay).zip(b.zip(c));
        for ((((out, drive), u), decay), (b, c)) in of_tokens {
            let (decay, b, c) = (&decay[..G], &b[..G], &c[..G]);
            let mut sum = *out;
            for g in 0..G {
                let input = self.input::<R, F>(b[g], *drive, *u);
                let (before, above) = (x[g], sum);
                x[g] = lanes(|e| F::update(decay[g][e], before[e], input[e]));
                sum = lanes(|e| F::accumulate(x[g][e], c[g], above[e]));
            }
            *out = sum;
        }
        scratch.state[n..][..G].copy_from_slice(&x);
    }

    /// Some of the chunk's tokens, as the kernels take them that have the table in their loops; `None` where
    /// there is no table, N is not theirs or the machine has none of them.
    #[cfg(target_arch = "x86_64")]
    fn for_kernels<'t>(
        &'t self,
        table: &'t Option<CodeTable>,
        drive: &'t [Lanes],
        u: &'t [Lanes],
        first: usize,
        tokens: Range<usize>,
    ) -> Option<kernels::scan::Tokens<'t>> {
        if self.alpha.len() != LANES || Isa::current() < Isa::Avx512 {
            return None;
        }
        let table = table.as_ref()?;
        let of_tokens = (first + tokens.start) * LANES..(first + tokens.end) * LANES;
        Some(kernels::scan::Tokens {
            table: table.one_line_entries()?,
            codes: &table.offsets_from(first + tokens.start)[..tokens.len()],
            drive: &drive[tokens.clone()],
            u: &u[tokens],
            b: &self.b[of_tokens.clone()],
            c: &self.c[of_tokens],
        })
    }

    /// [`Tile::advance`] of the fused formula by a kernel, if there is one.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub fn fused_by_table<R: RealMath>(
        &self,
        scratch: &mut Scratch,
        first: usize,
        tokens: Range<usize>,
    ) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let Scratch {
                table,
                drive,
                u,
                out,
                state,
                ..
            } = scratch;
            let inputs = self.for_kernels(table, drive, u, first, tokens.clone());
            if let (Some(inputs), Some(state)) = (inputs, state.first_chunk_mut()) {
                let out = &mut out[tokens];
                // SAFETY: the instruction set was found.
                unsafe {
                    match R::FLUSHES {
                        true => kernels::scan::fused::<true>(inputs, state, out),
                        false => kernels::scan::fused::<false>(inputs, state, out),
                    }
                }
                return true;
            }
        }
        false
    }

    /// The chunk's tokens through the formula whose operations are separate, by a kernel, if there is one.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub fn separate_by_table<R: RealMath>(
        &self,
        scratch: &mut Scratch,
        first: usize,
        tokens: usize,
    ) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let Scratch {
                table,
                drive,
                u,
                out,
                state,
                ..
            } = scratch;
            let inputs = self.for_kernels(table, drive, u, first, 0..tokens);
            if let (Some(inputs), Some(state)) = (inputs, state.first_chunk_mut()) {
                let out = &mut out[..tokens];
                // SAFETY: the instruction set was found.
                unsafe {
                    match R::FLUSHES {
                        true => kernels::scan::separate::<true>(self.sum, inputs, state, out),
                        false => kernels::scan::separate::<false>(self.sum, inputs, state, out),
                    }
                }
                return true;
            }
        }
        false
    }

    /// One token by the decode kernel's formula, its decays in their place: the outputs, by a kernel, if there is one.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub fn grouped_by_kernel<R: RealMath>(
        &self,
        scratch: &mut Scratch,
        first: usize,
    ) -> Option<Lanes> {
        #[cfg(target_arch = "x86_64")]
        if self.alpha.len() == LANES && Isa::current() >= Isa::Avx512 {
            let decay = scratch.decay.first_chunk()?;
            let inputs = [&scratch.drive[0], &scratch.u[0]];
            let [b, c] = [self.b, self.c].map(|of| of[first * LANES..].first_chunk());
            let state = scratch.state.first_chunk_mut()?;
            // SAFETY: the instruction set was found.
            return Some(unsafe {
                match R::FLUSHES {
                    true => kernels::scan::grouped::<true>(decay, inputs, [b?, c?], state),
                    false => kernels::scan::grouped::<false>(decay, inputs, [b?, c?], state),
                }
            });
        }
        None
    }

    /// The maps of some of the chunk's tokens as one for each state, to the first of each `row` of maps, by a kernel, if
    /// there is one.
    #[inline(always)]
    #[cfg_attr(not(target_arch = "x86_64"), allow(unused_variables))]
    pub fn folded_by_table<R: RealMath>(
        &self,
        scratch: &Scratch,
        first: usize,
        tokens: Range<usize>,
        maps: &mut [Map],
        row: usize,
    ) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            let Scratch {
                table, drive, u, ..
            } = scratch;
            if let Some(inputs) = self.for_kernels(table, drive, u, first, tokens) {
                // SAFETY: the instruction set was found.
                unsafe {
                    match R::FLUSHES {
                        true => kernels::scan::fold::<true>(inputs, maps, row),
                        false => kernels::scan::fold::<false>(inputs, maps, row),
                    }
                }
                return true;
            }
        }
        false
    }

    /// What enters a state, given its B.
    #[inline(always)]
    pub fn input<R: RealMath, F: Formula<R>>(&self, b: f32, drive: Lanes, u: Lanes) -> Lanes {
        lanes(|e| F::input(b, drive[e], u[e]))
    }

    /// Skip term, gate, and the outputs to their place.
    #[inline(always)]
    pub fn finish<R: RealMath, F: Formula<R::OfResults>>(
        &self,
        scratch: &mut Scratch,
        first: usize,
        tokens: usize,
    ) {
        let Scratch {
            u,
            out,
            delta,
            drive,
            skip,
            halves,
            ..
        } = scratch;
        let out = &mut out[..tokens];
        let sums = out.as_flattened_mut().iter_mut();
        for ((out, skip), u) in sums.zip(skip.as_flattened()).zip(u.as_flattened()) {
            *out = F::last_output(*out, *skip, *u);
        }
        if let Some(source) = &self.inputs.z {
            let z = &mut drive[..tokens];
            source.load(first, self.first, self.width, z);
            let scale = source.scale();
            for z in z.as_flattened_mut() {
                *z = R::mul(scale, *z);
            }
            let (out, z) = (out.as_flattened_mut(), z.as_flattened());
            match (self.gate, source) {
                (Some(gate), Source::Int8 { codes, .. }) => {
                    let columns = codes.ncols();
                    let all = codes.as_slice().expect("activations are row-major");
                    let rows = all[first * columns..].chunks_exact(columns);
                    let parts = &mut delta[..tokens];
                    for (part, row) in parts.iter_mut().zip(rows) {
                        gate.look_up(&row[self.first..][..self.width], part);
                    }
                    for ((out, z), part) in out.iter_mut().zip(z).zip(parts.as_flattened()) {
                        *out = F::gated(*out, *z, *part);
                    }
                }
                _ => F::gate(out, z),
            }
        }
        match self.y {
            Outputs::F32(y) => {
                for (t, out) in out.iter().enumerate() {
                    self.store(y, first + t, *out);
                }
            }
            Outputs::F16(y) => {
                let halves = &mut halves[..tokens];
                narrow(out.as_flattened(), halves.as_flattened_mut());
                for (t, halves) in halves.iter().enumerate() {
                    self.store(y, first + t, *halves);
                }
            }
        }
    }

    #[inline(always)]
    fn store<T: Copy>(&self, y: &SplitColumns<T>, row: usize, out: [T; LANES]) {
        // SAFETY: tiles have different channels, and this is the only segment of this one.
        let row = unsafe { y.segment(row, self.first, self.width) };
        match <&mut [T; LANES]>::try_from(&mut *row) {
            Ok(row) => *row = out,
            Err(_) => row.copy_from_slice(&out[..self.width]),
        }
    }
}

#[inline(always)]
fn flat_mut(tokens: &mut [Lanes], count: usize) -> &mut [f32] {
    tokens[..count].as_flattened_mut()
}

/// `[channels, N]` to `[N]` vectors of channels; lanes beyond the channels keep what they have. Moves
/// only, and so one copy does for every instruction set.
#[inline(never)]
fn to_lanes(rows: &[f32], lanes: &mut [Lanes]) {
    let n = lanes.len();
    #[cfg(target_arch = "x86_64")]
    if n.is_multiple_of(LANES) && rows.len() == LANES * n && Isa::current() >= Isa::Avx512 {
        // SAFETY: the instruction set was found.
        return unsafe { transpose::to_lanes(rows, lanes) };
    }
    for (e, row) in rows.chunks_exact(n).enumerate() {
        for (v, lanes) in row.iter().zip(lanes.iter_mut()) {
            lanes[e] = *v;
        }
    }
}

/// The way back.
#[inline(never)]
fn from_lanes(lanes: &[Lanes], rows: &mut [f32]) {
    let n = lanes.len();
    #[cfg(target_arch = "x86_64")]
    if n.is_multiple_of(LANES) && rows.len() == LANES * n && Isa::current() >= Isa::Avx512 {
        // SAFETY: the instruction set was found.
        return unsafe { transpose::from_lanes(lanes, rows) };
    }
    for (e, row) in rows.chunks_exact_mut(n).enumerate() {
        for (v, lanes) in row.iter_mut().zip(lanes) {
            *v = lanes[e];
        }
    }
}
