//! INT8 × INT8 → i32, exact: the result does not depend on blocking, threads or instruction set.
//!
//! | part | what it is |
//! |---|---|
//! | [`matmul_i8`] | shares panels of 32 outputs among threads |
//! | `dots` | the specification: one dot product after another; also the one-row product |
//! | `packed` | many rows: a panel is packed in the cache and multiplied tile by tile |
//! | `amx`, `vnni`, `avx2` | the tiles of three instruction sets |
//! | `nibbles` | weights of four bits: read as they are by products of one row, turned to INT8 panel by panel for others |
//!
//! Weights stay as the model has them. A panel is packed by the thread that is about to use it:
//! one pass over 32 rows of the weight against L passes of arithmetic, in exchange for no second
//! copy of the weights in memory.

mod dots;
mod nibbles;
mod packed;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(target_arch = "x86_64")]
pub(super) use amx::burst as amx_burst;
pub use nibbles::Nibbles;

use super::columns::SplitColumns;
use super::team::share;
use crate::arith::saturate::Status;
use crate::isa::Isa;
use ndarray::{Array2, ArrayView2};
use std::cell::Cell;
use std::ops::Range;

/// Outputs of a panel: an epilogue gets whole rows of one.
pub const PANEL: usize = 32;
/// From so many rows on, packing pays.
const ROWS_TO_PACK: usize = 4;
/// Multiplications that are worth a thread of their own: of one row some microseconds, which go by in
/// reading weights.
const TASK: usize = 1 << 15;

/// What becomes of accumulators.
pub trait Epilogue: Sync {
    /// An output.
    type Out: Copy + Default + Send;

    /// Turns accumulators into outputs (as many), and counts what did not fit. They are those of
    /// `columns` of one row of the product, or of several rows one after another. Implementations
    /// are `#[inline(always)]`: each instruction set gets its own copy.
    fn finish(&self, columns: Range<usize>, acc: &[i32], out: &mut [Self::Out]) -> Status;
}

/// The accumulators themselves.
#[derive(Clone, Copy, Debug)]
pub struct Sums;

impl Epilogue for Sums {
    type Out = i32;

    #[inline(always)]
    fn finish(&self, _: Range<usize>, acc: &[i32], out: &mut [i32]) -> Status {
        out.copy_from_slice(acc);
        Status::default()
    }
}

/// A weight `[N, K]`.
#[derive(Clone, Copy, Debug)]
pub enum Codes<'a> {
    /// INT8.
    Int8(ArrayView2<'a, i8>),
    /// Four bits.
    Int4(Nibbles<'a>),
}

impl Codes<'_> {
    /// N and K.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            Codes::Int8(codes) => codes.dim(),
            Codes::Int4(nibbles) => nibbles.dim(),
        }
    }
}

impl<'a> From<ArrayView2<'a, i8>> for Codes<'a> {
    fn from(codes: ArrayView2<'a, i8>) -> Self {
        Self::Int8(codes)
    }
}

impl<'a> From<Nibbles<'a>> for Codes<'a> {
    fn from(nibbles: Nibbles<'a>) -> Self {
        Self::Int4(nibbles)
    }
}

/// The rows of a weight in memory.
#[derive(Clone, Copy)]
enum WeightRows<'a> {
    Int8(&'a [i8]),
    Int4(Nibbles<'a>),
}

/// A product about to run.
struct Job<'a, E: Epilogue> {
    /// `[L, K]`.
    x: &'a [i8],
    /// N rows.
    weight: WeightRows<'a>,
    k: usize,
    /// `[L, N]`.
    out: SplitColumns<'a, E::Out>,
    epilogue: &'a E,
}

thread_local! {
    /// Where this thread turned its last rows of a four-bit weight.
    static TURNED: Cell<Vec<i8>> = const { Cell::new(Vec::new()) };
}

impl<E: Epilogue> Job<'_, E> {
    /// The outputs of a panel.
    fn columns(&self, p: usize) -> Range<usize> {
        p * PANEL..((p + 1) * PANEL).min(self.out.columns())
    }

    /// Hands some rows of the weight on in INT8.
    #[inline(always)]
    fn with_rows<T>(&self, rows: Range<usize>, then: impl FnOnce(&[i8]) -> T) -> T {
        match self.weight {
            WeightRows::Int8(codes) => then(&codes[rows.start * self.k..rows.end * self.k]),
            WeightRows::Int4(nibbles) => {
                let mut room = TURNED.take();
                room.resize(rows.len() * self.k, 0);
                nibbles.expand(rows, &mut room);
                let done = then(&room);
                TURNED.set(room);
                done
            }
        }
    }

    /// The bytes from a row on, as many as that many rows have.
    fn bytes(&self, first: usize, rows: usize) -> &[u8] {
        let (bytes, row): (&[u8], usize) = match self.weight {
            WeightRows::Int8(codes) => (bytemuck::cast_slice(codes), self.k),
            WeightRows::Int4(nibbles) => (nibbles.bytes, self.k / 2),
        };
        let bytes = &bytes[first * row..];
        &bytes[..bytes.len().min(rows * row)]
    }
}

/// For each row of `x` (`[L, K]`) computes its dot products with every row of `weight` (`[N, K]`)
/// and hands them to `epilogue`, which fills the row of `out` (`[L, N]`) and counts what did not
/// fit. K must not exceed [`crate::quant::Acc::MAX_LENGTH`].
pub fn matmul_i8<'a, E: Epilogue>(
    x: &Array2<i8>,
    weight: impl Into<Codes<'a>>,
    out: &mut Array2<E::Out>,
    epilogue: &E,
) -> Status {
    let weight = weight.into();
    let (n, k) = weight.dim();
    assert_eq!(x.ncols(), k);
    assert_eq!(out.dim(), (x.nrows(), n));
    assert!(k <= crate::quant::Acc::MAX_LENGTH);
    if n == 0 || k == 0 {
        return Status::default();
    }
    let job = Job {
        x: x.as_slice().expect("activations are row-major"),
        weight: match &weight {
            Codes::Int8(codes) => {
                WeightRows::Int8(codes.as_slice().expect("weights are row-major"))
            }
            Codes::Int4(nibbles) => WeightRows::Int4(*nibbles),
        },
        k,
        out: SplitColumns::new(out),
        epilogue,
    };
    #[cfg(target_arch = "x86_64")]
    if job.out.rows() >= ROWS_TO_PACK {
        match Isa::current() {
            Isa::Baseline => {}
            Isa::Avx2 | Isa::Avx512 => return packed::run::<avx2::Avx2, E>(&job),
            Isa::Avx512Vnni | Isa::Avx512Vbmi => return packed::run::<vnni::Vnni, E>(&job),
            Isa::Amx => return packed::run::<amx::Amx, E>(&job),
        }
    }
    dots::run(&job)
}

/// Runs `panel` for every panel of a job and `rows` of its rows: on several threads if there is enough
/// to do.
fn panels<E: Epilogue>(
    job: &Job<E>,
    rows: usize,
    panel: impl Fn(usize) -> Status + Sync + Send,
) -> Status {
    let count = job.out.columns().div_ceil(PANEL);
    let work = PANEL * job.k * rows;
    let at_once = TASK.div_ceil(work).max(1);
    share(count, at_once, || (), |(), p| panel(p))
}
