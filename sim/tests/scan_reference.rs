//! The block scan against a second implementation: one channel at a time, scalar, written straight
//! from `docs/arithmetic.md`, with no lanes, tiles or threads. Every length at which
//! the plan of threads and items or the number of chunks changes, and every kind of N.

use ndarray::{Array2, Axis, s};
use scalescope_sim::arith::binary16::to_f16;
use scalescope_sim::arith::sfu::{ex2, flush, log1p_fast, rcp};
use scalescope_sim::profile::{CUDA_FAST, EXACT};
use scalescope_sim::quant::{QTensor, QVector, Scale};
use scalescope_sim::step::scan::{
    ScanInputs, ScanWeight, Source, selective_scan, selective_scan_f16,
};

fn mul(a: f32, b: f32) -> f32 {
    flush(flush(a) * flush(b))
}

fn add(a: f32, b: f32) -> f32 {
    flush(flush(a) + flush(b))
}

fn fma(a: f32, b: f32, c: f32) -> f32 {
    flush(flush(a).mul_add(flush(b), flush(c)))
}

const LOG2_E: f32 = f32::from_bits(0x3FB8_AA3B);

fn softplus(x: f32) -> f32 {
    match x > 20.0 {
        true => x,
        false => log1p_fast(ex2(mul(x, LOG2_E))),
    }
}

/// A stretch of tokens: x → a·x + b.
type Pair = (f32, f32);

/// First `p`, then `q`.
fn op(p: Pair, q: Pair) -> Pair {
    (mul(q.0, p.0), fma(q.0, p.1, q.1))
}

/// The states of one channel and state index, by the block scan.
fn block_scan(items: &[Pair]) -> Vec<f32> {
    let (threads, each) = match items.len() {
        0..=128 => (32, 4),
        129..=256 => (32, 8),
        257..=512 => (32, 16),
        513..=1024 => (64, 16),
        _ => (128, 16),
    };
    let mut running: Pair = (1.0, 0.0);
    let mut states = Vec::new();
    for chunk in items.chunks(threads * each) {
        let mut padded = chunk.to_vec();
        padded.resize(threads * each, (1.0, 0.0));
        let own = |thread: usize| &padded[thread * each..(thread + 1) * each];
        let fold = |pairs: &[Pair]| pairs[1..].iter().fold(pairs[0], |p, q| op(p, *q));
        let folds: Vec<Pair> = (0..threads).map(|thread| fold(own(thread))).collect();
        // Inclusive Kogge-Stone scan of each warp: lane i takes lane i − offset in, all at once.
        let mut inclusive = folds;
        for offset in [1, 2, 4, 8, 16] {
            let before = inclusive.clone();
            for thread in 0..threads {
                if thread % 32 >= offset {
                    inclusive[thread] = op(before[thread - offset], before[thread]);
                }
            }
        }
        let warp_end = |warp: usize| inclusive[32 * warp + 31];
        let warps_before = |warp: usize| (1..warp).fold(warp_end(0), |p, w| op(p, warp_end(w)));
        for thread in 0..threads {
            let (warp, lane) = (thread / 32, thread % 32);
            let exclusive = match (warp, lane) {
                (0, 0) => None,
                (0, _) => Some(inclusive[thread - 1]),
                (_, 0) => Some(warps_before(warp)),
                _ => Some(op(warps_before(warp), inclusive[thread - 1])),
            };
            let prefix = exclusive.map_or(running, |e| op(running, e));
            let mut x = prefix.1;
            for (i, (a, b)) in own(thread).iter().enumerate() {
                x = fma(*a, x, *b);
                if thread * each + i < chunk.len() {
                    states.push(x);
                }
            }
        }
        running = op(running, warps_before(threads / 32));
    }
    // What the kernel hands on is the last running pair, not the last replayed state.
    states.push(running.1);
    states
}

struct Case {
    u: Array2<i8>,
    dt: Array2<i8>,
    b: Array2<i8>,
    c: Array2<i8>,
    z: Array2<i8>,
    a_log: QTensor,
    d: QVector,
    dt_bias: QVector,
}

const S_U: f32 = 0.021;
const S_DT: f32 = 0.043;
const S_B: f32 = 0.017;
const S_C: f32 = 0.019;
const S_Z: f32 = 0.035;

fn scale(v: f32) -> Scale {
    Scale::new(v).unwrap()
}

impl Case {
    fn new(l: usize, e: usize, n: usize) -> Self {
        let mut state = (l * 1_000_003 + e * 1009 + n) as u64;
        let mut next = move || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8 as i8
        };
        let mut codes = |rows, columns| Array2::from_shape_simple_fn((rows, columns), &mut next);
        Self {
            u: codes(l, e),
            dt: codes(l, e).mapv(|q| q / 2 - 50),
            b: codes(l, n),
            c: codes(l, n),
            z: codes(l, e),
            a_log: QTensor {
                codes: codes(e, n),
                scale: scale(0.0218),
            },
            d: QVector {
                codes: codes(1, e).into_raw_vec_and_offset().0,
                scale: scale(0.0093),
            },
            dt_bias: QVector {
                codes: codes(1, e).into_raw_vec_and_offset().0,
                scale: scale(0.041),
            },
        }
    }

    /// The tokens `from..to` as `exact` scans them, from a state.
    fn exact(&self, from: usize, to: usize, state: Option<&Array2<f32>>) -> [Array2<f32>; 2] {
        let cut = |codes: &Array2<i8>| codes.slice(s![from..to, ..]).to_owned();
        let [u, dt, b, c, z] = [&self.u, &self.dt, &self.b, &self.c, &self.z].map(cut);
        let int8 = |codes, s| Source::Int8 {
            codes,
            scale: scale(s),
        };
        let inputs = ScanInputs {
            u: int8(&u, S_U),
            dt: int8(&dt, S_DT),
            b: int8(&b, S_B),
            c: int8(&c, S_C),
            z: Some(int8(&z, S_Z)),
            state: state.map(Source::Real),
        };
        let weight = ScanWeight::int8(&self.a_log, &self.d, &self.dt_bias);
        let rules = &EXACT.prefill.scan;
        let out = selective_scan(rules, &weight, &inputs);
        let (halves, last) = selective_scan_f16(rules, &weight, &inputs);
        assert_eq!(halves, out.y.mapv(to_f16));
        assert_eq!(last, out.state);
        [out.y, out.state]
    }

    fn simulator(&self, gate: bool) -> (Array2<f32>, Vec<f32>) {
        let int8 = |codes, s| Source::Int8 {
            codes,
            scale: scale(s),
        };
        let weight = ScanWeight::int8(&self.a_log, &self.d, &self.dt_bias);
        let inputs = ScanInputs {
            u: int8(&self.u, S_U),
            dt: int8(&self.dt, S_DT),
            b: int8(&self.b, S_B),
            c: int8(&self.c, S_C),
            z: gate.then_some(int8(&self.z, S_Z)),
            state: None,
        };
        let out = selective_scan(&CUDA_FAST.prefill.scan, &weight, &inputs);
        (out.y, out.state.into_raw_vec_and_offset().0)
    }

    fn reference(&self, gate: bool) -> (Array2<f32>, Vec<f32>) {
        let (l, e) = self.u.dim();
        let n = self.b.ncols();
        let mut y = Array2::zeros((l, e));
        let mut last = vec![0.0; n * e];
        for channel in 0..e {
            let bias = mul(0.041, f32::from(self.dt_bias.codes[channel]));
            let skip = mul(0.0093, f32::from(self.d.codes[channel]));
            let u: Vec<f32> = self
                .u
                .column(channel)
                .iter()
                .map(|q| mul(S_U, f32::from(*q)))
                .collect();
            let delta: Vec<f32> = (self.dt.column(channel).iter())
                .map(|q| softplus(fma(S_DT, f32::from(*q), bias)))
                .collect();
            let mut out: Vec<f32> = u.iter().map(|u| mul(skip, *u)).collect();
            for state in 0..n {
                let alpha = ex2(mul(
                    mul(0.0218, f32::from(self.a_log.codes[(channel, state)])),
                    LOG2_E,
                ));
                let items: Vec<Pair> = (0..l)
                    .map(|t| {
                        let a = ex2(mul(mul(alpha, delta[t]), -LOG2_E));
                        let b = mul(mul(S_B, f32::from(self.b[(t, state)])), mul(delta[t], u[t]));
                        (a, b)
                    })
                    .collect();
                let states = block_scan(&items);
                for t in 0..l {
                    let c = mul(S_C, f32::from(self.c[(t, state)]));
                    out[t] = fma(states[t], c, out[t]);
                }
                last[channel * n + state] = states[l];
            }
            for t in 0..l {
                if gate {
                    let z = mul(S_Z, f32::from(self.z[(t, channel)]));
                    out[t] = mul(mul(out[t], z), rcp(add(1.0, ex2(mul(z, -LOG2_E)))));
                }
                y[(t, channel)] = out[t];
            }
        }
        (y, last)
    }

    fn check(&self) {
        for gate in [true, false] {
            let (got, want) = (self.simulator(gate), self.reference(gate));
            let bits = |y: &Array2<f32>| y.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            let (l, e) = self.u.dim();
            let words = format!("L {l}, E {e}, N {}, gate {gate}", self.b.ncols());
            assert!(bits(&got.0) == bits(&want.0), "y differs: {words}");
            let state = |s: &[f32]| s.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert!(state(&got.1) == state(&want.1), "state differs: {words}");
        }
    }
}

#[test]
fn every_length_at_which_the_plan_changes() {
    for l in [
        1, 2, 3, 5, 31, 127, 128, 129, 255, 256, 257, 511, 512, 513, 1023, 1024, 1025, 2047, 2048,
        2049, 4097,
    ] {
        Case::new(l, 3, 2).check();
    }
}

/// Inside, long sequences run in stretches of 512 tokens; where they are cut changes nothing.
#[test]
fn a_sequence_scanned_token_after_token_may_be_cut_anywhere() {
    let case = Case::new(1500, 18, 3);
    let [whole, last] = case.exact(0, 1500, None);
    for at in [1, 64, 511, 512, 513, 1499] {
        let [first, state] = case.exact(0, at, None);
        let [second, end] = case.exact(at, 1500, Some(&state));
        assert_eq!(first, whole.slice(s![..at, ..]), "{at}");
        assert_eq!(second, whole.slice(s![at.., ..]), "{at}");
        assert_eq!(end, last, "{at}");
    }
}

#[test]
fn every_kind_of_state_size_and_channel_count() {
    for n in [1, 3, 16, 17, 64, 256] {
        Case::new(150, 5, n).check();
    }
    for e in [1, 15, 16, 17, 33] {
        Case::new(131, e, 3).check();
    }
}

/// The length decides the plan, so a prefix is not the scan of the prefix, but the same sequence at
/// another place of a batch is: nothing crosses channels.
#[test]
fn channels_are_independent() {
    let case = Case::new(700, 20, 3);
    let (whole, _) = case.simulator(true);
    let cut = |a: &Array2<i8>| a.select(Axis(1), &[17]);
    let one = Case {
        u: cut(&case.u),
        dt: cut(&case.dt),
        z: cut(&case.z),
        b: case.b.clone(),
        c: case.c.clone(),
        a_log: QTensor {
            codes: case.a_log.codes.select(Axis(0), &[17]),
            scale: case.a_log.scale,
        },
        d: QVector {
            codes: vec![case.d.codes[17]],
            scale: case.d.scale,
        },
        dt_bias: QVector {
            codes: vec![case.dt_bias.codes[17]],
            scale: case.dt_bias.scale,
        },
    };
    assert_eq!(one.simulator(true).0.column(0), whole.column(17));
}
