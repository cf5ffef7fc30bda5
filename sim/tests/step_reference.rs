//! Convolution and Hadamard transform against second implementations: scalar, one output at a time,
//! written straight from `docs/arithmetic.md`.

use ndarray::{Array2, concatenate, s};
use scalescope_sim::arith::hadamard::HadamardSize;
use scalescope_sim::arith::real::RealRules;
use scalescope_sim::arith::sfu::{ex2, flush, rcp};
use scalescope_sim::profile::ConvForm;
use scalescope_sim::quant::{QTensor, QVector, Scale};
use scalescope_sim::step::conv::{ConvWeight, ConvWindow, conv_silu};

fn codes(rows: usize, columns: usize, seed: usize) -> Array2<i8> {
    Array2::from_shape_fn((rows, columns), |(i, j)| {
        let mixed = (i * 7919 + j * 104_729 + seed * 1_299_709) as u64;
        (mixed.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as u8 as i8
    })
}

fn scale(v: f32) -> Scale {
    Scale::new(v).unwrap()
}

#[test]
fn conv_with_2_to_4_taps() {
    let (s_x, s_w, s_b) = (0.031f32, 0.0087f32, 0.0113f32);
    for taps in 2..=4 {
        for (l, e) in [(1, 1), (2, 3), (3, 16), (17, 33), (130, 7)] {
            let (x, w, b) = (codes(l, e, 1), codes(e, taps, 2), codes(1, e, 3));
            let weight = ConvWeight::int8(
                &QTensor {
                    codes: w.clone(),
                    scale: scale(s_w),
                },
                &QVector {
                    codes: b.iter().copied().collect(),
                    scale: scale(s_b),
                },
            );
            let history = Array2::<i8>::zeros((taps - 1, e));
            let rows = concatenate![ndarray::Axis(0), history, x];
            let window = ConvWindow::Int8 {
                codes: rows,
                scale: scale(s_x),
            };
            let real = RealRules::SpecialFunctionUnit;
            let got = conv_silu(real, ConvForm::IntegerSum, &weight, &window, true);
            for t in 0..l {
                for c in 0..e {
                    let mut acc = 0i32;
                    for k in 0..taps {
                        if t + 1 + k >= taps {
                            let x = x[(t + 1 + k - taps, c)];
                            acc += i32::from(w[(c, k)]) * i32::from(x);
                        }
                    }
                    let bias = flush(s_b * f32::from(b[(0, c)]));
                    let v = flush(flush(s_w * s_x).mul_add(acc as f32, bias));
                    let sigmoid = rcp(1.0 + ex2(flush(v * -f32::from_bits(0x3FB8_AA3B))));
                    let want = flush(v * sigmoid);
                    assert_eq!(
                        got[(t, c)].to_bits(),
                        want.to_bits(),
                        "K {taps}, [{t}, {c}]"
                    );
                }
            }
        }
    }
}

#[test]
fn hadamard_of_every_family() {
    let sizes = [
        1, 2, 4, 64, 512, 12, 24, 192, 384, 768, 1536, 40, 80, 160, 2560, 28, 56, 112, 896, 20,
    ];
    for n in sizes {
        let size = HadamardSize::of(n).unwrap();
        let x: Vec<f32> = (codes(1, n, 4).iter().zip(codes(1, n, 5).iter()))
            .map(|(a, b)| f32::from(*a) * 0.37 + f32::from(*b) * 0.011)
            .collect();
        let mut got = x.clone();
        size.transform(&mut got);
        // Butterflies element by element: each pass makes a new row.
        let (base, block) = (size.base(), n / size.base());
        let mut row = x;
        let mut stride = 1;
        while stride < block {
            row = (0..n)
                .map(|i| match i / stride % 2 {
                    0 => row[i] + row[i + stride],
                    _ => row[i - stride] - row[i],
                })
                .collect();
            stride *= 2;
        }
        if base > 1 {
            row = (0..n)
                .map(|i| {
                    // The sign of H_c at (i, j): that of the whole matrix at the blocks' first columns.
                    let term = |j: usize| {
                        let sign = size.entry(i / block * block, j * block);
                        sign * row[j * block + i % block]
                    };
                    (1..base).fold(term(0), |sum, j| sum + term(j))
                })
                .collect();
        }
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&got), bits(&row), "n {n}");
    }
    let three = codes(3, 40, 6).mapv(f32::from);
    let size = HadamardSize::of(40).unwrap();
    let mut all = three.clone();
    size.transform(all.as_slice_mut().unwrap());
    let mut one = three.slice(s![1..2, ..]).to_owned();
    size.transform(one.as_slice_mut().unwrap());
    assert_eq!(all.row(1), one.row(0), "rows are independent");
}
