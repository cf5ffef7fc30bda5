//! Many rows at once: a panel of 32 weight rows is packed so that 32 outputs lie side by side, and
//! tiles of 8 rows of x by 32 outputs stay in registers while k runs.

use super::{Epilogue, Job, PANEL, panels};
use crate::arith::saturate::Status;

/// Rows of x in a tile.
const ROWS: usize = 8;

/// One 32-bit word for each output of a panel.
pub(super) type Words = [i32; PANEL];

/// How an instruction set multiplies: words of `GROUP` codes side by side, one instruction for all
/// products of a word.
pub(super) trait Tile {
    /// Codes in a word.
    const GROUP: usize;

    /// A word of x from `GROUP` codes or fewer; those that are missing count as zero.
    fn word(codes: &[i8]) -> i32;

    /// What accumulators of a row start with, given the sum of its codes.
    fn start(row_sum: i32) -> i32;

    /// Packs `weight`, at most 32 rows of `k` codes; rows that are missing may hold anything.
    fn pack(weight: &[i8], k: usize, panel: &mut [Words]);

    /// `start[r] + Σ_g word(x[r][g]) · panel[g]` in wrapping i32 arithmetic.
    fn multiply<const R: usize>(x: [&[i32]; R], panel: &[Words], start: [i32; R]) -> [Words; R];

    /// Runs [`panel`] with the instruction set enabled.
    fn panel<E: Epilogue>(job: &Job<E>, x: &Packed, buffer: &mut [Words], p: usize) -> Status;
}

/// The rows of x as words.
pub(super) struct Packed {
    /// `[L, groups]`.
    words: Vec<i32>,
    /// `[L]`.
    starts: Vec<i32>,
    groups: usize,
}

/// Multiplies every row of x with every row of the weight.
pub(super) fn run<T: Tile, E: Epilogue>(job: &Job<E>) -> Status {
    let groups = job.k.div_ceil(T::GROUP);
    let rows = || job.x.chunks_exact(job.k);
    let x = Packed {
        words: rows()
            .flat_map(|row| row.chunks(T::GROUP).map(T::word))
            .collect(),
        starts: rows()
            .map(|row| T::start(row.iter().map(|q| i32::from(*q)).sum()))
            .collect(),
        groups,
    };
    let buffer = || vec![[0; PANEL]; groups];
    panels(job, buffer, |buffer, p| T::panel(job, &x, buffer, p))
}

/// Packs a panel and multiplies all rows with it. The loop every instruction set gets a copy of.
#[inline(always)]
pub(super) fn panel<T: Tile, E: Epilogue>(
    job: &Job<E>,
    x: &Packed,
    buffer: &mut [Words],
    p: usize,
) -> Status {
    let first = p * PANEL;
    let width = PANEL.min(job.out.columns() - first);
    T::pack(&job.weight[first * job.k..][..width * job.k], job.k, buffer);
    let mut status = Status::default();
    let mut row = 0;
    while row + ROWS <= job.out.rows() {
        status += tile::<T, E, ROWS>(job, x, buffer, row, first..first + width);
        row += ROWS;
    }
    while row < job.out.rows() {
        status += tile::<T, E, 1>(job, x, buffer, row, first..first + width);
        row += 1;
    }
    status
}

#[inline(always)]
fn tile<T: Tile, E: Epilogue, const R: usize>(
    job: &Job<E>,
    x: &Packed,
    panel: &[Words],
    row: usize,
    columns: std::ops::Range<usize>,
) -> Status {
    let rows = std::array::from_fn(|r| &x.words[(row + r) * x.groups..][..x.groups]);
    let starts = std::array::from_fn(|r| x.starts[row + r]);
    let acc = T::multiply::<R>(rows, panel, starts);
    let mut status = Status::default();
    for (r, acc) in acc.iter().enumerate() {
        // SAFETY: panels have different columns, and this is the only segment of this one alive.
        let out = unsafe { job.out.segment(row + r, columns.start, columns.len()) };
        status += if columns.len() == PANEL {
            job.epilogue.row(acc, out)
        } else {
            job.epilogue.row(&acc[..columns.len()], out)
        };
    }
    status
}
