//! The recurrence token after token.

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

    #[inline(always)]
    fn advance(tile: &Tile, scratch: &mut Scratch, first: usize, tokens: usize, _: usize) {
        if !tile.fused_by_table::<R>(scratch, first, 0..tokens) {
            tile.advance::<R, F>(scratch, first, 0..tokens, false);
        }
    }
}
