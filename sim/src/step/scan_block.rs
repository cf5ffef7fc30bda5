//! The recurrence as the CUDA prefill kernel associates it: a block scan over time.
//!
//! The sequence is cut into chunks of T·I tokens (T threads of I consecutive items, padded with the
//! neutral element). Each thread folds its items, each warp of 32 threads makes an inclusive
//! Kogge-Stone scan of the folds, warps are chained in order, and every thread replays its items
//! from its prefix. The association decides the last bit; here a lane is a channel and the threads
//! are array elements, so the order is the kernel's whatever runs it.

use super::scan_formula::Formula;
use super::scan_tile::{Recurrence, Scratch, Tile};
use crate::arith::real::{LANES, Lanes, RealMath, lanes};
use std::ops::Range;

/// Threads of a warp.
const WARP: usize = 32;
/// Threads of the longest plan.
const MAX_THREADS: usize = 128;

/// Threads T and items a thread I for a sequence length: T·I tokens make a chunk.
pub(crate) fn plan(length: usize) -> (usize, usize) {
    match length {
        0..=128 => (32, 4),
        129..=256 => (32, 8),
        257..=512 => (32, 16),
        513..=1024 => (64, 16),
        _ => (128, 16),
    }
}

/// The affine map x → a·x + b of a stretch of tokens.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Map {
    a: Lanes,
    b: Lanes,
}

impl Map {
    const IDENTITY: Map = Map {
        a: [1.0; LANES],
        b: [0.0; LANES],
    };

    /// This map, then `after`: `(a1 ⊗ a0, fma(a1, b0, b1))`.
    #[inline(always)]
    fn then<R: RealMath>(&self, after: &Map) -> Map {
        let (before, after) = (*self, *after);
        Map {
            a: lanes(|e| R::mul(after.a[e], before.a[e])),
            b: lanes(|e| R::fma(after.a[e], before.b[e], after.b[e])),
        }
    }
}

pub(super) struct BlockScan;

impl<R: RealMath, F: Formula<R>> Recurrence<R, F> for BlockScan {
    fn chunk(length: usize) -> usize {
        let (threads, items) = plan(length);
        threads * items
    }

    fn scratch(length: usize) -> usize {
        let (threads, items) = plan(length);
        threads * items
    }

    #[inline(always)]
    fn advance(tile: &Tile, scratch: &mut Scratch, first: usize, tokens: usize, length: usize) {
        let (threads, items) = plan(length);
        let states = scratch.state.len();
        let mut folds = [Map::IDENTITY; MAX_THREADS];
        let folds = &mut folds[..threads];
        scratch.decay[tokens..].fill(Map::IDENTITY.a);
        scratch.input[tokens..].fill(Map::IDENTITY.b);
        for n in 0..states {
            tile.decays::<R>(scratch, tokens, n);
            for (thread, fold) in folds.iter_mut().enumerate() {
                let from = thread * items;
                let count = tokens.saturating_sub(from).min(items);
                let items_there = from..from + count;
                *fold = fold_items::<R, F>(tile, scratch, items_there, first, n);
                for _ in count.max(1)..items {
                    *fold = fold.then::<R>(&Map::IDENTITY);
                }
            }
            for warp in folds.chunks_exact_mut(WARP) {
                kogge_stone::<R>(warp);
            }
            let running = Map {
                a: [1.0; LANES],
                b: scratch.state[n],
            };
            let mut before: Option<Map> = None; // fold of the warps before this one
            for (w, warp) in folds.chunks_exact(WARP).enumerate() {
                for lane in 0..WARP {
                    let exclusive = match (&before, lane) {
                        (None, 0) => None,
                        (None, _) => Some(warp[lane - 1]),
                        (Some(before), 0) => Some(*before),
                        (Some(before), _) => Some(before.then::<R>(&warp[lane - 1])),
                    };
                    let prefix = match exclusive {
                        Some(exclusive) => running.then::<R>(&exclusive),
                        None => running,
                    };
                    let from = ((w * WARP + lane) * items).min(tokens);
                    let items_there = from..(from + items).min(tokens);
                    replay_items::<R, F>(tile, scratch, items_there, first, n, prefix.b);
                }
                before = Some(match before {
                    Some(before) => before.then::<R>(&warp[WARP - 1]),
                    None => warp[WARP - 1],
                });
            }
            let running = running.then::<R>(&before.expect("a chunk has at least one warp"));
            scratch.state[n] = running.b;
        }
    }
}

/// The fold of one thread's items, tokens of a chunk that begins with token `first`; keeps what enters
/// state n at each.
#[inline(always)]
fn fold_items<R: RealMath, F: Formula<R>>(
    tile: &Tile,
    scratch: &mut Scratch,
    items: Range<usize>,
    first: usize,
    n: usize,
) -> Map {
    if items.is_empty() {
        return Map::IDENTITY;
    }
    let states = scratch.state.len();
    let Scratch {
        decay,
        input,
        drive,
        u,
        ..
    } = scratch;
    let (decay, input) = (&decay[items.clone()], &mut input[items.clone()]);
    let (drive, u) = (&drive[items.clone()], &u[items.clone()]);
    let b = tile.b[(first + items.start) * states..].iter().skip(n);
    let b = b.step_by(states);
    let inputs = drive.iter().zip(u).zip(b).zip(input);
    let mut maps = decay
        .iter()
        .zip(inputs)
        .map(|(a, (((drive, u), b), input))| {
            *input = tile.input::<R, F>(*b, *drive, *u);
            Map { a: *a, b: *input }
        });
    let mut fold = maps.next().expect("an item");
    for map in maps {
        fold = fold.then::<R>(&map);
    }
    fold
}

/// Moves state n from `x` through one thread's items and adds it to their outputs.
#[inline(always)]
fn replay_items<R: RealMath, F: Formula<R>>(
    tile: &Tile,
    scratch: &mut Scratch,
    items: Range<usize>,
    first: usize,
    n: usize,
    mut x: Lanes,
) {
    if items.is_empty() {
        return;
    }
    let states = scratch.state.len();
    let Scratch {
        decay, input, out, ..
    } = scratch;
    let (decay, input) = (&decay[items.clone()], &input[items.clone()]);
    let out = &mut out[items.clone()];
    let c = tile.c[(first + items.start) * states..].iter().skip(n);
    let c = c.step_by(states);
    for (((decay, input), out), c) in decay.iter().zip(input).zip(out).zip(c) {
        let (state, sum) = (x, *out);
        x = lanes(|e| R::fma(decay[e], state[e], input[e]));
        *out = lanes(|e| F::accumulate(x[e], *c, sum[e]));
    }
}

/// Inclusive scan of a warp: offsets 1, 2, 4, 8, 16, all lanes at once.
#[inline(always)]
fn kogge_stone<R: RealMath>(warp: &mut [Map]) {
    for offset in [1, 2, 4, 8, 16] {
        for lane in (offset..WARP).rev() {
            warp[lane] = warp[lane - offset].then::<R>(&warp[lane]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::plan;

    #[test]
    fn the_plan_switches_where_the_kernel_does() {
        for (length, want) in [
            (1, (32, 4)),
            (128, (32, 4)),
            (129, (32, 8)),
            (256, (32, 8)),
            (257, (32, 16)),
            (512, (32, 16)),
            (513, (64, 16)),
            (1024, (64, 16)),
            (1025, (128, 16)),
            (5000, (128, 16)),
        ] {
            assert_eq!(plan(length), want, "{length}");
        }
    }
}
