//! One token of the recurrence as the CUDA decode kernel computes it: the sum over states runs in
//! groups of four, then a butterfly over the groups from the widest distance down.
//!
//! The vectors define N = 16 (`(r_0 ⊕ r_2) ⊕ (r_1 ⊕ r_3)`). Other N use the same pattern, groups
//! and group count padded with zeros to the next power of two.

use super::scan_formula::Formula;
use super::scan_tile::{Recurrence, Scratch, Tile};
use crate::arith::real::{LANES, Lanes, RealMath, lanes};

/// States of a group.
const GROUP: usize = 4;
/// Groups of the largest N, 256.
const MAX_GROUPS: usize = 64;

pub(super) struct GroupedUpdate;

impl<R: RealMath, F: Formula<R>> Recurrence<R, F> for GroupedUpdate {
    fn chunk(_: usize) -> usize {
        1
    }

    #[inline(always)]
    fn advance(tile: &Tile, scratch: &mut Scratch, first: usize, _: usize, _: usize) {
        let states = scratch.state.len();
        tile.decays::<R>(scratch, first, 0..1);
        if let Some(out) = tile.grouped_by_kernel::<R>(scratch, first) {
            scratch.out[0] = out;
            return;
        }
        let (drive, u) = (scratch.drive[0], scratch.u[0]);
        let b = &tile.b[first * states..][..states];
        let c = &tile.c[first * states..][..states];
        let decays = &scratch.decay[..states];
        for ((x, decay), b) in scratch.state.iter_mut().zip(decays).zip(b) {
            let (before, input) = (*x, tile.input::<R, F>(*b, drive, u));
            *x = lanes(|e| F::update(decay[e], before[e], input[e]));
        }
        let groups = states.div_ceil(GROUP);
        let mut sums = [[0.0; LANES]; MAX_GROUPS];
        for (j, sum) in sums[..groups].iter_mut().enumerate() {
            *sum = group_sum::<R, F>(&scratch.state, j, c);
        }
        let mut width = groups.next_power_of_two();
        while width > 1 {
            width /= 2;
            let (low, high) = sums.split_at_mut(width);
            for (low, high) in low.iter_mut().zip(high) {
                let (a, b) = (*low, *high);
                *low = lanes(|e| R::add(a[e], b[e]));
            }
        }
        scratch.out[0] = sums[0];
    }
}

/// `r = h_1 ⊗ C_1`, then fma with states 0, 2, 3 of the group.
#[inline(always)]
fn group_sum<R: RealMath, F: Formula<R>>(state: &[Lanes], group: usize, c: &[f32]) -> Lanes {
    let first = group * GROUP;
    let mut sum = [0.0; LANES];
    if first + 1 < state.len() {
        let (x, c) = (state[first + 1], c[first + 1]);
        sum = lanes(|e| R::mul(x[e], c));
    }
    for n in [first, first + 2, first + 3] {
        if n < state.len() {
            let (x, c, before) = (state[n], c[n], sum);
            sum = lanes(|e| F::accumulate(x[e], c, before[e]));
        }
    }
    sum
}
