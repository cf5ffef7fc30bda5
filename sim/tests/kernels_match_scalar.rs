//! Every kernel on every instruction set of this machine, from the best down to none, against plain
//! scalar code, bit for bit: sizes around every tile edge, slices that start anywhere, 1 to 8 threads.
//! One test, because the instruction set is limited for the whole process.

use half::f16;
use ndarray::Array2;
use scalescope_sim::arith::binary16::{from_f16, narrow, to_f16, widen};
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::arith::real::{Ieee, LANES, RealMath, RealRules};
use scalescope_sim::arith::requant::{QuantRule, Quotient, ScaleOrder};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::arith::saturate::Overflow;
use scalescope_sim::arith::sfu::{self, CudaFast, CudaSubnormal, Fast};
use scalescope_sim::checkpoint::synthetic::{self, Shape};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::isa::Isa;
use scalescope_sim::kernels::matmul_f32::RealWeight;
use scalescope_sim::kernels::matmul_i8::{Nibbles, Sums, matmul_i8};
use scalescope_sim::mode::MODES;
use scalescope_sim::model::Model;
use scalescope_sim::profile::{
    CUDA_FAST, EXACT, PROFILES, ScanFormula, ScanOrder, ScanRules, SumOrder, TORCH,
};
use scalescope_sim::quant::{Acc, QTensor, QVector, Scale, dequantize_slice};
use scalescope_sim::step::linear::Requantize;
use scalescope_sim::step::scan::{
    Outputs, ScanInputs, ScanWeight, Source, selective_scan, selective_scan_f16,
    selective_scan_quantize,
};
use scalescope_sim::trace::{Recorder, Selection};

/// Deterministic words (SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn codes(&mut self, rows: usize, columns: usize) -> Array2<i8> {
        Array2::from_shape_fn((rows, columns), |_| self.next() as i8)
    }
}

#[test]
fn every_kernel_on_every_instruction_set() {
    for isa in Isa::available() {
        isa.limit();
        assert_eq!(Isa::current(), *isa);
        for threads in threads(*isa) {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(int8_products);
            pool.install(int4_products);
            pool.install(real_products);
            pool.install(scans);
        }
        scans_by_code();
        slices();
        rotations();
        short_and_unaligned();
    }
    whole_models();
}

/// Every number from 1 to 8 on the best instruction set, where work is cut as it is in earnest; the ends
/// of that on the others.
fn threads(isa: Isa) -> Vec<usize> {
    match Isa::available().last() == Some(&isa) {
        true => (1..=8).collect(),
        false => vec![1, 2, 8],
    }
}

fn int8_products() {
    let mut random = Random(1);
    for l in [1, 3, 4, 7, 8, 9, 15, 16, 17, 32, 33, 513] {
        // Rows run in slabs of 512.
        let (widths, depths): (&[usize], &[usize]) = match l {
            513 => (&[33], &[5, 65]),
            _ => (
                &[1, 15, 16, 17, 31, 32, 33, 48, 80],
                &[1, 2, 3, 4, 5, 48, 63, 64, 65, 130, 257],
            ),
        };
        for (&n, &k) in (widths.iter()).flat_map(|n| depths.iter().map(move |k| (n, k))) {
            let mut x = random.codes(l, k);
            let mut weight = random.codes(n, k);
            if k == 257 {
                // The largest magnitude a sum can have.
                x.fill(-128);
                weight.fill(-128);
            }
            let want = Array2::from_shape_fn((l, n), |(r, j)| -> i32 {
                (x.row(r).iter().zip(weight.row(j)))
                    .map(|(a, b)| i32::from(*a) * i32::from(*b))
                    .sum()
            });
            let mut got = Array2::zeros((l, n));
            let _ = matmul_i8(&x, weight.view(), &mut got, &Sums);
            assert_eq!(got, want, "{:?} {l} {n} {k}", Isa::current());
            requantized(&x, &weight, &want);
        }
    }
}

fn int4_products() {
    let mut random = Random(3);
    for l in [1, 2, 3, 4, 17, 33] {
        for (n, k) in [(1, 128), (31, 256), (33, 128), (48, 640), (80, 384)] {
            let x = random.codes(l, k);
            let bytes = random.codes(n, k / 2).mapv(|byte| byte as u8);
            // Fewer tables than groups.
            let tables: Vec<[i8; 16]> = (0..7)
                .map(|_| std::array::from_fn(|_| random.next() as i8))
                .collect();
            let table_of: Vec<u16> = (0..n * k / 128)
                .map(|_| (random.next() % 7) as u16)
                .collect();
            let weight = Array2::from_shape_fn((n, k), |(j, i)| {
                let byte = bytes[(j, i / 128 * 64 + i % 64)];
                let nibble = if i % 128 < 64 { byte & 15 } else { byte >> 4 };
                let table = table_of[j * (k / 128) + i / 128];
                tables[usize::from(table)][usize::from(nibble)]
            });
            let nibbles = Nibbles {
                bytes: bytes.as_slice().unwrap(),
                tables: &tables,
                table_of: &table_of,
                groups: k / 128,
            };
            let mut expanded = vec![0; n * k];
            nibbles.expand(0..n, &mut expanded);
            assert_eq!(expanded, weight.as_slice().unwrap());
            let want = Array2::from_shape_fn((l, n), |(r, j)| -> i32 {
                (x.row(r).iter().zip(weight.row(j)))
                    .map(|(a, b)| i32::from(*a) * i32::from(*b))
                    .sum()
            });
            let mut got = Array2::zeros((l, n));
            let _ = matmul_i8(&x, nibbles, &mut got, &Sums);
            assert_eq!(got, want, "{:?} {l} {n} {k}", Isa::current());
        }
    }
}

fn requantized(x: &Array2<i8>, weight: &Array2<i8>, sums: &Array2<i32>) {
    let a = Scale::new(0.01).unwrap().ratio(Scale::new(0.37).unwrap());
    let b = Scale::new(0.013).unwrap();
    let rule = QuantRule::NEAREST_EVEN;
    for order in ScaleOrder::ALL {
        let mut got = Array2::zeros(sums.dim());
        let status = matmul_i8(
            x,
            weight.view(),
            &mut got,
            &Requantize { a, b, order, rule },
        );
        let (mut saturated, mut peak) = (0, 0.0f32);
        for (sum, got) in sums.iter().zip(&got) {
            let integer = order.apply(a, b, Acc(*sum)).round_ties_even();
            saturated += u64::from(integer.abs() > 128.0 || integer == 128.0);
            peak = peak.max(integer.abs());
            assert_eq!(*got, integer.clamp(-128.0, 127.0) as i8);
        }
        assert_eq!(status.values, sums.len() as u64);
        assert_eq!((status.saturated, status.peak), (saturated, peak));
    }
}

fn real_products() {
    let mut random = Random(2);
    let mut real = || (random.next() >> 40) as f32 / (1u32 << 24) as f32 - 0.5;
    for (l, n, k) in [
        (1, 1, 1),
        (1, 33, 31),
        (1, 15, 32),
        (1, 16, 33),
        (1, 31, 64),
        (1, 32, 96),
        (1, 70, 65),
        (7, 32, 33),
        (8, 31, 255),
        (9, 70, 257),
        (16, 40, 530),
        (521, 33, 9),
    ] {
        let x = Array2::from_shape_fn((l, k), |_| real());
        let weight = Array2::from_shape_fn((n, k), |_| f16::from_f32(real()));
        let codes = Array2::from_shape_fn((n, k), |_| (real() * 255.0) as i8);
        let product = |w: &dyn Fn(usize, usize) -> f32| {
            Array2::from_shape_fn((l, n), |(r, j)| {
                (0..k).fold(0.0f32, |sum, i| x[(r, i)].mul_add(w(j, i), sum))
            })
        };
        let same = |a: Array2<f32>, b: Array2<f32>| {
            assert!(
                a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{:?} {l} {n} {k}",
                Isa::current()
            );
        };
        same(
            RealWeight::F16(weight.view()).multiply(&x),
            product(&|j, i| weight[(j, i)].to_f32_const()),
        );
        same(
            RealWeight::Codes(codes.view(), &[Scale::new(0.37).unwrap()]).multiply(&x),
            product(&|j, i| 0.37 * f32::from(codes[(j, i)])),
        );
    }
}

/// Scans over tiles of channels that are full and not, with states that turn in registers and not: what
/// every instruction set gives is what the scalar code gave first, and the quantizer inside a scan is
/// the one outside.
fn scans() {
    let scale = |v: f32| Scale::new(v).unwrap();
    for (e, n) in [(1, 16), (16, 16), (40, 16), (33, 5), (48, 32), (20, 48)] {
        for l in [1, 2, 63, 64, 65, 512, 514] {
            let mut random = Random((e * 1000 + n * 10 + l) as u64);
            let vector = |codes: Array2<i8>, s| QVector {
                codes: codes.into_raw_vec_and_offset().0,
                scale: scale(s),
            };
            let a_log = QTensor {
                codes: random.codes(e, n).mapv(|q| q / 2),
                scale: scale(0.021),
            };
            let d = vector(random.codes(1, e), 0.0093);
            let weight = ScanWeight::int8(&a_log, &d, &vector(random.codes(1, e), 0.041));
            let [u, dt, z] = std::array::from_fn(|_| random.codes(l, e));
            let [b, c] = std::array::from_fn(|_| random.codes(l, n));
            let state = random.codes(e, n);
            let int8 = |codes, s| Source::Int8 {
                codes,
                scale: scale(s),
            };
            let inputs = ScanInputs {
                u: int8(&u, 0.02),
                dt: int8(&dt, 0.013),
                b: int8(&b, 0.011),
                c: int8(&c, 0.017),
                z: Some(int8(&z, 0.03)),
                state: Some(int8(&state, 0.05)),
            };
            for rules in [
                EXACT.prefill,
                TORCH.prefill,
                CUDA_FAST.prefill,
                CUDA_FAST.decode,
            ] {
                let rules = rules.scan;
                if rules.formula == ScanFormula::Grouped && l > 65 {
                    continue;
                }
                let name = format!("{:?} {rules:?} {e} {n} {l}", Isa::current());
                let (y, last) = selective_scan_f16(&rules, &weight, &inputs);
                let isa = Isa::current();
                Isa::Baseline.limit();
                let want = selective_scan_f16(&rules, &weight, &inputs);
                isa.limit();
                assert_eq!(y, want.0, "{name}");
                let bits = |v: &Array2<f32>| v.mapv(f32::to_bits);
                assert_eq!(bits(&last), bits(&want.1), "{name}");
                let mut again = Array2::zeros((l, e));
                let to = Outputs::f16(&mut again);
                let inside = selective_scan_quantize(&rules, &weight, &inputs, to, scale(0.06));
                match inside {
                    Some((q, status)) => {
                        let (codes, counted) = QTensor::quantize(&last, scale(0.06), rules.state);
                        assert_eq!(q, codes, "{name}");
                        assert_eq!(status, counted, "{name}");
                        assert_eq!(again, y, "{name}");
                    }
                    None => assert!(l > 512, "{name}"),
                }
            }
        }
    }
}

/// Scans that look up what depends on codes, against scalar code that computes it for every token: there dt and z
/// are real values, which powers of two as scales keep the same. Every code, one code, and some; lengths around
/// the borders of chunks and plans.
fn scans_by_code() {
    let isa = Isa::current();
    let scale = |v: f32| Scale::new(v).unwrap();
    let (s_dt, s_z) = (2f32.powi(-5), 2f32.powi(-6));
    let mut all_rules = Vec::new();
    for real in RealRules::ALL {
        let exact = ScanRules {
            real,
            ..EXACT.prefill.scan
        };
        all_rules.push(exact);
        all_rules.push(ScanRules {
            order: ScanOrder::WarpBlock,
            ..exact
        });
        all_rules.extend(SumOrder::ALL.map(|sum| ScanRules {
            formula: ScanFormula::Separate,
            sum,
            ..exact
        }));
    }
    for (e, n, lengths) in [
        (
            20,
            16,
            &[15, 16, 17, 63, 64, 65, 128, 129, 257, 511, 512, 513][..],
        ),
        (16, 16, &[256, 1030]),
        (17, 5, &[16, 130, 520]),
        (16, 32, &[64, 260]),
    ] {
        for &l in lengths {
            let mut random = Random((e * 1000 + n * 10 + l) as u64);
            let vector = |codes: Array2<i8>, s| QVector {
                codes: codes.into_raw_vec_and_offset().0,
                scale: scale(s),
            };
            let a_log = QTensor {
                codes: random.codes(e, n).mapv(|q| q / 2),
                scale: scale(0.021),
            };
            let d = vector(random.codes(1, e), 0.0093);
            let weight = ScanWeight::int8(&a_log, &d, &vector(random.codes(1, e), 0.041));
            let u = random.codes(l, e);
            let [b, c] = std::array::from_fn(|_| random.codes(l, n));
            fn int8(codes: &Array2<i8>, s: f32) -> Source<'_> {
                let scale = Scale::new(s).unwrap();
                Source::Int8 { codes, scale }
            }
            // Of token and channel: every code in turn, a code of the channel's own, and a few.
            let patterns: [fn(usize, usize) -> i8; 3] = [
                |t, c| (37 * t + 11 * c) as i8,
                |_, c| (91 * c + 5) as i8,
                |t, c| ((t * t + c) % 23 + 3 * c) as i8,
            ];
            for pattern in patterns {
                let dt = Array2::from_shape_fn((l, e), |(t, c)| pattern(t, c));
                let z = Array2::from_shape_fn((l, e), |(t, c)| pattern(3 * t + 1, c));
                let real = |codes: &Array2<i8>, s: f32| codes.mapv(|q| s * f32::from(q));
                let (real_dt, real_z) = (real(&dt, s_dt), real(&z, s_z));
                let coded = ScanInputs {
                    u: int8(&u, 0.02),
                    dt: int8(&dt, s_dt),
                    b: int8(&b, 0.011),
                    c: int8(&c, 0.017),
                    z: Some(int8(&z, s_z)),
                    state: None,
                };
                let reals = ScanInputs {
                    dt: Source::Real(&real_dt),
                    z: Some(Source::Real(&real_z)),
                    ..coded
                };
                for rules in &all_rules {
                    let got = selective_scan(rules, &weight, &coded);
                    Isa::Baseline.limit();
                    let want = selective_scan(rules, &weight, &reals);
                    isa.limit();
                    let bits = |v: &Array2<f32>| v.mapv(f32::to_bits);
                    assert!(
                        bits(&got.y) == bits(&want.y),
                        "{isa:?} {rules:?} {e} {n} {l}"
                    );
                    assert!(
                        bits(&got.state) == bits(&want.state),
                        "{isa:?} {rules:?} {e} {n} {l}"
                    );
                }
            }
        }
    }
}

/// Butterflies and factors of every kind of length.
fn rotations() {
    let mut random = Random(4);
    for n in [
        2, 8, 16, 32, 64, 128, 256, 2048, 12, 96, 192, 384, 768, 1536, 3072, 320, 40, 640, 5120,
        28, 448, 20,
    ] {
        let values: Vec<f32> = (0..2 * n)
            .map(|_| (random.next() >> 40) as f32 * 1e-3 - 8000.0)
            .chain(std::iter::repeat_n(-0.0, n))
            .collect();
        let size = HadamardSize::of(n).unwrap();
        let on = |isa: Isa| {
            isa.limit();
            let mut rows = values.clone();
            size.transform(&mut rows);
            rows.iter().map(|v| v.to_bits()).collect::<Vec<_>>()
        };
        let isa = Isa::current();
        let want = on(Isa::Baseline);
        assert!(on(isa) == want, "{isa:?} {n}");
    }
}

fn slices() {
    let halves: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let mut wide = vec![0.0; halves.len()];
    widen(&halves, &mut wide);
    for (half, wide) in halves.iter().zip(&wide) {
        assert_eq!(wide.to_bits(), from_f16(*half).to_bits());
    }
    let mut random = Random(3);
    let values: Vec<f32> = (0..100_003)
        .map(|_| f32::from_bits(random.next() as u32))
        .collect();
    let mut rounded = vec![f16::ZERO; values.len()];
    narrow(&values, &mut rounded);
    for (v, rounded) in values.iter().zip(&rounded) {
        assert_eq!(rounded.to_bits(), to_f16(*v).to_bits(), "{v:e}");
    }
    let scale = Scale::new(0.37).unwrap();
    let values: Vec<f32> = (0..70_001)
        .map(|_| (random.next() % 40_001) as f32 * 0.005 - 100.0)
        .collect();
    for quotient in Quotient::ALL {
        for rounding in Rounding::ALL {
            for overflow in Overflow::ALL {
                let rule = QuantRule {
                    quotient,
                    rounding,
                    overflow,
                };
                let mut codes = vec![0; values.len()];
                let status = rule.quantize_slice(&values, scale, &mut codes);
                assert_eq!(status.values, values.len() as u64);
                for (v, code) in values.iter().zip(&codes) {
                    assert_eq!(*code, rule.quantize(*v, scale), "{rule:?} {v}");
                }
            }
        }
    }
}

/// Slices of every length up to four lanes and some, from every place within a lane.
fn short_and_unaligned() {
    let mut random = Random(4);
    let any: Vec<f32> = (0..100)
        .map(|_| f32::from_bits(random.next() as u32))
        .collect();
    let usual: Vec<f32> = (0..100)
        .map(|_| (random.next() >> 40) as f32 * 2f32.powi(-18) - 32.0)
        .collect();
    for start in 0..17 {
        for length in 0..70 {
            for values in [&any, &usual] {
                let values = &values[start..start + length];
                halves_and_codes(values);
                functions::<Ieee>(values);
                functions::<CudaFast>(values);
                functions::<CudaSubnormal>(values);
                let flushed: Vec<f32> = values.iter().map(|v| sfu::flush(*v)).collect();
                functions::<Fast<true>>(&flushed);
            }
        }
    }
    for n in [1, 2, 4, 8, 12, 16, 20, 24, 28, 32, 40, 64, 160, 384] {
        let size = HadamardSize::of(n).unwrap();
        // Whole numbers: exact in any order.
        let x: Vec<f32> = (0..n + 3).map(|_| (random.next() % 256) as f32).collect();
        let mut got = x.clone();
        size.transform(&mut got[3..]);
        for (i, got) in got[3..].iter().enumerate() {
            let want: f32 = (0..n).map(|j| size.entry(i, j) * x[3 + j]).sum();
            assert_eq!(*got, want, "{:?} {n}", Isa::current());
        }
    }
}

fn halves_and_codes(values: &[f32]) {
    let mut halves = vec![f16::ZERO; values.len()];
    narrow(values, &mut halves);
    let mut wide = vec![0.0; values.len()];
    widen(&halves, &mut wide);
    let (rule, scale) = (QuantRule::HALF_AWAY_RECIPROCAL, Scale::new(0.37).unwrap());
    let mut codes = vec![0; values.len()];
    let _ = rule.quantize_slice(values, scale, &mut codes);
    let mut reals = vec![0.0; values.len()];
    dequantize_slice(&codes, scale, &mut reals);
    for (i, v) in values.iter().enumerate() {
        assert_eq!(halves[i].to_bits(), to_f16(*v).to_bits());
        assert_eq!(wide[i].to_bits(), from_f16(halves[i]).to_bits());
        assert_eq!(codes[i], rule.quantize(*v, scale));
        assert_eq!(reals[i], scale.get() * f32::from(codes[i]));
    }
}

fn functions<M: RealMath>(values: &[f32]) {
    let same = |got: f32, want: f32, name: &str| {
        let equal = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(equal, "{:?} {name}: {got:e}, {want:e}", Isa::current());
    };
    let gates: Vec<f32> = values.iter().rev().copied().collect();
    let (mut soft, mut silu, mut gated) = (values.to_vec(), values.to_vec(), values.to_vec());
    M::softplus_slice(&mut soft);
    M::silu_slice(&mut silu);
    M::times_sigmoid_slice(&mut gated, &gates);
    for (i, v) in values.iter().enumerate() {
        same(soft[i], M::softplus(*v), "softplus");
        same(silu[i], M::times_sigmoid(*v, *v), "silu");
        same(gated[i], M::times_sigmoid(*v, gates[i]), "gate");
    }
    let (rows, _) = values.as_chunks::<LANES>();
    let [alpha, delta @ ..] = rows else { return };
    let alpha = alpha.map(|v| M::operand(v.abs()));
    let delta: Vec<_> = delta.iter().map(|row| row.map(M::operand)).collect();
    let mut decay = vec![[0.0; LANES]; delta.len()];
    M::decays(&alpha, &delta, &mut decay);
    for (decay, delta) in decay.iter().zip(&delta) {
        for e in 0..LANES {
            same(decay[e], M::exp_neg(M::mul(alpha[e], delta[e])), "decay");
        }
    }
}

/// Prefill and decode of every mode and profile: every tensor and every counter, on every
/// instruction set and 1 to 8 threads, is what the baseline gives with one thread.
fn whole_models() {
    let shape = Shape::named("tiny").unwrap();
    let model = Model {
        quantized: Some(synthetic::quantized_model(shape).into()),
        float: Some(synthetic::float_model(shape).into()),
        ..Model::default()
    };
    let tokens: Vec<u32> = (0..37).map(|i| (i * i * 7 + i) % 256).collect();
    for mode in MODES.iter().filter(|mode| mode.rotated) {
        for profile in PROFILES {
            let path = Datapath::new(&model, mode, profile).unwrap();
            let run = || {
                let mut whole = Recorder::new(Selection::default());
                let (_, mut state) = path.prefill(&tokens, LogitRows::All, &mut whole).unwrap();
                let mut next = Recorder::new(Selection::default());
                path.decode(3, &mut state, &mut next).unwrap();
                [(whole.tensors, whole.counts), (next.tensors, next.counts)]
            };
            let on = |isa: Isa, threads: usize| {
                isa.limit();
                let pool = rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .build()
                    .unwrap();
                pool.install(run)
            };
            let want = on(Isa::Baseline, 1);
            for isa in Isa::available() {
                for threads in threads(*isa) {
                    let got = on(*isa, threads);
                    assert!(
                        got == want,
                        "mode {} {}: {isa:?}, {threads} threads",
                        mode.name,
                        profile.name
                    );
                }
            }
        }
    }
}
