//! Many rows at once: a panel of 32 weight rows is packed so that 32 outputs lie side by side, and
//! tiles of rows of x by 32 outputs stay in registers while k runs.

use super::{Epilogue, Job, PANEL, panels};
use crate::arith::saturate::Status;
use crate::kernels::lines::Lines;
use rayon::prelude::*;

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

    /// `acc[r] ← starts[r] + Σ_k x[r][k] · weight[k]` in wrapping i32 arithmetic, at least for the first
    /// `starts.len()` rows, 1 to `ROWS`; `acc` has room for `ROWS`. `words` is a packed tile.
    fn multiply(words: &[i32], panel: &[Words], starts: &[i32], acc: &mut [Words]);

    /// Runs [`panel`] with the instruction set enabled.
    fn panel<E: Epilogue>(
        job: &Job<E>,
        x: &Rows,
        scratch: &mut Scratch<E::Out>,
        p: usize,
    ) -> Status;
}

/// Some rows of x, packed.
pub(super) struct Rows {
    /// Their place in x.
    first: usize,
    /// Tile after tile.
    words: Lines<i32, 16>,
    /// One for each row.
    starts: Vec<i32>,
}

/// What a thread needs for one panel at a time.
pub(super) struct Scratch<O> {
    panel: Lines<i32, PANEL>,
    /// Sums of a tile.
    acc: Lines<i32, PANEL>,
    /// Outputs of a tile, side by side as its sums are.
    out: Vec<[O; PANEL]>,
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
        words: Lines::new(0, (tiles * tile).div_ceil(16)),
        starts: Vec::new(),
    };
    let mut status = Status::default();
    for rows in job.x.chunks(SLAB * job.k) {
        x.starts.resize(rows.len() / job.k, 0);
        x.words
            .as_flattened_mut()
            .par_chunks_exact_mut(tile)
            .zip(rows.par_chunks(T::ROWS * job.k))
            .zip(x.starts.par_chunks_mut(T::ROWS))
            .with_min_len(WORTH.div_ceil(T::ROWS * job.k))
            .for_each(|((words, rows), starts)| {
                T::pack_rows(rows, job.k, words);
                for (start, row) in starts.iter_mut().zip(rows.chunks_exact(job.k)) {
                    *start = T::start(row.iter().map(|q| i32::from(*q)).sum());
                }
            });
        let scratch = || Scratch {
            panel: Lines::new(0, groups),
            acc: Lines::new(0, T::ROWS),
            out: vec![[E::Out::default(); PANEL]; T::ROWS],
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
    scratch: &mut Scratch<E::Out>,
    p: usize,
) -> Status {
    let Scratch { panel, acc, out } = scratch;
    let first = p * PANEL;
    let width = PANEL.min(job.out.columns() - first);
    T::pack(&job.weight[first * job.k..][..width * job.k], job.k, panel);
    let (tile, rows) = (T::ROWS * panel.len(), x.starts.len());
    // A thread's next panel is most often the one beside; its rows come in while this one is multiplied.
    let beside = &job.weight[(first + width) * job.k..];
    let beside = &beside[..beside.len().min(PANEL * job.k)];
    let share = (beside.len().div_ceil(rows.div_ceil(T::ROWS))).next_multiple_of(LINE);
    let mut beside = beside.chunks(share.max(1));
    let tiles = x.words.as_flattened().chunks_exact(tile);
    let mut status = Status::default();
    for (t, (words, starts)) in tiles.zip(x.starts.chunks(T::ROWS)).enumerate() {
        prefetch(beside.next().unwrap_or(&[]));
        T::multiply(words, panel, starts, acc);
        status += finish(job, p, &acc[..starts.len()], x.first + t * T::ROWS, out);
    }
    status
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for codes that will be read soon, into the second-level cache.
#[inline(always)]
fn prefetch(codes: &[i8]) {
    for line in codes.chunks(LINE) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which every x86-64 processor has.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

/// Turns rows of sums into outputs, from row `first_row` of the product on.
#[inline(always)]
fn finish<E: Epilogue>(
    job: &Job<E>,
    p: usize,
    acc: &[Words],
    first_row: usize,
    staged: &mut [[E::Out; PANEL]],
) -> Status {
    let first = p * PANEL;
    let width = PANEL.min(job.out.columns() - first);
    let staged = &mut staged[..acc.len()];
    // All at once: what is counted then stays in registers.
    let status = match width {
        PANEL => (job.epilogue).finish(acc.as_flattened(), staged.as_flattened_mut()),
        _ => {
            let mut status = Status::default();
            for (acc, out) in acc.iter().zip(&mut *staged) {
                status += job.epilogue.finish(&acc[..width], &mut out[..width]);
            }
            status
        }
    };
    for (r, staged) in staged.iter().enumerate() {
        // SAFETY: panels have different columns, and this is the only segment of this one alive.
        let out = unsafe { job.out.segment(first_row + r, first, width) };
        match <&mut [E::Out; PANEL]>::try_from(&mut *out) {
            Ok(out) => *out = *staged,
            Err(_) => out.copy_from_slice(&staged[..width]),
        }
    }
    status
}
