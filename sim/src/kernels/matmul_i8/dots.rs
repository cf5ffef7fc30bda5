//! One dot product after another, straight from the weight's rows.

use super::{Epilogue, Job, PANEL, panels};
use crate::arith::saturate::Status;
use crate::isa::{Isa, Kernel, dispatch};

/// Multiplies every row of x with every row of the weight.
pub(super) fn run<E: Epilogue>(job: &Job<E>) -> Status {
    #[cfg(target_arch = "x86_64")]
    if Isa::current() >= Isa::Avx512Vnni {
        return super::vnni::dots(job);
    }
    panels(job, job.out.rows(), |p| dispatch(Panel { job, p }))
}

struct Panel<'a, 'j, E: Epilogue> {
    job: &'a Job<'j, E>,
    p: usize,
}

impl<E: Epilogue> Kernel for Panel<'_, '_, E> {
    type Output = Status;

    #[inline(always)]
    fn run(self) -> Status {
        let Self { job, p } = self;
        job.with_rows(job.columns(p), |weight| {
            panel(job, p, |x, acc| {
                for (acc, w) in acc.iter_mut().zip(weight.chunks_exact(x.len())) {
                    *acc = 0;
                    for (a, b) in x.iter().zip(w) {
                        *acc += i32::from(*a) * i32::from(*b);
                    }
                }
            })
        })
    }
}

/// All outputs of a panel; `dots(x, acc)` puts the exact dot products of a row of x and the panel's
/// rows of the weight into `acc`.
#[inline(always)]
pub(super) fn panel<E: Epilogue>(
    job: &Job<E>,
    p: usize,
    dots: impl Fn(&[i8], &mut [i32]),
) -> Status {
    let columns = job.columns(p);
    let (first, width) = (columns.start, columns.len());
    let mut status = Status::default();
    for (row, x) in job.x.chunks_exact(job.k).enumerate() {
        let mut acc = [0i32; PANEL];
        dots(x, &mut acc[..width]);
        // SAFETY: panels have different columns, and this is the only segment of this one alive.
        let out = unsafe { job.out.segment(row, first, width) };
        status += (job.epilogue).finish(columns.clone(), &acc[..width], out);
    }
    status
}
