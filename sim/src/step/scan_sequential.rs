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
        // As slices of one length: the loop then has no pointers to fetch and no bounds to check.
        let (delta, decay) = (&scratch.delta[..tokens], &mut scratch.decay[..tokens]);
        let (drive, u, out) = (
            &scratch.drive[..tokens],
            &scratch.u[..tokens],
            &mut scratch.out[..tokens],
        );
        for (n, state) in scratch.state.iter_mut().enumerate() {
            R::decays(&tile.alpha[n], delta, decay);
            let from = first * states + n;
            let b = tile.b[from..].iter().step_by(states);
            let c = tile.c[from..].iter().step_by(states);
            let mut x = *state;
            let lanes_of_tokens = decay.iter().zip(drive).zip(u).zip(out.iter_mut());
            for ((((decay, drive), u), out), (b, c)) in lanes_of_tokens.zip(b.zip(c)) {
                let input = tile.input::<R, F>(*b, *drive, *u);
                let (before, sum) = (x, *out);
                x = lanes(|e| F::update(decay[e], before[e], input[e]));
                *out = lanes(|e| F::accumulate(x[e], *c, sum[e]));
            }
            *state = x;
        }
    }
}
