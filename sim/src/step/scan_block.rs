//! The recurrence as the CUDA prefill kernel associates it: a block scan over time.
//!
//! The sequence is cut into chunks of T·I tokens (T threads of I consecutive items, padded with the
//! neutral element). Each thread folds its items, each warp of 32 threads makes an inclusive
//! Kogge-Stone scan of the folds, warps are chained in order, and every thread replays its items
//! from its prefix. The association decides the last bit; here a lane is a channel and the threads
//! are array elements, so the order is the kernel's whatever runs it.

use super::scan_formula::Formula;
use super::scan_tile::{Recurrence, Scratch, Tile, cached_tokens};
use crate::arith::real::{LANES, Lanes, RealMath, lanes};
#[cfg(target_arch = "x86_64")]
use crate::kernels;
use std::ops::Range;

/// Threads of a warp.
pub(crate) const WARP: usize = 32;

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
pub(crate) struct Map {
    /// Decays, or their product: never negative.
    pub a: Lanes,
    pub b: Lanes,
}

impl Map {
    pub const IDENTITY: Map = Map {
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

    /// A look-up is cheap enough to be made twice, a function is not.
    fn decays(length: usize, states: usize, by_table: bool) -> usize {
        match by_table {
            true => plan(length).1.max(cached_tokens(states)),
            false => <Self as Recurrence<R, F>>::chunk(length),
        }
    }

    #[inline(always)]
    fn advance(tile: &Tile, scratch: &mut Scratch, first: usize, tokens: usize, length: usize) {
        let (threads, items) = plan(length);
        let states = scratch.state.len();
        let items_of = |thread: usize| {
            let from = (thread * items).min(tokens);
            from..(from + items).min(tokens)
        };
        let kept = scratch.table.is_none();
        if kept {
            tile.decays::<R>(scratch, first, 0..tokens);
        }
        // Of each state the maps of the threads, and one more: the state at the end.
        let row = threads + 1;
        let mut maps = std::mem::take(&mut scratch.maps);
        maps.resize(states * row, Map::IDENTITY);
        for thread in 0..threads {
            let there = items_of(thread);
            let missing = items - there.len().max(1);
            fold_items::<R, F>(tile, scratch, there, first, kept, (&mut maps, thread, row));
            if missing > 0 {
                for map in maps[thread..].iter_mut().step_by(row) {
                    for _ in 0..missing {
                        *map = map.then::<R>(&Map::IDENTITY);
                    }
                }
            }
        }
        for (state, maps) in scratch.state.iter().zip(maps.chunks_exact_mut(row)) {
            prefixes::<R>(*state, maps);
        }
        for thread in 0..row {
            for (state, prefixes) in scratch.state.iter_mut().zip(maps.chunks_exact(row)) {
                *state = prefixes[thread].b;
            }
            if thread < threads {
                let there = items_of(thread);
                if !tile.fused_by_table::<R>(scratch, first, there.clone()) {
                    tile.advance::<R, F>(scratch, first, there, kept);
                }
            }
        }
        scratch.maps = maps;
    }
}

/// Puts the states before each thread's items, and after the last, in the place of b of a state's folds.
#[inline(always)]
fn prefixes<R: RealMath>(state: Lanes, maps: &mut [Map]) {
    let (end, folds) = maps.split_last_mut().expect("a map more than threads");
    let state_after = |map: &Map| lanes(|e| R::fma(map.a[e], state[e], map.b[e]));
    let mut before: Option<Map> = None; // fold of the warps before this one
    for warp in folds.as_chunks_mut::<WARP>().0 {
        kogge_stone::<R>(warp);
        let whole = match &before {
            Some(before) => before.then::<R>(&warp[WARP - 1]),
            None => warp[WARP - 1],
        };
        for lane in (1..WARP).rev() {
            warp[lane].b = match &before {
                Some(before) => state_after(&before.then::<R>(&warp[lane - 1])),
                None => state_after(&warp[lane - 1]),
            };
        }
        warp[0].b = before.as_ref().map_or(state, state_after);
        before = Some(whole);
    }
    end.b = state_after(&before.expect("a chunk has at least one warp"));
}

/// The folds of one thread's items, tokens of a chunk that begins with token `first`, for each state: to map `thread` of
/// each `row` of maps. `kept` as in [`Tile::advance`].
#[inline(always)]
fn fold_items<R: RealMath, F: Formula<R>>(
    tile: &Tile,
    scratch: &mut Scratch,
    items: Range<usize>,
    first: usize,
    kept: bool,
    (maps, thread, row): (&mut [Map], usize, usize),
) {
    /// States side by side, so that none waits for the token before.
    const SIDE_BY_SIDE: usize = 4;
    let states = scratch.state.len();
    let maps = &mut maps[thread..];
    if items.is_empty() {
        for map in maps.iter_mut().step_by(row) {
            *map = Map::IDENTITY;
        }
        return;
    }
    if tile.folded_by_table::<R>(scratch, first, items.clone(), maps, row) {
        return;
    }
    let mut at = items.start;
    if !kept {
        tile.decays::<R>(scratch, first, items.clone());
        at = 0;
    }
    let together = states / SIDE_BY_SIDE * SIDE_BY_SIDE;
    for n in (0..together).step_by(SIDE_BY_SIDE) {
        let folds = fold_states::<R, F, SIDE_BY_SIDE>(tile, scratch, items.clone(), first, at, n);
        for (i, fold) in folds.into_iter().enumerate() {
            maps[(n + i) * row] = fold;
        }
    }
    for n in together..states {
        [maps[n * row]] = fold_states::<R, F, 1>(tile, scratch, items.clone(), first, at, n);
    }
}

/// [`fold_items`] of G states from n on; there is an item.
#[inline(always)]
fn fold_states<R: RealMath, F: Formula<R>, const G: usize>(
    tile: &Tile,
    scratch: &Scratch,
    items: Range<usize>,
    first: usize,
    at: usize,
    n: usize,
) -> [Map; G] {
    let states = scratch.state.len();
    let b = tile.b[(first + items.start) * states + n..].chunks(states);
    let decay = scratch.decay[at * states + n..].chunks(states);
    let (drive, u) = (&scratch.drive[items.clone()], &scratch.u[items]);
    let mut folds = [Map::IDENTITY; G];
    for (i, (((a, drive), u), b)) in decay.zip(drive).zip(u).zip(b).enumerate() {
        let (a, b) = (&a[..G], &b[..G]);
        for g in 0..G {
            let map = Map {
                a: a[g],
                b: tile.input::<R, F>(b[g], *drive, *u),
            };
            folds[g] = if i == 0 {
                map
            } else {
                folds[g].then::<R>(&map)
            };
        }
    }
    folds
}

/// Inclusive scan of a warp: offsets 1, 2, 4, 8, 16, all lanes at once.
#[inline(always)]
fn kogge_stone<R: RealMath>(warp: &mut [Map; WARP]) {
    #[cfg(target_arch = "x86_64")]
    if kernels::scan::kogge_stone(R::FLUSHES, warp) {
        return;
    }
    kogge_stone_by_definition::<R>(warp);
}

/// [`kogge_stone`], the specification.
#[inline(always)]
pub(crate) fn kogge_stone_by_definition<R: RealMath>(warp: &mut [Map; WARP]) {
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
