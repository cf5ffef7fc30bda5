//! The recurrence token after token.

use super::scan::lanes;
use super::scan_formula::Formula;
use super::scan_tile::{Recurrence, Scratch, Tile};
use crate::arith::real::RealMath;

/// Tokens whose values fit the first-level cache.
const CHUNK: usize = 64;

pub(super) struct SequentialScan;

impl<R: RealMath, F: Formula<R>> Recurrence<R, F> for SequentialScan {
    fn chunk(_: usize) -> usize {
        CHUNK
    }

    fn scratch(length: usize) -> usize {
        CHUNK.min(length)
    }

    #[inline(always)]
    fn advance(tile: &Tile, scratch: &mut Scratch, first: usize, tokens: usize, _: usize) {
        let states = scratch.state.len();
        for n in 0..states {
            tile.decays::<R>(scratch, tokens, n);
            let mut x = scratch.state[n];
            for t in 0..tokens {
                let at = (first + t) * states + n;
                let (b, c) = (tile.b[at], tile.c[at]);
                let input = tile.input::<R, F>(b, scratch.drive[t], scratch.u[t]);
                let (decay, sum) = (scratch.decay[t], scratch.out[t]);
                x = lanes(|e| F::update(decay[e], x[e], input[e]));
                scratch.out[t] = lanes(|e| F::accumulate(x[e], c, sum[e]));
            }
            scratch.state[n] = x;
        }
    }
}
