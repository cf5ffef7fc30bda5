//! INT8 × INT8 → i32, exact: the result does not depend on blocking, threads or instruction set.
//!
//! | part | what it is |
//! |---|---|
//! | [`matmul_i8`] | shares panels of 32 outputs among threads |
//! | `dots` | the specification: one dot product after another; also the one-row product |
//! | `packed` | many rows: a panel is packed in the cache and multiplied tile by tile |
//! | `amx`, `vnni`, `avx2` | the tiles of three instruction sets |
//!
//! Weights stay as the model has them. A panel is packed by the thread that is about to use it:
//! one pass over 32 rows of the weight against L passes of arithmetic, in exchange for no second
//! copy of the weights in memory.

mod dots;
mod packed;

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod vnni;

#[cfg(target_arch = "x86_64")]
pub(super) use amx::burst as amx_burst;

use super::columns::SplitColumns;
use crate::arith::saturate::Status;
use crate::isa::Isa;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

/// Outputs of a panel.
const PANEL: usize = 32;
/// From so many rows on, packing pays.
const ROWS_TO_PACK: usize = 4;
/// Multiplications that are worth a thread of their own: of one row some microseconds, which go by in
/// reading weights.
const TASK: usize = 1 << 15;

/// What becomes of accumulators.
pub trait Epilogue: Sync {
    /// An output.
    type Out: Copy + Default + Send;

    /// Turns accumulators into outputs (as many), and counts what did not fit. Implementations are
    /// `#[inline(always)]`: each instruction set gets its own copy.
    fn finish(&self, acc: &[i32], out: &mut [Self::Out]) -> Status;
}

/// The accumulators themselves.
#[derive(Clone, Copy, Debug)]
pub struct Sums;

impl Epilogue for Sums {
    type Out = i32;

    #[inline(always)]
    fn finish(&self, acc: &[i32], out: &mut [i32]) -> Status {
        out.copy_from_slice(acc);
        Status::default()
    }
}

/// A product about to run.
struct Job<'a, E: Epilogue> {
    /// `[L, K]`.
    x: &'a [i8],
    /// `[N, K]`.
    weight: &'a [i8],
    k: usize,
    /// `[L, N]`.
    out: SplitColumns<'a, E::Out>,
    epilogue: &'a E,
}

/// For each row of `x` (`[L, K]`) computes its dot products with every row of `weight` (`[N, K]`)
/// and hands them to `epilogue`, which fills the row of `out` (`[L, N]`) and counts what did not
/// fit. K must not exceed [`crate::quant::Acc::MAX_LENGTH`].
pub fn matmul_i8<E: Epilogue>(
    x: &Array2<i8>,
    weight: ArrayView2<i8>,
    out: &mut Array2<E::Out>,
    epilogue: &E,
) -> Status {
    let (n, k) = weight.dim();
    assert_eq!(x.ncols(), k);
    assert_eq!(out.dim(), (x.nrows(), n));
    assert!(k <= crate::quant::Acc::MAX_LENGTH);
    if n == 0 || k == 0 {
        return Status::default();
    }
    let job = Job {
        x: x.as_slice().expect("activations are row-major"),
        weight: weight.as_slice().expect("weights are row-major"),
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
    /// Shares of a thread: one that is held up leaves the rest of them to the others.
    const SHARES: usize = 8;
    let count = job.out.columns().div_ceil(PANEL);
    let work = PANEL * job.k * rows;
    let at_once = TASK.div_ceil(work).max(1);
    if count <= at_once {
        return (0..count).map(panel).fold(Status::default(), Status::plus);
    }
    let share = count.div_ceil(SHARES * rayon::current_num_threads());
    (0..count)
        .into_par_iter()
        .with_min_len(at_once)
        .with_max_len(share.max(at_once))
        .map(panel)
        .reduce(Status::default, Status::plus)
}
