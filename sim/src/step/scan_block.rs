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
        for n in 0..states {
            tile.decays::<R>(scratch, tokens, n);
            scratch.decay[tokens..].fill(Map::IDENTITY.a);
            for (thread, fold) in folds.iter_mut().enumerate() {
                for t in thread * items..(thread + 1) * items {
                    let map = Map {
                        a: scratch.decay[t],
                        b: match t < tokens {
                            true => {
                                let b = tile.b[(first + t) * states + n];
                                tile.input::<R, F>(b, scratch.drive[t], scratch.u[t])
                            }
                            false => Map::IDENTITY.b,
                        },
                    };
                    scratch.input[t] = map.b;
                    *fold = match t == thread * items {
                        true => map,
                        false => fold.then::<R>(&map),
                    };
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
                    let mut x = prefix.b;
                    let from = (w * WARP + lane) * items;
                    for t in from..(from + items).min(tokens) {
                        let c = tile.c[(first + t) * states + n];
                        let (decay, input) = (scratch.decay[t], scratch.input[t]);
                        let sum = scratch.out[t];
                        x = lanes(|e| R::fma(decay[e], x[e], input[e]));
                        scratch.out[t] = lanes(|e| F::accumulate(x[e], c, sum[e]));
                    }
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
