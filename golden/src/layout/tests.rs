use super::*;
use half::f16;
use ndarray::{Array2, s};

/// Reproducible noise.
fn noise(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    Array2::from_shape_fn((rows, columns), |_| {
        // The sum of four uniforms: bell-shaped, as activations are.
        (0..4)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1);
                (state >> 40) as f64 / (1u64 << 24) as f64 - 0.5
            })
            .sum()
    })
}

/// Activations of a layer: some channels much larger than others, slow in time.
fn activations(rows: usize, columns: usize, seed: u64) -> Array2<f64> {
    let fast = noise(rows, columns, seed);
    let slow = noise(1, columns, seed + 1);
    Array2::from_shape_fn((rows, columns), |(t, c)| {
        let gain = if c % 17 == 3 { 8.0 } else { 1.0 };
        gain * (slow[(0, c)] + 0.5 * fast[(t, c)])
    })
}

fn codes(a: &Array2<f64>) -> Value {
    Value::I8(a.mapv(|v| (20.0 * v).round() as i8))
}

fn f32s(a: &Array2<f64>) -> Value {
    Value::F32(a.mapv(|v| v as f32))
}

fn f16s(a: &Array2<f64>) -> Value {
    Value::F16(a.mapv(f16::from_f64))
}

const KINDS: [fn(&Array2<f64>) -> Value; 3] = [codes, f32s, f16s];

fn plain(x: &Value, y: &Value) -> Vec<RecognisedLayout> {
    detect((x, None), (y, None), &[])
}

/// The one finding expected, explaining at least `share`.
fn only(x: &Value, y: &Value, share: f64) -> Layout {
    let findings = plain(x, y);
    let best = findings
        .first()
        .unwrap_or_else(|| panic!("no finding for {}", x.describe()));
    assert!(best.explains >= share, "{best}");
    best.layout
}

#[test]
fn transposed_is_named_whatever_the_shape_says() {
    let a = activations(40, 28, 1);
    let t = a.t().as_standard_layout().into_owned();
    for kind in KINDS {
        // The shape tells.
        assert_eq!(
            only(&kind(&a), &kind(&t), 1.0),
            Layout::Transposed { axes: [0, 2, 1] }
        );
        // The shape lies: transposed data in the shape of the reference.
        let lying = Array2::from_shape_vec((40, 28), t.iter().copied().collect()).unwrap();
        assert_eq!(
            only(&kind(&a), &kind(&lying), 1.0),
            Layout::Transposed { axes: [0, 2, 1] }
        );
        // Square.
        let a = activations(32, 32, 2);
        let t = a.t().as_standard_layout().into_owned();
        assert_eq!(
            only(&kind(&a), &kind(&t), 1.0),
            Layout::Transposed { axes: [0, 2, 1] }
        );
    }
}

#[test]
fn three_axes_in_any_order() {
    let (b, l, c) = (3, 10, 14);
    let x: Vec<f32> = noise(b * l, c, 5).iter().map(|v| *v as f32).collect();
    let value = |i: usize, j: usize, k: usize| x[(i * l + j) * c + k];
    fn side<'a>(elements: &'a [f32], shape: &'a [usize]) -> Side<'a> {
        Side {
            elements: elements.into(),
            shape,
            scale: None,
        }
    }
    let mut time_first = Vec::new();
    for j in 0..l {
        for i in 0..b {
            time_first.extend((0..c).map(|k| value(i, j, k)));
        }
    }
    let findings = detect_in(side(&x, &[b, l, c]), side(&time_first, &[l, b, c]), &[]);
    assert_eq!(findings[0].layout, Layout::Transposed { axes: [1, 0, 2] });
    assert_eq!((findings.len(), findings[0].explains), (1, 1.0));
    let mut channels_second = Vec::new();
    for i in 0..b {
        for k in 0..c {
            channels_second.extend((0..l).map(|j| value(i, j, k)));
        }
    }
    let findings = detect_in(
        side(&x, &[b, l, c]),
        side(&channels_second, &[b, c, l]),
        &[],
    );
    assert_eq!(findings[0].layout, Layout::Transposed { axes: [0, 2, 1] });
}

#[test]
fn swapped_halves_and_blocks() {
    let a = activations(30, 44, 7);
    let swapped = |at: usize, first: usize, second: usize| {
        Array2::from_shape_fn(a.dim(), |(t, c)| {
            let from = match c.checked_sub(at) {
                Some(o) if o < second => c + first,
                Some(o) if o < first + second => c - second,
                _ => c,
            };
            a[(t, from)]
        })
    };
    for kind in KINDS {
        let halves = Layout::SwappedBlocks {
            at: 0,
            first: 22,
            second: 22,
        };
        assert_eq!(only(&kind(&a), &kind(&swapped(0, 22, 22)), 1.0), halves);
        // B and C within dt‖B‖C, R = 12, N = 16, found without being told.
        let tail = Layout::SwappedBlocks {
            at: 12,
            first: 16,
            second: 16,
        };
        assert_eq!(only(&kind(&a), &kind(&swapped(12, 16, 16)), 1.0), tail);
        // Blocks of unlike widths, told.
        let (x, y) = (kind(&a), kind(&swapped(0, 12, 16)));
        let findings = detect((&x, None), (&y, None), &[12, 16, 16]);
        assert_eq!(
            findings[0].layout,
            Layout::SwappedBlocks {
                at: 0,
                first: 12,
                second: 16
            }
        );
        assert_eq!(findings[0].explains, 1.0);
    }
}

#[test]
fn shifts_of_one_to_eight_either_way() {
    let wide = activations(60, 50, 9);
    let a = wide.slice(s![10..50, 10..40]).to_owned();
    for kind in KINDS {
        for by in (-8isize..=8).filter(|by| *by != 0) {
            let cut = |r: isize, c: isize| {
                let (r, c) = ((10 - r) as usize, (10 - c) as usize);
                wide.slice(s![r..r + 40, c..c + 30]).to_owned()
            };
            let late = Layout::ShiftedInTime { by };
            let share = 1.0 - by.unsigned_abs() as f64 / 40.0 - 1e-9;
            assert_eq!(only(&kind(&a), &kind(&cut(by, 0)), share), late);
            let right = Layout::ShiftedInChannels { by };
            let share = 1.0 - by.unsigned_abs() as f64 / 30.0 - 1e-9;
            assert_eq!(only(&kind(&a), &kind(&cut(0, by)), share), right);
        }
    }
}

#[test]
fn a_shift_shows_through_noise_of_one_step() {
    let wide = activations(61, 50, 11);
    let (x, y) = (
        wide.slice(s![1.., ..]).to_owned(),
        wide.slice(s![..60, ..]).to_owned(),
    );
    let (x, mut y) = (codes(&x), codes(&y));
    if let Value::I8(y) = &mut y {
        for (i, code) in y.iter_mut().enumerate() {
            *code += i8::from(i % 3 == 0);
        }
    }
    assert_eq!(only(&x, &y, 0.6), Layout::ShiftedInTime { by: 1 });
}

#[test]
fn factors_of_floats_and_of_codes() {
    let a = activations(40, 30, 13);
    for factor in [0.25, 0.5, 0.8, 1.25, 2.0, 3.7, -1.0] {
        for kind in [f32s, f16s] {
            let Layout::Factor { factor: got } = only(&kind(&a), &kind(&(factor * &a)), 1.0) else {
                panic!("{factor}");
            };
            assert!((got / factor - 1.0).abs() < 1e-3, "{factor} {got}");
        }
        // Codes on one grid, clipped where they no longer fit.
        let (x, y) = (
            codes(&a),
            Value::I8(a.mapv(|v| (20.0 * factor * v).round() as i8)),
        );
        let Layout::Factor { factor: got } = only(&x, &y, 0.95) else {
            panic!("{factor}")
        };
        assert!((got / factor - 1.0).abs() < 0.02, "{factor} {got}");
    }
    // Equal codes, unequal scales.
    let (x, scale) = (codes(&a), |v| Some(Scale::new(v).unwrap()));
    let findings = detect((&x, scale(0.1)), (&x, scale(0.17)), &[]);
    let Layout::Factor { factor } = findings[0].layout else {
        panic!()
    };
    assert!((factor - 1.7).abs() < 1e-6 && findings[0].explains == 1.0);
    assert!(detect((&x, scale(0.1)), (&x, scale(0.1)), &[]).is_empty());
    // The same values on two grids are no factor apart.
    let finer = Value::I8(a.mapv(|v| (40.0 * v).round() as i8));
    assert!(detect((&x, scale(0.05)), (&finer, scale(0.025)), &[]).is_empty());
}

#[test]
fn unrelated_data_give_no_finding() {
    for seed in 0..20 {
        for kind in KINDS {
            let (a, b) = (
                activations(40, 30, 100 + seed),
                activations(40, 30, 500 + seed),
            );
            assert!(plain(&kind(&a), &kind(&b)).is_empty(), "{seed}");
            let (a, b) = (noise(40, 30, 100 + seed), noise(30, 40, 500 + seed));
            assert!(plain(&kind(&a), &kind(&b)).is_empty(), "{seed}");
        }
        // Few codes, where much agrees by luck.
        let few = |seed| Value::I8(noise(40, 30, seed).mapv(|v| i8::from(v > 0.0)));
        assert!(plain(&few(seed), &few(900 + seed)).is_empty(), "{seed}");
        let sparse = |seed| Value::I8(noise(40, 30, seed).mapv(|v| if v > 0.9 { 3 } else { 0 }));
        assert!(
            plain(&sparse(seed), &sparse(900 + seed)).is_empty(),
            "{seed}"
        );
    }
}

#[test]
fn constant_and_zero_tensors_give_no_finding() {
    for (v, w) in [(0.0, 0.0), (1.0, 1.0), (1.0, 2.0), (0.0, 1.0), (1.0, 0.0)] {
        for kind in KINDS {
            let of = |v| kind(&Array2::from_elem((40, 30), v));
            assert!(plain(&of(v), &of(w)).is_empty(), "{v} {w}");
            let a = kind(&activations(40, 30, 3));
            assert!(plain(&a, &of(w)).is_empty(), "{w}");
            assert!(plain(&of(v), &a).is_empty(), "{v}");
        }
    }
    let across = f32s(&Array2::zeros((30, 40)));
    assert!(plain(&f32s(&Array2::zeros((40, 30))), &across).is_empty());
}

#[test]
fn a_finding_resolves_half_of_what_differs() {
    // 20 channels steady in time, where any shift agrees; 10 with noise, some of it shifted, the
    // others unrelated.
    let (steady, moving, other) = (noise(1, 20, 31), noise(41, 10, 32), noise(40, 10, 33));
    let of = |late: usize, shifted: usize| {
        f32s(&Array2::from_shape_fn((40, 30), |(t, c)| {
            match c.checked_sub(20) {
                None => steady[(0, c)],
                Some(c) if c < shifted => moving[(t + 1 - late, c)],
                Some(c) => late as f64 + other[(t, c)],
            }
        }))
    };
    let findings = |shifted| plain(&of(0, shifted), &of(1, shifted));
    assert_eq!(findings(8)[0].layout, Layout::ShiftedInTime { by: 1 });
    assert!(findings(3).is_empty(), "{:?}", findings(3));
}

#[test]
fn rounding_noise_and_equality_give_no_finding() {
    let a = activations(40, 30, 21);
    for kind in KINDS {
        assert!(plain(&kind(&a), &kind(&a)).is_empty());
        let close = &a + &(0.002 * &noise(40, 30, 22));
        assert!(plain(&kind(&a), &kind(&close)).is_empty());
        let far = &a + &(0.3 * &noise(40, 30, 22));
        assert!(plain(&kind(&a), &kind(&far)).is_empty());
    }
    // NaN, nothing, and shapes that cannot be.
    let mut bad = a.clone();
    bad[(3, 3)] = f64::NAN;
    assert!(plain(&f32s(&a), &f32s(&bad)).is_empty());
    assert!(plain(&f32s(&a), &f32s(&activations(7, 7, 1))).is_empty());
    let one = f32s(&Array2::zeros((1, 1)));
    assert!(plain(&one, &one).is_empty());
    let side = Side {
        elements: (&[1.0f32][..]).into(),
        shape: &[1],
        scale: None,
    };
    assert!(detect_in(side, side, &[]).is_empty());
}

#[test]
fn findings_speak() {
    let finding = RecognisedLayout {
        layout: Layout::ShiftedInTime { by: -1 },
        explains: 0.994,
        before: 0.1,
    };
    assert_eq!(
        finding.to_string(),
        "shifted by -1 tokens (99.4 % of elements then agree, 10.0 % as stored)"
    );
    let json = serde_json::to_value(finding).unwrap();
    assert_eq!(json["kind"], "shifted_in_time");
    assert_eq!(json["by"], -1);
}
