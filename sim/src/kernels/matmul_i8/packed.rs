//! Many rows at once: a panel of 32 weight rows is packed so that 32 outputs lie side by side, and
//! tiles of rows of x by 32 outputs stay in registers while k runs.

use super::{Epilogue, Job, PANEL, panels};
use crate::arith::saturate::Status;
use crate::kernels::lines::Lines;
use rayon::prelude::*;
use std::cell::Cell;
use std::ops::Range;

/// One 32-bit word for each output of a panel.
pub(super) type Words = [i32; PANEL];

/// How an instruction set multiplies: words of `GROUP` codes side by side, one instruction for all
/// products of a word. Only used where the instruction set was found.
pub(super) trait Tile {
    /// Codes in a word.
    const GROUP: usize;
    /// Words that k is filled up to a multiple of, with zeros.
    const K_MULTIPLE: usize;
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
    ///
    /// `meanwhile` does a piece of other work, one of `ROWS / PIECE`, for an instruction set that can hide
    /// it behind its own; it need not be called.
    fn multiply(
        words: &[i32],
        panel: &[Words],
        starts: &[i32],
        acc: &mut [Words],
        meanwhile: impl FnMut(),
    );

    /// Runs [`panel`] with the instruction set enabled.
    fn panel<E: Epilogue>(job: &Job<E>, x: &Rows, p: usize) -> Status;
}

/// Words of a row, filled up.
fn groups<T: Tile>(k: usize) -> usize {
    k.div_ceil(T::GROUP).next_multiple_of(T::K_MULTIPLE)
}

/// The most rows a tile has.
const MOST_ROWS: usize = 32;

/// Some rows of x, packed.
pub(super) struct Rows {
    /// Their place in x.
    first: usize,
    /// Tile after tile.
    words: Lines<i32, 16>,
    /// One for each row.
    starts: Vec<i32>,
}

thread_local! {
    /// Where this thread's last product had its packed rows. New room would have to be filled with zeros
    /// first, which takes as long as packing.
    static ROWS: Cell<Lines<i32, 16>> = Cell::default();
    /// Where this thread's last panel was, and the sums of two tiles.
    static PANEL_AND_SUMS: Cell<Lines<i32, PANEL>> = Cell::default();
}

/// Multiplies every row of x with every row of the weight.
pub(super) fn run<T: Tile, E: Epilogue>(job: &Job<E>) -> Status {
    /// Rows of x that stay in the second-level cache while all panels pass by.
    const SLAB: usize = 512;
    /// Codes to pack that are worth a thread of their own.
    const WORTH: usize = 1 << 17;
    let tile = T::ROWS * groups::<T>(job.k);
    let tiles = job.out.rows().min(SLAB).div_ceil(T::ROWS);
    let mut x = Rows {
        first: 0,
        words: ROWS.take().at_least(0, (tiles * tile).div_ceil(16)),
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
        status += panels(job, x.starts.len(), |p| T::panel(job, &x, p));
        x.first += x.starts.len();
    }
    ROWS.set(x.words);
    status
}

/// Packs a panel and multiplies all rows with it. The loop every instruction set gets a copy of.
#[inline(always)]
pub(super) fn panel<T: Tile, E: Epilogue>(job: &Job<E>, x: &Rows, p: usize) -> Status {
    let groups = groups::<T>(job.k);
    let mut room = PANEL_AND_SUMS.take().at_least(0, groups + 2 * T::ROWS);
    let (panel, acc) = room[..groups + 2 * T::ROWS].split_at_mut(groups);
    // Outputs of a tile, side by side as its sums are.
    let staged = &mut [[E::Out::default(); PANEL]; MOST_ROWS][..T::ROWS];
    let columns = job.columns(p);
    job.with_rows(columns.clone(), |rows| T::pack(rows, job.k, panel));
    let (tile, rows) = (T::ROWS * panel.len(), x.starts.len());
    // A thread's next panel is most often the one beside; its rows come in while this one is multiplied.
    let beside = job.bytes(columns.end, PANEL);
    let share = (beside.len().div_ceil(rows.div_ceil(T::ROWS))).next_multiple_of(LINE);
    let mut beside = beside.chunks(share.max(1));
    let mut tiles = (x.words.as_flattened().chunks_exact(tile)).zip(x.starts.chunks(T::ROWS));
    let (mut now, mut before) = acc.split_at_mut(T::ROWS);
    let mut finish = Finish::new(job, p, &[], x.first, staged);
    let mut status = Status::default();
    loop {
        let next = tiles.next();
        if let Some((words, starts)) = next {
            prefetch(beside.next().unwrap_or(&[]));
            T::multiply(words, panel, starts, now, || finish.piece());
        }
        let next_row = finish.next_row();
        status += finish.rest();
        let Some((_, starts)) = next else { break };
        (now, before) = (before, now);
        finish = Finish::new(job, p, &before[..starts.len()], next_row, staged);
    }
    PANEL_AND_SUMS.set(room);
    status
}

/// Bytes of a cache line.
const LINE: usize = 64;

/// Asks for codes that will be read soon, into the second-level cache.
#[inline(always)]
fn prefetch(codes: &[u8]) {
    for line in codes.chunks(LINE) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a hint, which every x86-64 processor has.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

/// Rows of sums that become outputs together.
pub(super) const PIECE: usize = 4;

/// The sums of a tile on their way to outputs.
struct Finish<'a, 'j, E: Epilogue> {
    job: &'a Job<'j, E>,
    /// Columns of the product.
    columns: Range<usize>,
    /// Its first row.
    row: usize,
    acc: &'a [Words],
    /// Rows of outputs, `done` of them made. They go to the product all at once: the small stores that a
    /// piece makes are then long over.
    staged: &'a mut [[E::Out; PANEL]],
    done: usize,
    status: Status,
}

impl<'a, 'j, E: Epilogue> Finish<'a, 'j, E> {
    /// Nothing made yet of `acc`, row `row` of panel `p` and the next ones.
    #[inline(always)]
    fn new(
        job: &'a Job<'j, E>,
        p: usize,
        acc: &'a [Words],
        row: usize,
        staged: &'a mut [[E::Out; PANEL]],
    ) -> Self {
        Self {
            job,
            columns: job.columns(p),
            row,
            acc,
            staged,
            done: 0,
            status: Status::default(),
        }
    }

    /// The row of the product after its last.
    fn next_row(&self) -> usize {
        self.row + self.acc.len()
    }

    /// Turns the next sums into outputs: of whole rows many at once. One place calls the epilogue, which
    /// is long and copied to each.
    #[inline(always)]
    fn piece(&mut self) {
        let (acc, out) = (&self.acc[self.done..], &mut self.staged[self.done..]);
        let (rows, width) = match self.columns.len() {
            PANEL => (acc.len().min(PIECE), PANEL),
            width => (acc.len().min(1), width),
        };
        let count = rows * width;
        let (acc, out) = (acc.as_flattened(), out.as_flattened_mut());
        let (epilogue, columns) = (self.job.epilogue, self.columns.clone());
        self.status += epilogue.finish(columns, &acc[..count], &mut out[..count]);
        self.done += rows;
    }

    /// Turns what is left into outputs, and hands all of them over.
    #[inline(always)]
    fn rest(mut self) -> Status {
        while self.done < self.acc.len() {
            self.piece();
        }
        for (r, staged) in self.staged[..self.done].iter().enumerate() {
            // SAFETY: panels have different columns, and this is the only segment of this one alive.
            let width = self.columns.len();
            let out = unsafe { (self.job.out).segment(self.row + r, self.columns.start, width) };
            match <&mut [E::Out; PANEL]>::try_from(&mut *out) {
                Ok(out) => *out = *staged,
                Err(_) => out.copy_from_slice(&staged[..width]),
            }
        }
        self.status
    }
}
