//! Many rows at once: a panel of 32 weight rows is packed so that 32 outputs lie side by side, and
//! tiles of rows of x by 32 outputs stay in registers while k runs.

use super::{Epilogue, Job, PANEL, panels};
use crate::arith::saturate::{LaneTally, Status};
use rayon::prelude::*;
use std::ops::Range;

/// One 32-bit word for each output of a panel.
pub(super) type Words = [i32; PANEL];

/// How an instruction set multiplies: words of `GROUP` codes side by side, one instruction for all
/// products of a word. Only used where the instruction set was found.
pub(super) trait Tile {
    /// Codes in a word.
    const GROUP: usize;
    /// Words that k is filled up to a multiple of, with zeros.
    const UNIT: usize;
    /// Rows of x in a tile.
    const ROWS: usize;

    /// Packs `rows`, at most `ROWS` rows of `k` codes, into `ROWS` × groups words of a layout of its
    /// own; rows that are missing may hold anything.
    fn pack_rows(rows: &[i8], k: usize, words: &mut [i32]);

    /// What accumulators of a row start with, given the sum of its codes.
    fn start(row_sum: i32) -> i32;

    /// Packs `weight`, at most 32 rows of `k` codes; rows that are missing may hold anything.
    fn pack(weight: &[i8], k: usize, panel: &mut [Words]);

    /// Parts in which a tile of `groups` words a row is multiplied. Where the unit that multiplies runs
    /// beside the others, these finish the tile before between the parts.
    fn parts(_groups: usize) -> usize {
        1
    }

    /// Part `part` of `acc[r] ← starts[r] + Σ_k x[r][k] · weight[k]` in wrapping i32 arithmetic, at
    /// least for the first `starts.len()` rows, 1 to `ROWS`. The parts of a tile follow each other;
    /// the sums lie in `acc`, which has room for `ROWS` rows, after the last. `words` is a packed tile.
    fn multiply(words: &[i32], panel: &[Words], starts: &[i32], acc: &mut [Words], part: usize);

    /// Runs [`panel`] with the instruction set enabled.
    fn panel<E: Epilogue>(job: &Job<E>, x: &Rows, scratch: &mut Scratch, p: usize) -> Status;
}

/// Some rows of x, packed.
pub(super) struct Rows {
    /// Their place in x.
    first: usize,
    /// Tile after tile.
    words: Vec<i32>,
    /// One for each row.
    starts: Vec<i32>,
}

/// What a thread needs for one panel at a time.
pub(super) struct Scratch {
    panel: Vec<Words>,
    /// Sums of two tiles.
    acc: Vec<Words>,
}

/// Multiplies every row of x with every row of the weight.
pub(super) fn run<T: Tile, E: Epilogue>(job: &Job<E>) -> Status {
    /// Rows of x that stay in the second-level cache while all panels pass by.
    const SLAB: usize = 512;
    /// Codes to pack that are worth a thread of their own.
    const WORTH: usize = 1 << 17;
    let groups = job.k.div_ceil(T::GROUP).next_multiple_of(T::UNIT);
    let tile = T::ROWS * groups;
    let tiles = job.out.rows().min(SLAB).div_ceil(T::ROWS);
    let mut x = Rows {
        first: 0,
        words: vec![0; tiles * tile],
        starts: Vec::new(),
    };
    let mut status = Status::default();
    for rows in job.x.chunks(SLAB * job.k) {
        x.words
            .par_chunks_exact_mut(tile)
            .zip(rows.par_chunks(T::ROWS * job.k))
            .with_min_len(WORTH.div_ceil(T::ROWS * job.k))
            .for_each(|(words, rows)| T::pack_rows(rows, job.k, words));
        let sum = |row: &[i8]| row.iter().map(|q| i32::from(*q)).sum();
        let starts = rows.chunks_exact(job.k).map(|row| T::start(sum(row)));
        x.starts.clear();
        x.starts.extend(starts);
        let scratch = || Scratch {
            panel: vec![[0; PANEL]; groups],
            acc: vec![[0; PANEL]; 2 * T::ROWS],
        };
        status += panels(job, x.starts.len(), scratch, |scratch, p| {
            T::panel(job, &x, scratch, p)
        });
        x.first += x.starts.len();
    }
    status
}

/// Packs a panel and multiplies all rows with it. The loop every instruction set gets a copy of.
#[inline(always)]
pub(super) fn panel<T: Tile, E: Epilogue>(
    job: &Job<E>,
    x: &Rows,
    scratch: &mut Scratch,
    p: usize,
) -> Status {
    let Scratch { panel, acc } = scratch;
    let first = p * PANEL;
    let width = PANEL.min(job.out.columns() - first);
    T::pack(&job.weight[first * job.k..][..width * job.k], job.k, panel);
    let mut tally = LaneTally::of(job.epilogue.overflow());
    let parts = T::parts(panel.len());
    let tiles = x.words.chunks_exact(T::ROWS * panel.len());
    // The sums of this tile, and those of the tile before with its place and rows.
    let (mut now, mut before) = acc.split_at_mut(T::ROWS);
    let (mut row_before, mut rows_before) = (0, 0);
    for (t, (words, starts)) in tiles.zip(x.starts.chunks(T::ROWS)).enumerate() {
        for part in 0..parts {
            T::multiply(words, panel, starts, now, part);
            let rows = rows_before * part / parts..rows_before * (part + 1) / parts;
            finish(job, p, before, row_before, rows, &mut tally);
        }
        (row_before, rows_before) = (x.first + t * T::ROWS, starts.len());
        std::mem::swap(&mut now, &mut before);
    }
    finish(job, p, before, row_before, 0..rows_before, &mut tally);
    tally.status()
}

/// Turns rows of a tile, whose first one is row `first_row` of the product, into outputs.
#[inline(always)]
fn finish<E: Epilogue>(
    job: &Job<E>,
    p: usize,
    acc: &[Words],
    first_row: usize,
    rows: Range<usize>,
    tally: &mut LaneTally,
) {
    let first = p * PANEL;
    let width = PANEL.min(job.out.columns() - first);
    for r in rows {
        // SAFETY: panels have different columns, and this is the only segment of this one alive.
        let out = unsafe { job.out.segment(first_row + r, first, width) };
        match <&mut [E::Out; PANEL]>::try_from(&mut *out) {
            Ok(out) => job.epilogue.row(&acc[r], out, tally),
            Err(_) => job.epilogue.row(&acc[r][..width], out, tally),
        }
    }
}
