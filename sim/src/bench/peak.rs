//! What the machine can do at best, measured: the limits that shares are shares of.

use crate::arith::requant::{QuantRule, ScaleOrder};
use crate::kernels::matmul_i8::{Sums, matmul_i8};
use crate::kernels::{pages, peak};
use crate::quant::Scale;
use crate::step::linear::Requantize;
use ndarray::Array2;
use serde::Serialize;
use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Peaks of all threads of the pool together.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Peaks {
    /// INT8 multiplications and additions, 10^9 a second; `None` without an instruction for them.
    pub int8_gops: Option<f64>,
    /// The same through the product of 512 × 768 by 768 × 3072 codes, as in_proj runs it: with packing
    /// and requantization. The median of 200.
    pub int8_product_gops: f64,
    /// The fastest of them.
    pub int8_product_best_gops: f64,
    /// FP32 multiplications and additions, 10^9 a second.
    pub fp32_gflops: f64,
    /// Bytes read from memory, 10^9 a second.
    pub read_gbs: f64,
}

/// Measures them with the instruction set in use, for about half a second. In arithmetic each thread counts its
/// fastest of many short stretches, so other work on the machine disturbs little; memory is read by all at once.
pub fn measure() -> Peaks {
    /// A stretch of arithmetic: well below a time slice.
    const STRETCH: Duration = Duration::from_micros(500);
    const STRETCHES: usize = 100;
    /// Read by each thread; more than any cache holds for it.
    const BYTES: usize = 96 << 20;
    const PASSES: usize = 6;

    let arithmetic = |burst: fn() -> u64| -> f64 {
        let of_thread = |_: rayon::BroadcastContext| {
            (0..STRETCHES).fold(0.0f64, |best, _| {
                let (begun, mut operations) = (Instant::now(), 0);
                while begun.elapsed() < STRETCH {
                    operations += burst();
                }
                best.max(operations as f64 / begun.elapsed().as_secs_f64())
            })
        };
        rayon::broadcast(of_thread).iter().sum::<f64>() / 1e9
    };
    // Threads share one memory: all begin together, and the last one ends the pass.
    let together = Barrier::new(rayon::current_num_threads());
    let reading = |_: rayon::BroadcastContext| {
        let buffer = vec![1u64; BYTES / 8];
        pages::enlarge(&buffer);
        (0..PASSES).fold(0.0f64, |best, _| {
            together.wait();
            let begun = Instant::now();
            std::hint::black_box(peak::read(&buffer));
            together.wait();
            best.max(BYTES as f64 / begun.elapsed().as_secs_f64())
        })
    };
    let (int8_product_gops, int8_product_best_gops) = rayon::scope(|_| product());
    Peaks {
        int8_product_gops,
        int8_product_best_gops,
        int8_gops: peak::has_int8().then(|| arithmetic(peak::int8)),
        fp32_gflops: arithmetic(peak::fp32),
        read_gbs: rayon::broadcast(reading).iter().sum::<f64>() / 1e9,
    }
}

/// 10^9 operations a second of an INT8 product of 512 tokens: the median and the fastest of many.
fn product() -> (f64, f64) {
    const REPEATS: usize = 200;
    let (l, k, n) = (512, 768, 3072);
    // As good as random.
    let code = |i: usize, seed: u32| {
        let word = (i as u32 ^ seed).wrapping_mul(0x9E37_79B9);
        ((word ^ word >> 15).wrapping_mul(0x85EB_CA6B) >> 24) as i8
    };
    let codes = |rows, seed| Array2::from_shape_fn((rows, k), |(r, c)| code(r * k + c, seed));
    let (x, weight) = (codes(l, 0), codes(n, 0x5555_5555));
    // The output's scale as calibration sets it: the largest sum is the largest code.
    let mut sums = Array2::zeros((l, n));
    let _ = matmul_i8(&x, weight.view(), &mut sums, &Sums);
    let largest = sums.iter().map(|sum: &i32| sum.unsigned_abs()).max();
    let scale = |value| Scale::new(value).expect("a positive number");
    let (s_in, s_weight) = (scale(0.01), scale(0.01));
    let s_out = Scale::from_absmax(1e-4 * largest.map_or(1.0, |l| l.max(1) as f32), 0.0)
        .expect("a positive number");
    let epilogue = Requantize {
        a: s_in.ratio(s_out),
        b: s_weight,
        order: ScaleOrder::ChannelMajor,
        rule: QuantRule::NEAREST_EVEN,
    };
    let mut out = Array2::zeros((l, n));
    let mut times = [Duration::ZERO; REPEATS];
    for time in &mut times {
        let begun = Instant::now();
        let _ = matmul_i8(&x, weight.view(), &mut out, &epilogue);
        *time = begun.elapsed();
    }
    times.sort_unstable();
    let speed = |time: Duration| 2.0 * (l * k * n) as f64 / time.as_secs_f64() / 1e9;
    (speed(times[REPEATS / 2]), speed(times[0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_peak_is_a_number_above_zero() {
        let peaks = measure();
        assert!(peaks.int8_gops.is_none_or(|p| p > 0.0 && p.is_finite()));
        let (median, best) = (peaks.int8_product_gops, peaks.int8_product_best_gops);
        assert!(median > 0.0 && median <= best && best.is_finite());
        assert!(peaks.fp32_gflops > 0.0 && peaks.fp32_gflops.is_finite());
        assert!(peaks.read_gbs > 0.0 && peaks.read_gbs.is_finite());
    }
}
