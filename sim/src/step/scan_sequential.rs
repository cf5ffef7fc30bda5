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

    #[inline(always)]
    fn advance(tile: &Tile, scratch: &mut Scratch, first: usize, tokens: usize, _: usize) {
        if tokens == 1 {
            return one_token::<R, F>(tile, scratch, first);
        }
        if !tile.fused_by_table::<R>(scratch, first, 0..tokens) {
            tile.advance::<R, F>(scratch, first, 0..tokens, false);
        }
    }
}

/// [`Tile::advance`] of one token, state by state: there is no chain of tokens to wait for.
#[inline(always)]
fn one_token<R: RealMath, F: Formula<R>>(tile: &Tile, scratch: &mut Scratch, first: usize) {
    tile.decays::<R>(scratch, first, 0..1);
    let states = scratch.state.len();
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
}
