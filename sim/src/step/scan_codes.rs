//! What depends on a channel and a code of dt alone. Where dt arrives as INT8, softplus(s·q + bias) and the N
//! decays exp(−α·softplus) take at most 256 values a channel, and few of them in a sequence: each is computed
//! once, by the functions that would compute it for every token, and looked up. Likewise what z has to do with the
//! gate, where z has codes.

use super::scan::Source;
use super::scan_formula::Formula;
use super::scan_tile::Tile;
use crate::arith::real::{LANES, Lanes, RealMath, lanes};
use crate::isa::{Kernel, dispatch};
use crate::kernels::lines::Lines;
use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::Range;

/// INT8 codes, in the order of their bits as `u8`.
const CODES: usize = 256;
/// Entries from a channel's to the next one's: not a power of two, or the same code of all channels would have one
/// place in the cache.
pub(crate) const STRIDE: usize = CODES + 1;
/// Bytes of a line of the table.
const LINE: u16 = size_of::<Lanes>() as u16;
/// Tokens from which a table costs less than it saves.
const WORTH: usize = 16;

thread_local! {
    /// Where this thread's last table was. New room would have to be filled with zeros first, which takes as long
    /// as a short sequence.
    static ROOM: Cell<Room> = Cell::default();
}

/// What a table is kept in.
#[derive(Default)]
struct Room {
    /// The stretch's codes times [`LINE`], token by token.
    offsets: Vec<[u16; LANES]>,
    /// softplus(dt), `[channels, codes]`.
    delta: Vec<f32>,
    /// Decays, `[channels, codes, N]`, N in whole lines.
    decay: Lines<f32, LANES>,
    /// Channels and codes that occur, and their softplus(dt).
    found: Vec<(u8, u8)>,
    deltas: Vec<f32>,
    /// The softplus(dt) of one channel in all lanes, and its decays.
    splat: Vec<Lanes>,
    decays: Vec<Lanes>,
}

/// softplus(dt) and decays of a tile of channels, for the codes that a stretch of time has.
pub(super) struct CodeTable {
    /// The stretch's first token.
    start: usize,
    /// Lines of an entry.
    lines: usize,
    room: Room,
}

impl Drop for CodeTable {
    fn drop(&mut self) {
        ROOM.set(std::mem::take(&mut self.room));
    }
}

impl CodeTable {
    /// For stretches of as many tokens, if dt has codes and a table is worth while.
    pub fn of(dt: &Source, tokens: usize, states: usize) -> Option<Self> {
        if !matches!(dt, Source::Int8 { .. }) || tokens < WORTH {
            return None;
        }
        let lines = states.div_ceil(LANES);
        let mut room = ROOM.take();
        room.offsets.resize(tokens, [0; LANES]);
        room.delta.resize(LANES * CODES, 0.0);
        room.decay = room.decay.at_least(0.0, LANES * STRIDE * lines);
        room.splat.resize(CODES, [0.0; LANES]);
        room.decays.resize(CODES, [0.0; LANES]);
        Some(Self {
            start: 0,
            lines,
            room,
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
        let room = &mut self.room;
        let columns = codes.ncols();
        let all = codes.as_slice().expect("activations are row-major");
        let rows = all[tokens.start * columns..].chunks_exact(columns);
        let mut occurs = [[0u8; CODES]; LANES];
        for (offsets, row) in room.offsets[..tokens.len()].iter_mut().zip(rows) {
            let row = &row[tile.first..][..tile.width];
            let mut codes = [0; LANES];
            match <&[i8; LANES]>::try_from(row) {
                Ok(row) => codes = *row,
                Err(_) => codes[..row.len()].copy_from_slice(row),
            }
            for e in 0..LANES {
                offsets[e] = u16::from(codes[e] as u8) * LINE;
            }
            for e in 0..LANES {
                occurs[e][usize::from(codes[e] as u8)] = 1;
            }
        }
        room.found.clear();
        for (e, occurs) in (0..tile.width as u8).zip(&occurs) {
            codes_that_occur(occurs, |code| room.found.push((e, code)));
        }
        let (_, bias) = tile.weight.skip_and_bias::<R>(tile.first, tile.width);
        let dt = |(e, code): &(u8, u8)| {
            F::dt(scale.get(), f32::from(*code as i8), bias[usize::from(*e)])
        };
        room.deltas.clear();
        room.deltas.extend(room.found.iter().map(dt));
        R::softplus_slice(&mut room.deltas);
        let mut left = &room.deltas[..];
        for found in room.found.chunk_by(|a, b| a.0 == b.0) {
            let e = usize::from(found[0].0);
            let deltas;
            (deltas, left) = left.split_at(found.len());
            let (splat, decays) = (
                &mut room.splat[..found.len()],
                &mut room.decays[..found.len()],
            );
            for ((delta, (_, code)), splat) in deltas.iter().zip(found).zip(&mut *splat) {
                let delta = R::operand(*delta);
                room.delta[e * CODES + usize::from(*code)] = delta;
                *splat = [delta; LANES];
            }
            for line in 0..self.lines {
                let states = &tile.alpha[line * LANES..];
                let alpha = lanes(|n| states.get(n).map_or(0.0, |alpha| alpha[e]));
                R::OfResults::decays(&alpha, splat, decays);
                for (decay, (_, code)) in decays.iter().zip(found) {
                    let entry = (e * STRIDE + usize::from(*code)) * self.lines;
                    room.decay[entry + line] = *decay;
                }
            }
        }
    }

    /// softplus(dt) of the tokens from `first` on.
    #[inline(always)]
    pub fn deltas(&self, first: usize, to: &mut [Lanes]) {
        for (to, offsets) in to.iter_mut().zip(self.offsets_from(first)) {
            for e in 0..LANES {
                to[e] = self.room.delta[e * CODES + usize::from(offsets[e] / LINE)];
            }
        }
    }

    /// Decays of the tokens from `first` on, `[tokens, N]`.
    pub fn decays(&self, first: usize, states: usize, to: &mut [Lanes]) {
        for (to, offsets) in to.chunks_exact_mut(states).zip(self.offsets_from(first)) {
            for (e, offset) in offsets.iter().enumerate() {
                let entry = (e * STRIDE + usize::from(offset / LINE)) * self.lines;
                let entry = self.room.decay[entry..][..self.lines].as_flattened();
                for (to, decay) in to.iter_mut().zip(entry) {
                    to[e] = *decay;
                }
            }
        }
    }

    /// The codes of the tokens from `first` on, times [`LINE`].
    pub fn offsets_from(&self, first: usize) -> &[[u16; LANES]] {
        &self.room.offsets[first - self.start..]
    }

    /// Decays as lines, an entry at `channel · STRIDE + code`, where an entry is one line.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub fn one_line_entries(&self) -> Option<&[Lanes]> {
        (self.lines == 1).then_some(&self.room.decay)
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

/// Hands over the codes that are marked by ones.
#[inline(always)]
fn codes_that_occur(marks: &[u8; CODES], mut found: impl FnMut(u8)) {
    for (i, marks) in marks.as_chunks::<64>().0.iter().enumerate() {
        let mut bits = 0;
        for (byte, eight) in marks.as_chunks::<8>().0.iter().enumerate() {
            // Eight ones and zeros, a byte each, meet in the highest byte.
            let product = u64::from_le_bytes(*eight).wrapping_mul(0x0102_0408_1020_4080);
            bits |= (product >> 56) << (8 * byte);
        }
        while bits != 0 {
            found(64 * i as u8 + bits.trailing_zeros() as u8);
            bits &= bits - 1;
        }
    }
}
