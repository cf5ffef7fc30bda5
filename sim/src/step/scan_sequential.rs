//! The recurrence token after token.

use super::scan_formula::Formula;
use super::scan_tile::{Recurrence, Scratch, Tile, cached_tokens};
use crate::arith::real::RealMath;

pub(super) struct SequentialScan;

impl<R: RealMath, F: Formula<R>> Recurrence<R, F> for SequentialScan {
    fn chunk(_: usize, states: usize) -> usize {
        cached_tokens(states)
    }

    #[inline(always)]
    fn advance(tile: &Tile, scratch: &mut Scratch, first: usize, tokens: usize, _: usize) {
        tile.decays::<R>(scratch, first, 0..tokens);
        tile.advance::<R, F>(scratch, first, 0..tokens, 0);
    }
}
