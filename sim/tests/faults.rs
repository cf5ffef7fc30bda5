//! Each fault does what its table says, held against a calculation of its own.

use half::f16;
use ndarray::{Array2, s};
use scalescope_sim::arith::requant::QuantRule;
use scalescope_sim::checkpoint::quantize::{Ends, quantize, to_int4};
use scalescope_sim::checkpoint::recipe::Recipe;
use scalescope_sim::checkpoint::synthetic::{Shape, float_model, plausible_scales};
use scalescope_sim::checkpoint::w4a8;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::ModeTable;
use scalescope_sim::model::{Model, QuantizedLayer};
use scalescope_sim::profile::Profile;
use scalescope_sim::quant::{Int4Tensor, QTensor, QWeight};
use scalescope_sim::sample;
use scalescope_sim::trace::{Place, Probe, Recorder, Selection, Tensor, TracePoint};
use std::sync::Arc;

const LAYER: usize = 3;

fn tokens(length: usize) -> Vec<u32> {
    (0..length as u32)
        .map(|i| (i * 2_654_435 + 17) % 8192)
        .collect()
}

/// The tensors of a block with and without a fault in it.
fn both(mode: &str, fault: &str, length: usize) -> (Recorder, Recorder) {
    let model = sample::model();
    let table = ModeTable::default();
    let (mode, profile) = (table.get(mode).unwrap(), Profile::get("exact").unwrap());
    let fault: Fault = fault.parse().unwrap();
    let run = |faults: &[Fault]| {
        let path = Datapath::with_faults(&model, mode, &profile, faults).unwrap();
        let mut recorder = Recorder::new(Selection {
            layers: Some(vec![LAYER]),
            points: None,
        });
        path.prefill(&tokens(length), LogitRows::None, &mut recorder)
            .unwrap();
        recorder
    };
    (run(&[]), run(&[fault]))
}

fn at(recorder: &Recorder, point: TracePoint) -> &Tensor {
    &recorder.tensors[&Place::layer(LAYER, point)]
}

fn codes(recorder: &Recorder, point: TracePoint) -> &QTensor {
    match at(recorder, point) {
        Tensor::I8(q) => q,
        other => panic!("{point:?} is {}", other.dtype()),
    }
}

/// SiLU(factor · s_w · Σ w·x + s_b · bias) in f64; `reaches` says which tap sees which token.
fn conv(x: &QTensor, factor: f64, reaches: impl Fn(usize, usize) -> bool) -> Array2<f64> {
    let model = sample::model();
    let layer = &model.quantized.as_deref().unwrap().layers[LAYER];
    let (w, bias) = (&layer.conv_weight, &layer.conv_bias);
    let taps = w.codes.ncols();
    Array2::from_shape_fn((x.codes.nrows(), w.codes.nrows()), |(t, c)| {
        let mut acc = 0i64;
        for tap in 0..taps {
            if let Some(from) = (t + tap + 1).checked_sub(taps)
                && reaches(t, from)
            {
                acc += i64::from(w.codes[(c, tap)]) * i64::from(x.codes[(from, c)]);
            }
        }
        let v = factor * f64::from(w.scale.get()) * acc as f64
            + f64::from(bias.scale.get()) * f64::from(bias.codes[c]);
        v / (1.0 + (-v).exp())
    })
}

fn x_of(recorder: &Recorder) -> QTensor {
    let both = codes(recorder, TracePoint::InProjOut);
    let e = both.codes.ncols() / 2;
    QTensor {
        codes: both.codes.slice(s![.., ..e]).to_owned(),
        scale: both.scale,
    }
}

fn assert_near(found: &Array2<f32>, want: &Array2<f64>) {
    for (found, want) in found.iter().zip(want) {
        assert!(
            (f64::from(*found) - want).abs() <= 1e-6 * want.abs().max(1.0),
            "{found} {want}"
        );
    }
}

#[test]
fn conv_multiplies_by_its_input_scale_twice() {
    let (clean, faulty) = both("2-4", "conv-double-input-scale@layer=3", 24);
    let x = x_of(&faulty);
    let s_x = f64::from(x.scale.get());
    let want = conv(&x, s_x * s_x, |_, _| true);
    assert_near(&at(&faulty, TracePoint::ConvOutF32).to_real(), &want);
    assert_near(
        &at(&clean, TracePoint::ConvOutF32).to_real(),
        &conv(&x, s_x, |_, _| true),
    );
}

#[test]
fn conv_forgets_at_every_eighth_token_of_a_whole_number_of_tiles() {
    for mode in ["2-4", "3"] {
        let fault = "conv-history-loss@layer=3";
        let (clean, faulty) = both(mode, fault, 24);
        let (clean, faulty) = [&clean, &faulty]
            .map(|r| at(r, TracePoint::ConvOutF32).to_real())
            .into();
        for t in 0..24 {
            // Three taps reach back.
            let lost = t >= 8 && t % 8 < 3;
            let rows = (clean.row(t), faulty.row(t));
            assert_eq!(rows.0 != rows.1, lost, "mode {mode}, token {t}");
        }
        let (clean, faulty) = both(mode, fault, 23);
        assert_eq!(clean.tensors, faulty.tensors, "23 tokens are no tiles");
    }
    let (_, faulty) = both("2-4", "conv-history-loss@layer=3", 24);
    let x = x_of(&faulty);
    let want = conv(&x, x.scale.get().into(), |t, from| t / 8 == from / 8);
    assert_near(&at(&faulty, TracePoint::ConvOutF32).to_real(), &want);
}

#[test]
fn a_stale_scale_is_used_by_the_quantizer_alone() {
    let fault = "stale-scale@site=x_proj_input,layer=3,factor=1.7";
    let (clean, faulty) = both("2-4", fault, 16);
    let real = at(&clean, TracePoint::ConvOutF32).to_real();
    let scale = codes(&clean, TracePoint::XProjIn).scale.times(1.7).unwrap();
    let (want, _) = QTensor::quantize(&real, scale, QuantRule::NEAREST_EVEN);
    assert_eq!(codes(&faulty, TracePoint::XProjIn), &want);
    // A use leaves the others as they are.
    let (clean, faulty) = both("0", "stale-scale@site=scan_u,layer=3,factor=0.5", 16);
    assert_eq!(
        at(&clean, TracePoint::DtProjOut),
        at(&faulty, TracePoint::DtProjOut)
    );
    assert_ne!(at(&clean, TracePoint::SsmY), at(&faulty, TracePoint::SsmY));
}

/// Shows a block a tensor with B and C in each other's place.
struct Swap(Recorder);

impl Probe for Swap {
    fn wants(&self, place: Place) -> bool {
        self.0.wants(place)
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> scalescope_sim::error::Result<()> {
        self.0.visit(place, value)?;
        if let (TracePoint::XProjOut, Tensor::I8(q)) = (place.point, value) {
            let (b, c) = (
                q.codes.slice(s![.., 12..28]).to_owned(),
                q.codes.slice(s![.., 28..44]).to_owned(),
            );
            q.codes.slice_mut(s![.., 12..28]).assign(&c);
            q.codes.slice_mut(s![.., 28..44]).assign(&b);
        }
        Ok(())
    }
}

#[test]
fn swapped_b_and_c_are_what_the_scan_reads() {
    let (clean, faulty) = both("0", "swapped-bc@layer=3", 16);
    let model = sample::model();
    let table = ModeTable::default();
    let path = Datapath::new(
        &model,
        table.get("0").unwrap(),
        &Profile::get("exact").unwrap(),
    )
    .unwrap();
    let mut swap = Swap(Recorder::new(Selection {
        layers: Some(vec![LAYER]),
        points: None,
    }));
    path.prefill(&tokens(16), LogitRows::None, &mut swap)
        .unwrap();
    assert_eq!(at(&swap.0, TracePoint::SsmY), at(&faulty, TracePoint::SsmY));
    assert_ne!(at(&clean, TracePoint::SsmY), at(&faulty, TracePoint::SsmY));
    assert_eq!(
        at(&clean, TracePoint::XProjOut),
        at(&faulty, TracePoint::XProjOut)
    );
}

#[test]
fn a_transposed_buffer_holds_the_tensor_channel_by_channel() {
    let (clean, faulty) = both("0", "transposed@layer=3,site=x_proj_out", 16);
    let (clean, faulty) = (
        codes(&clean, TracePoint::XProjOut),
        codes(&faulty, TracePoint::XProjOut),
    );
    let (rows, columns) = clean.codes.dim();
    let buffer: Vec<i8> = faulty.codes.iter().copied().collect();
    for t in 0..rows {
        for c in 0..columns {
            assert_eq!(buffer[c * rows + t], clean.codes[(t, c)]);
        }
    }
}

#[test]
fn a_narrow_register_wraps() {
    let (clean, faulty) = both("0", "narrow-accumulator@layer=3,site=in_proj,bits=12", 16);
    assert_eq!(
        at(&clean, TracePoint::NormOut),
        at(&faulty, TracePoint::NormOut)
    );
    assert_ne!(
        at(&clean, TracePoint::InProjOut),
        at(&faulty, TracePoint::InProjOut)
    );
}

#[test]
fn faults_are_refused_where_they_cannot_be() {
    let model = sample::model();
    let (table, profile) = (ModeTable::default(), Profile::get("exact").unwrap());
    for (mode, fault, words) in [
        ("1", "swapped-bc", "INT8"),
        ("0", "swapped-bc@layer=12", "below 12"),
        ("0", "stale-scale@site=conv_in,factor=2e-38", "scale"),
    ] {
        let fault: Fault = fault.parse().unwrap();
        let mode = table.get(mode).unwrap();
        let error = Datapath::with_faults(&model, mode, &profile, &[fault]).err();
        let error = error.expect("refused").to_string();
        assert!(error.contains(words), "{error}");
    }
}

/// A model of one block whose rows are two groups of 128 and more, in four bits.
fn four_bits() -> Model {
    let shape = Shape {
        name: "four bits",
        n_layers: 1,
        d_model: 256,
        vocab_size: 256,
    };
    let float = float_model(shape);
    let scales = plausible_scales(&float.config);
    let mut model = quantize(&float, &scales, &Recipe::QUAMBA, Ends::F16).unwrap();
    to_int4(&mut model, &float, &"w4a8".parse().unwrap()).unwrap();
    Model {
        quantized: Some(Arc::new(model)),
        ..Model::default()
    }
}

/// A fault of a four-bit weight is a model whose weight is that wrong one.
#[test]
fn weights_of_four_bits_are_misread() {
    let model = four_bits();
    let (table, profile) = (ModeTable::default(), Profile::get("deployed").unwrap());
    let mode = table.get("0").unwrap();
    let tokens: Vec<u32> = (0..20).map(|i| i * 37 % 256).collect();
    let run = |model: &Model, faults: &[Fault]| {
        let path = Datapath::with_faults(model, mode, &profile, faults).unwrap();
        let mut recorder = Recorder::new(Selection::default());
        path.prefill(&tokens, LogitRows::None, &mut recorder)
            .unwrap();
        recorder.tensors
    };
    let changed = |of: fn(&mut QuantizedLayer) -> &mut QWeight, edit: &dyn Fn(&mut Int4Tensor)| {
        let mut quantized = (**model.quantized.as_ref().unwrap()).clone();
        match of(&mut quantized.layers[0]) {
            QWeight::Int4(weight) => edit(weight),
            QWeight::Int8(_) => panic!("four bits"),
        }
        Model {
            quantized: Some(Arc::new(quantized)),
            ..Model::default()
        }
    };
    fn in_proj(layer: &mut QuantizedLayer) -> &mut QWeight {
        &mut layer.in_proj
    }
    fn out_proj(layer: &mut QuantizedLayer) -> &mut QWeight {
        &mut layer.out_proj
    }
    let clean = run(&model, &[]);
    let cases = [
        (
            "stale-scale@site=in_proj_group,factor=1.25",
            changed(in_proj, &|w| {
                for scale in w.groups.as_mut().unwrap() {
                    *scale = f16::from_f64(scale.to_f64() * 1.25);
                }
            }),
        ),
        (
            "stale-scale@site=out_proj_channel,factor=2",
            changed(out_proj, &|w| {
                for scale in &mut w.channels {
                    *scale = scale.times(2.0).unwrap();
                }
            }),
        ),
        (
            // Row n of a tile of 64 stands where the file has row n/8 + 8·(n mod 8).
            "permuted-scales@site=in_proj",
            changed(in_proj, &|w| {
                let from = w.groups.clone().unwrap();
                let groups = w.groups.as_mut().unwrap();
                for ((n, g), scale) in groups.indexed_iter_mut() {
                    *scale = from[(n / 64 * 64 + n % 64 / 8 + 8 * (n % 8), g)];
                }
            }),
        ),
        (
            "permuted-scales@site=out_proj,scales=channel",
            changed(out_proj, &|w| {
                let lanes = [0, 1, 8, 9, 16, 17, 24, 25];
                let from = w.channels.clone();
                for (n, scale) in w.channels.iter_mut().enumerate() {
                    *scale = from[n / 32 * 32 + n % 32 / 8 * 2 + lanes[n % 8]];
                }
            }),
        ),
        (
            // What a reader that knows the order makes of words in which each code has moved.
            "nibble-order@site=in_proj",
            changed(in_proj, &|w| {
                let words = w4a8::pack(w.codes().view()).mapv(|word| {
                    let order = [0, 2, 4, 6, 1, 3, 5, 7];
                    let nibble = |p: usize| (word as u32) >> (4 * order[p]) & 15;
                    (0..8).fold(0, |sum, p| sum | nibble(p) << (4 * p)) as i32
                });
                let codes = w4a8::unpack(words.view()).unwrap();
                *w = Int4Tensor::new(codes.view(), w.groups.clone(), w.channels.clone()).unwrap();
            }),
        ),
    ];
    for (fault, wrong) in cases {
        let faulty = run(&model, &[fault.parse().unwrap()]);
        assert!(faulty == run(&wrong, &[]), "{fault}");
        assert!(faulty != clean, "{fault}");
    }
    for fault in ["nibble-order", "stale-scale@site=x_proj_group,factor=2"] {
        let fault: Fault = fault.parse().unwrap();
        let sample = sample::model();
        let error = Datapath::with_faults(&sample, mode, &profile, &[fault]).err();
        let error = error.expect("refused").to_string();
        assert!(error.contains("a weight of four bits"), "{error}");
    }
}
