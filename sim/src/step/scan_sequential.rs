//! The recurrence token after token.

use super::scan_formula::Formula;
use super::scan_tile::{Recurrence, Scratch, Tile};
use crate::arith::real::{RealMath, lanes};

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
        if tokens == 1 {
            tile.decays_of_states::<R>(scratch);
            let (drive, u) = (scratch.drive[0], scratch.u[0]);
            let mut sum = scratch.out[0];
            for n in 0..states {
                let (b, c) = (tile.b[first * states + n], tile.c[first * states + n]);
                let input = tile.input::<R, F>(b, drive, u);
                let (decay, before) = (scratch.decay[n], scratch.state[n]);
                let x = lanes(|e| F::update(decay[e], before[e], input[e]));
                sum = lanes(|e| F::accumulate(x[e], c, sum[e]));
                scratch.state[n] = x;
            }
            scratch.out[0] = sum;
            return;
        }
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
