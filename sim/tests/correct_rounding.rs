//! The functions of one f32 over every f32.
//!
//! Normal runs take a dense sample and the edges. The exhaustive runs are opt-in:
//! `cargo test --release -p scalescope-sim --test all correct_rounding -- --ignored --nocapture`.
//! Their results are recorded in docs/exhaustive.md.

use crate::common::{npz, oracle};
use rayon::prelude::*;
use scalescope_sim::arith::{elementary, sfu};
use scalescope_sim::isa::{Isa, Kernel, dispatch};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// A function under test, as a type, so that every instruction set gets its own compiled loop.
trait Function: Sync {
    const NAME: &'static str;
    /// The implementation of the simulator.
    fn ours(x: f32) -> f32;
    /// What it must return; `None` if the oracle cannot tell.
    fn expected(&self, x: f32) -> Option<f32>;
    /// Another implementation, for information.
    fn peer(_x: f32) -> Option<f32> {
        None
    }
}

struct Exp;
impl Function for Exp {
    const NAME: &'static str = "exp";
    #[inline(always)]
    fn ours(x: f32) -> f32 {
        elementary::exp(x)
    }
    fn expected(&self, x: f32) -> Option<f32> {
        oracle::exp(x).ok()
    }
    fn peer(x: f32) -> Option<f32> {
        Some(pxfm::f_expf(x))
    }
}

struct Log1p;
impl Function for Log1p {
    const NAME: &'static str = "log1p";
    #[inline(always)]
    fn ours(x: f32) -> f32 {
        elementary::log1p(x)
    }
    fn expected(&self, x: f32) -> Option<f32> {
        oracle::log1p(x).ok()
    }
    fn peer(x: f32) -> Option<f32> {
        Some(pxfm::f_log1pf(x))
    }
}

/// 2^i for |i| ≤ 1000.
fn power_of_two(i: i32) -> f64 {
    f64::from_bits(((i + 1023) as u64) << 52)
}

/// The definition of ex2 in real numbers, with t(m) = correct rounding + measured correction.
struct Ex2(Vec<f64>);
impl Ex2 {
    fn new() -> Self {
        let corrections = npz::corrections("ex2");
        let t = |m: u32| {
            f64::from(oracle::ex2_mantissa(m).unwrap()) + f64::from(corrections[m as usize])
        };
        Self((0..1 << 23).into_par_iter().map(t).collect())
    }
}
impl Function for Ex2 {
    const NAME: &'static str = "ex2";
    #[inline(always)]
    fn ours(x: f32) -> f32 {
        sfu::ex2(x)
    }
    fn expected(&self, x: f32) -> Option<f32> {
        const STEPS: f64 = 8_388_608.0;
        if x.is_nan() {
            return Some(f32::from_bits(0x7FFF_FFFF));
        }
        let x = if x.is_subnormal() { 0.0 } else { x };
        // Beyond ±300 nothing changes any more, and the integers below stay small.
        let size = (f64::from(x.abs().min(300.0)) * STEPS).floor();
        let fixed = if x >= 0.0 {
            size
        } else if size % STEPS == 0.0 {
            -size
        } else {
            -size - 1.0
        };
        let i = (fixed / STEPS).floor();
        let t = self.0[(fixed - i * STEPS) as usize];
        let value = power_of_two(i as i32) * (1.0 + t / STEPS);
        Some(if i >= 128.0 {
            f32::INFINITY
        } else if value < f64::from(f32::MIN_POSITIVE) {
            0.0
        } else {
            value as f32
        })
    }
}

/// The definition of rcp in real numbers, likewise. Holds bits(1/(1 + m/2^23)) as f32 values.
struct Rcp(Vec<f32>);
impl Rcp {
    fn new() -> Self {
        let corrections = npz::corrections("rcp");
        let value = |m: u32| {
            let bits = oracle::rcp_mantissa(m).wrapping_add_signed(corrections[m as usize].into());
            f32::from_bits(bits)
        };
        Self((0..1 << 23).into_par_iter().map(value).collect())
    }
}
impl Function for Rcp {
    const NAME: &'static str = "rcp";
    #[inline(always)]
    fn ours(x: f32) -> f32 {
        sfu::rcp(x)
    }
    fn expected(&self, x: f32) -> Option<f32> {
        if x.is_nan() {
            return Some(f32::from_bits(0x7FFF_FFFF));
        }
        let size = if x == 0.0 || x.is_subnormal() {
            f32::INFINITY
        } else if x.is_infinite() {
            0.0
        } else {
            let e = (x.abs().to_bits() >> 23) as i32 - 127;
            let significand = f64::from(x.abs()) * power_of_two(-e);
            let value = f64::from(self.0[((significand - 1.0) * 8_388_608.0) as usize]);
            let value = value * power_of_two(-e);
            if value < f64::from(f32::MIN_POSITIVE) {
                0.0
            } else {
                value as f32
            }
        };
        Some(size.copysign(x))
    }
}

/// `ours` over an array.
struct Evaluate<'a, T> {
    _function: &'a T,
    inputs: &'a [f32],
    outputs: &'a mut [f32],
}

impl<T: Function> Kernel for Evaluate<'_, T> {
    type Output = ();
    #[inline(always)]
    fn run(self) {
        for (output, input) in self.outputs.iter_mut().zip(self.inputs) {
            *output = T::ours(*input);
        }
    }
}

/// Disagreements, the first few of them shown.
#[derive(Default)]
struct Mismatches(AtomicU64);

impl Mismatches {
    fn record(&self, what: &str, x: f32, got: f32, want: f32) {
        if self.0.fetch_add(1, Ordering::Relaxed) < 40 {
            let bits = [x, got, want].map(f32::to_bits);
            println!(
                "{what}: x {:#010X} got {:#010X} want {:#010X}",
                bits[0], bits[1], bits[2]
            );
        }
    }
    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// The limit on the instruction set belongs to the process: one comparison at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Compares `total` inputs, the bit patterns `input(0)`, `input(1)`, …, in every instruction set.
fn compare<T: Function>(function: &T, total: u64, input: impl Fn(u64) -> u32 + Sync) {
    const BLOCK: usize = 1 << 22;
    const PART: usize = 1 << 12;
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(|e| e.into_inner());
    let start = Instant::now();
    let (ours, peer, undecided) = <(Mismatches, Mismatches, Mismatches)>::default();
    let (mut inputs, mut expected) = (vec![0.0f32; BLOCK], vec![0.0f32; BLOCK]);
    let mut done = 0;
    while done < total {
        let n = BLOCK.min((total - done) as usize);
        let blocks = (inputs[..n].par_iter_mut()).zip(&mut expected[..n]);
        blocks.enumerate().for_each(|(i, (x, want))| {
            *x = f32::from_bits(input(done + i as u64));
            *want = function.expected(*x).unwrap_or_else(|| {
                undecided.record("undecided", *x, T::ours(*x), f32::NAN);
                T::ours(*x)
            });
            if let Some(got) = T::peer(*x)
                && got.to_bits() != want.to_bits()
                && !(got.is_nan() && want.is_nan())
            {
                peer.record("peer", *x, got, *want);
            }
        });
        for isa in Isa::available() {
            isa.limit();
            let parts = inputs[..n].par_chunks(PART).zip(expected.par_chunks(PART));
            parts.for_each(|(inputs, expected)| {
                let mut outputs = [0.0f32; PART];
                dispatch(Evaluate {
                    _function: function,
                    inputs,
                    outputs: &mut outputs,
                });
                for ((x, want), got) in inputs.iter().zip(expected).zip(outputs) {
                    if got.to_bits() != want.to_bits() {
                        ours.record(&format!("{isa:?}"), *x, got, *want);
                    }
                }
            });
        }
        Isa::Avx512.limit();
        done += n as u64;
    }
    println!(
        "{}: {total} inputs in {:?}: {} mismatches, {} undecided, peer {} mismatches, {:.1} s",
        T::NAME,
        Isa::available(),
        ours.count(),
        undecided.count(),
        peer.count(),
        start.elapsed().as_secs_f64()
    );
    assert_eq!((ours.count(), undecided.count()), (0, 0));
}

/// Inputs of exp and of log1p whose results lie within 2^-50 (relative) of the midpoint of two f32:
/// all of them (`hardest_inputs`). Where an evaluation in f64 goes wrong, it does so here.
#[rustfmt::skip]
const HARD_EXP: [u32; 7] = [
    0x377E_FF81, 0x4001_B249, 0x4031_5B33, 0xB300_0000, 0xBAE0_E25C, 0xBBF0_EDF1, 0xC169_12CD,
];
#[rustfmt::skip]
const HARD_LOG1P: [u32; 35] = [
    0x3540_0003, 0x36DE_DACE, 0x3710_001B, 0x3770_004B, 0x37C6_E0E0, 0x3CF5_8230, 0x3DDB_FEC3,
    0x3EBE_9143, 0x3EFD_81AD, 0x4107_8FEB, 0x464D_572B, 0x4665_A5A6, 0x50DA_4BF6, 0x542D_FAC1,
    0x5518_5F82, 0x5588_E13B, 0x5D80_0341, 0x5EE8_984E, 0x5F64_C24A, 0x62B4_67BA, 0x64E2_7FA3,
    0x65D8_90D3, 0x66A8_C860, 0x66AB_BD63, 0x6914_CB96, 0x6D1F_23EB, 0x6F31_A8EC, 0x7405_DEE8,
    0x79E7_EC37, 0x7D98_B8F4, 0xB53F_FFFD, 0xB70F_FFE5, 0xB76F_FFB5, 0xB7C6_E012, 0xBB0E_C8C4,
];

/// Corners of every binade, the hard inputs, and what a domain or a format ends at.
fn edges() -> Vec<u32> {
    let mut bits = Vec::new();
    for field in 0..256u32 {
        for mantissa in [0, 1, 2, 0x40_0000, 0x7F_FFFE, 0x7F_FFFF] {
            bits.push(field << 23 | mantissa);
        }
    }
    let borders = [
        88.722_84, 89.0, 103.972_08, 104.0, 126.0, 127.0, 128.0, 149.0, 150.0, 300.0, 20.0,
        87.336_54,
    ];
    for border in borders {
        for distance in -3..=3 {
            bits.push(f32::to_bits(border).wrapping_add_signed(distance));
        }
    }
    bits.extend(HARD_EXP.iter().chain(&HARD_LOG1P));
    // Both signs of each.
    let negative: Vec<u32> = bits.iter().map(|b| b ^ 0x8000_0000).collect();
    bits.extend(negative);
    bits
}

/// Edges, then every 4099th bit pattern: a prime, so that the sample meets all mantissas and
/// exponents.
fn compare_sample<T: Function>(function: &T) {
    const STEP: u64 = 4099;
    let edges = edges();
    compare(function, edges.len() as u64, |i| edges[i as usize]);
    compare(function, (1 << 32) / STEP, |i| (i * STEP) as u32);
}

fn compare_all<T: Function>(function: &T) {
    compare(function, 1 << 32, |i| i as u32);
}

#[test]
fn exp_sampled() {
    compare_sample(&Exp);
}

#[test]
fn log1p_sampled() {
    compare_sample(&Log1p);
}

#[test]
fn ex2_sampled() {
    compare_sample(&Ex2::new());
}

#[test]
fn rcp_sampled() {
    compare_sample(&Rcp::new());
}

#[test]
#[ignore = "2^32 inputs, minutes: cargo test --release -p scalescope-sim --test all correct_rounding -- --ignored"]
fn exp_every_input() {
    compare_all(&Exp);
}

#[test]
#[ignore = "2^32 inputs, minutes: cargo test --release -p scalescope-sim --test all correct_rounding -- --ignored"]
fn log1p_every_input() {
    compare_all(&Log1p);
}

#[test]
#[ignore = "2^32 inputs, minutes: cargo test --release -p scalescope-sim --test all correct_rounding -- --ignored"]
fn ex2_every_input() {
    compare_all(&Ex2::new());
}

#[test]
#[ignore = "2^32 inputs, minutes: cargo test --release -p scalescope-sim --test all correct_rounding -- --ignored"]
fn rcp_every_input() {
    compare_all(&Rcp::new());
}

#[test]
#[ignore = "2^32 inputs, minutes: cargo test --release -p scalescope-sim --test all correct_rounding -- --ignored"]
fn hardest_inputs() {
    let search = |undecided: fn(f32) -> bool| -> Vec<u32> {
        let all = (0..=u32::MAX).into_par_iter();
        all.filter(|b| undecided(f32::from_bits(*b))).collect()
    };
    let exp = search(|x| oracle::exp_knowing(x, 50).is_err());
    let log1p = search(|x| oracle::log1p_knowing(x, 50).is_err());
    println!(
        "within 2^-50 of a midpoint: {} of exp, {} of log1p",
        exp.len(),
        log1p.len()
    );
    assert_eq!(exp, HARD_EXP);
    assert_eq!(log1p, HARD_LOG1P);
}
