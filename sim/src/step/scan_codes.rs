//! What depends on a channel and a code of dt alone. Where dt arrives as INT8, softplus(s·q + bias) and the N
//! decays exp(−α·softplus) take at most 256 values a channel, and few of them in a sequence: each is computed
//! once, by the functions that would compute it for every token, and looked up. Likewise what z has to do with the
//! gate, where z has codes.

use super::scan::Source;
use super::scan_formula::Formula;
use super::scan_tile::Tile;
use crate::arith::real::{LANES, Lanes, RealMath, lanes};
#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;
use crate::isa::{Kernel, dispatch};
use crate::kernels::lines::Lines;
#[cfg(target_arch = "x86_64")]
use crate::kernels::transpose;
use std::marker::PhantomData;
use std::ops::Range;

/// INT8 codes, in the order of their bits as `u8`.
const CODES: usize = 256;
/// Entries from a channel to the next: not a power of two, or the same code of all channels would have one
/// place in the cache.
const STRIDE: usize = CODES + 1;
/// Tokens from which a table costs less than it saves.
const WORTH: usize = 16;

/// softplus(dt) and decays of a tile of channels, for the codes that a stretch of time has.
pub(super) struct CodeTable {
    /// The stretch's first token, and its codes, token by token.
    start: usize,
    codes: Vec<[u8; LANES]>,
    /// softplus(dt), `[channels, codes]`.
    delta: Vec<f32>,
    /// Decays, `[channels, codes, N]`, N in whole lines.
    decay: Lines<f32, LANES>,
    /// Lines of an entry.
    lines: usize,
}

impl CodeTable {
    /// For stretches of as many tokens, if dt has codes and a table is worth while.
    pub fn of(dt: &Source, tokens: usize, states: usize) -> Option<Self> {
        if !matches!(dt, Source::Int8 { .. }) || tokens < WORTH {
            return None;
        }
        let lines = states.div_ceil(LANES);
        Some(Self {
            start: 0,
            codes: vec![[0; LANES]; tokens],
            delta: vec![0.0; LANES * CODES],
            decay: Lines::new(0.0, LANES * STRIDE * lines),
            lines,
        })
    }

    /// Takes the codes of a stretch and computes the entries of those that occur.
    #[inline(always)]
    pub fn learn<R, F>(&mut self, tile: &Tile, tokens: Range<usize>)
    where
        R: RealMath,
        F: Formula<R>,
    {
        let Source::Int8 { codes, scale } = &tile.inputs.dt else {
            unreachable!("a table is made for codes")
        };
        self.start = tokens.start;
        let columns = codes.ncols();
        let all = codes.as_slice().expect("activations are row-major");
        let rows = all[tokens.start * columns..].chunks_exact(columns);
        let mut occurs = [[0u8; CODES]; LANES];
        for (to, row) in self.codes[..tokens.len()].iter_mut().zip(rows) {
            for (e, code) in row[tile.first..][..tile.width].iter().enumerate() {
                to[e] = *code as u8;
                occurs[e][usize::from(to[e])] = 1;
            }
        }
        let (_, bias) = tile.weight.skip_and_bias::<R>(tile.first, tile.width);
        let (mut found, mut delta) = ([0; CODES], [0.0; CODES]);
        let (mut deltas, mut decays) = ([[0.0; LANES]; CODES], [[0.0; LANES]; CODES]);
        for e in 0..tile.width {
            let found = codes_that_occur(&occurs[e], &mut found);
            let delta = &mut delta[..found.len()];
            for (delta, code) in delta.iter_mut().zip(found) {
                *delta = F::dt(scale.get(), f32::from(*code as i8), bias[e]);
            }
            R::softplus_slice(delta);
            for ((delta, code), splat) in delta.iter().zip(found).zip(&mut deltas) {
                let delta = R::operand(*delta);
                self.delta[e * CODES + usize::from(*code)] = delta;
                *splat = [delta; LANES];
            }
            for line in 0..self.lines {
                let states = &tile.alpha[line * LANES..];
                let alpha = lanes(|n| states.get(n).map_or(0.0, |alpha| alpha[e]));
                let decays = &mut decays[..found.len()];
                R::OfResults::decays(&alpha, &deltas[..found.len()], decays);
                for (decay, code) in decays.iter().zip(found) {
                    let entry = (e * STRIDE + usize::from(*code)) * self.lines;
                    self.decay[entry + line] = *decay;
                }
            }
        }
    }

    /// softplus(dt) of the tokens from `first` on.
    #[inline(always)]
    pub fn deltas(&self, first: usize, to: &mut [Lanes]) {
        for (to, codes) in to.iter_mut().zip(&self.codes[first - self.start..]) {
            for e in 0..LANES {
                to[e] = self.delta[e * CODES + usize::from(codes[e])];
            }
        }
    }

    /// Decays of the tokens from `first` on, `[tokens, N]`.
    #[inline(always)]
    pub fn decays(&self, first: usize, states: usize, to: &mut [Lanes]) {
        look_up(self, &self.codes[first - self.start..], states, to);
    }
}

/// What z alone decides of the gate, by its code.
pub(super) struct GateTable([f32; CODES]);

impl GateTable {
    /// Of the codes of a scale, if z has codes and as many tokens make it worth while.
    pub fn of<R, F>(z: Option<&Source>, tokens: usize) -> Option<Self>
    where
        R: RealMath,
        F: Formula<R::OfResults>,
    {
        let Some(Source::Int8 { scale, .. }) = z else {
            return None;
        };
        (tokens >= WORTH).then(|| dispatch(GateParts::<R, F>(scale.get(), PhantomData)))
    }

    /// The parts of a row of codes.
    #[inline(always)]
    pub fn look_up(&self, codes: &[i8], to: &mut Lanes) {
        for (to, code) in to.iter_mut().zip(codes) {
            *to = self.0[usize::from(*code as u8)];
        }
    }
}

struct GateParts<R, F>(f32, PhantomData<(R, F)>);

impl<R: RealMath, F: Formula<R::OfResults>> Kernel for GateParts<R, F> {
    type Output = GateTable;

    #[inline(always)]
    fn run(self) -> GateTable {
        let mut parts = [0.0; CODES];
        for (code, part) in parts.iter_mut().enumerate() {
            *part = F::gate_part(R::mul(self.0, f32::from(code as u8 as i8)));
        }
        GateTable(parts)
    }
}

/// The codes that are marked; `to` has room for all.
#[inline(always)]
fn codes_that_occur<'a>(marks: &[u8; CODES], to: &'a mut [u8; CODES]) -> &'a [u8] {
    let mut count = 0;
    for (eight, marks) in marks.as_chunks::<8>().0.iter().enumerate() {
        let mut left = u64::from_le_bytes(*marks);
        while left != 0 {
            to[count] = 8 * eight as u8 + (left.trailing_zeros() / 8) as u8;
            count += 1;
            left &= left - 1;
        }
    }
    &to[..count]
}

/// Moves only, and so one copy does for every instruction set.
#[inline(never)]
fn look_up(table: &CodeTable, codes: &[[u8; LANES]], states: usize, to: &mut [Lanes]) {
    let at = |e: usize, code: u8| (e * STRIDE + usize::from(code)) * table.lines;
    #[cfg(target_arch = "x86_64")]
    if states.is_multiple_of(LANES) && Isa::current() >= Isa::Avx512 {
        for (to, codes) in to.chunks_exact_mut(states).zip(codes) {
            let entries = std::array::from_fn(|e| at(e, codes[e]));
            // SAFETY: the instruction set was found.
            unsafe { transpose::entries_to_lanes(&table.decay, entries, to) };
        }
        return;
    }
    for (to, codes) in to.chunks_exact_mut(states).zip(codes) {
        for (e, code) in codes.iter().enumerate() {
            let entry = table.decay[at(e, *code)..][..table.lines].as_flattened();
            for (to, decay) in to.iter_mut().zip(entry) {
                to[e] = *decay;
            }
        }
    }
}
