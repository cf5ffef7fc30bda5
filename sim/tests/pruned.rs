//! Pruned models run in every profile, and what is zero stays zero: rows, tensors and whole branches of
//! zeros, at the scales that calibration and quantization give them.

use half::f16;
use ndarray::Axis;
use proptest::prelude::*;
use scalescope_sim::calibrate::{CalibrationOptions, calibrate};
use scalescope_sim::checkpoint::quantize::{Ends, quantize};
use scalescope_sim::checkpoint::recipe::Recipe;
use scalescope_sim::checkpoint::synthetic::{Shape, float_model};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::mode::ModeTable;
use scalescope_sim::model::{FloatLayer, FloatModel, Model};
use scalescope_sim::profile::Profile;
use scalescope_sim::trace::{Place, Recorder, Selection, Tensor, TracePoint};
use std::ops::ControlFlow;
use std::sync::{Arc, LazyLock};

const TOKENS: [u32; 9] = [1, 200, 3, 3, 90, 17, 255, 0, 128];

static FLOAT: LazyLock<FloatModel> = LazyLock::new(|| float_model(Shape::named("tiny").unwrap()));

/// Every built-in profile, and granularities of weights and activations in all grids.
fn profiles() -> Vec<Profile> {
    let built_in = Profile::names()
        .into_iter()
        .map(|name| Profile::get(name).unwrap());
    let files = [
        "[weights]\ngranularity = \"channel\"\nconv_granularity = \"channel\"",
        "[weights]\nbits = 4\ngranularity = \"group\"",
        "[weights]\ngranularity = \"channel\"\nconv_granularity = \"channel\"\nscales = \"power-of-two\"",
        "[weights]\ngranularity = \"group\"\nscales = \"power-of-two\"\n[activations]\ngranularity = \"token\"",
        "[requant]\nrounding = \"floor\"\n[weights]\ngranularity = \"channel\"\nconv_granularity = \"channel\"",
    ];
    let files = files.map(|keys| {
        let text = format!("version = 1\nextends = \"asic-int8\"\n{keys}\n");
        Profile::from_toml(keys, &text).unwrap()
    });
    built_in.chain(files).collect()
}

/// The tiny model after `prune`, calibrated and quantized.
fn pruned(prune: impl Fn(&mut FloatLayer)) -> Model {
    let mut float = FLOAT.clone();
    prune(&mut float.layers[0]);
    let float = Arc::new(float);
    let alone = Model {
        float: Some(Arc::clone(&float)),
        ..Model::default()
    };
    let options = CalibrationOptions::default();
    let scales = calibrate(&alone, &[TOKENS.to_vec()], &options, &|_| {
        ControlFlow::Continue(())
    })
    .unwrap();
    Model {
        quantized: Some(Arc::new(
            quantize(&float, &scales, &Recipe::GOLDEN, Ends::F16).unwrap(),
        )),
        ..alone
    }
}

fn run(model: &Model, profile: &Profile) -> Recorder {
    let table = ModeTable::default();
    let path = Datapath::new(model, table.get("0").unwrap(), profile).unwrap();
    let mut recorder = Recorder::new(Selection::default());
    let done = path.prefill(&TOKENS, LogitRows::All, &mut recorder);
    done.unwrap_or_else(|e| panic!("{}: {e}", profile.name));
    recorder
}

fn real(recorder: &Recorder, point: TracePoint) -> ndarray::Array2<f32> {
    recorder.tensors[&Place::layer(0, point)].to_real()
}

/// Whether every value of some columns is zero.
fn is_zero(values: &ndarray::Array2<f32>, columns: impl IntoIterator<Item = usize>) -> bool {
    columns
        .into_iter()
        .all(|c| values.column(c).iter().all(|v| *v == 0.0))
}

const ZERO: f16 = f16::ZERO;

/// A name, what is made zero, and the tensor that is zero then.
type Case = (&'static str, fn(&mut FloatLayer), Option<TracePoint>);

#[test]
fn tensors_of_zeros_run_in_every_profile_and_stay_zero() {
    let cases: [Case; 10] = [
        (
            "norm and in_proj",
            |l| l.in_proj.fill(ZERO),
            Some(TracePoint::InProjOut),
        ),
        ("conv weight", |l| l.conv_weight.fill(ZERO), None),
        ("conv bias", |l| l.conv_bias.fill(ZERO), None),
        (
            "x_proj",
            |l| l.x_proj.fill(ZERO),
            Some(TracePoint::XProjOut),
        ),
        (
            "dt_proj",
            |l| l.dt_proj.fill(ZERO),
            Some(TracePoint::DtProjOut),
        ),
        ("dt_bias", |l| l.dt_bias.fill(ZERO), None),
        ("A_log", |l| l.a_log.fill(0.0), None),
        ("D", |l| l.d.fill(0.0), None),
        (
            "out_proj",
            |l| l.out_proj.fill(ZERO),
            Some(TracePoint::OutProjOut),
        ),
        ("D, just above zero", |l| l.d.fill(6e-8), None),
    ];
    let profiles = profiles();
    for (name, prune, zero) in cases {
        let model = pruned(prune);
        for profile in &profiles {
            let seen = run(&model, profile);
            let logits = seen.tensors[&Place::end(TracePoint::Logits)].to_real();
            assert!(
                logits.iter().all(|v| v.is_finite()),
                "{name}: {}",
                profile.name
            );
            if let Some(point) = zero {
                let values = real(&seen, point);
                assert!(
                    is_zero(&values, 0..values.ncols()),
                    "{name}: {}",
                    profile.name
                );
            }
        }
    }
}

/// A convolution without weights is SiLU of its bias, in integers too, whatever the bias.
#[test]
fn channels_without_weights_keep_their_bias() {
    for whole in [false, true] {
        let model = pruned(|l| {
            for c in 0..l.conv_bias.len() {
                l.conv_bias[c] = f16::from_f32(0.02 * c as f32 - 1.0);
                if whole || c % 3 == 0 {
                    l.conv_weight.row_mut(c).fill(ZERO);
                }
            }
        });
        let quantized = &model.quantized.as_ref().unwrap().layers[0];
        for profile in profiles() {
            let seen = run(&model, &profile);
            let Tensor::I8(out) = &seen.tensors[&Place::layer(0, TracePoint::ConvOut)] else {
                panic!("{}: no codes", profile.name)
            };
            for c in (0..out.codes.ncols()).filter(|c| whole || c % 3 == 0) {
                let bias =
                    quantized.conv_bias.scale.get() * f32::from(quantized.conv_bias.codes[c]);
                let silu = bias / (1.0 + (-bias).exp());
                let want = (silu / out.scale.get()).round().clamp(-128.0, 127.0);
                for code in out.codes.column(c) {
                    let apart = (f32::from(*code) - want).abs();
                    assert!(
                        apart <= 2.0,
                        "{}: channel {c}: {code}, not {want}",
                        profile.name
                    );
                }
            }
        }
    }
}

/// Without x_proj there is no state, and the scan is D·u under its gate: it fits the sum's register in every
/// profile, however small the scales that calibration gives to zeros.
#[test]
fn a_scan_without_state_keeps_its_skip() {
    let model = pruned(|l| l.x_proj.fill(ZERO));
    let d = &model.quantized.as_ref().unwrap().layers[0].d;
    for profile in profiles() {
        let seen = run(&model, &profile);
        let [u, xz, y] = [TracePoint::SsmU, TracePoint::InProjOut, TracePoint::SsmY]
            .map(|point| real(&seen, point));
        let want = ndarray::Array2::from_shape_fn(y.dim(), |(t, c)| {
            let z = xz[(t, y.ncols() + c)];
            d.scale.get() * f32::from(d.codes[c]) * u[(t, c)] * z / (1.0 + (-z).exp())
        });
        let largest = want.fold(0f32, |most, v| most.max(v.abs()));
        assert!(largest > 0.0);
        for (at, y) in y.indexed_iter() {
            let apart = (y - want[at]).abs();
            assert!(
                apart <= 0.01 * largest,
                "{}: {at:?}: {y}, not {}, of {largest}",
                profile.name,
                want[at]
            );
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(6))]

    /// Any rows of zeros of any projection: their outputs are zero in every profile, and the run ends well.
    #[test]
    fn rows_of_zeros_stay_zero(
        in_proj in proptest::collection::vec(0usize..256, 0..5),
        x_proj in proptest::collection::vec(0usize..36, 0..5),
        dt_proj in proptest::collection::vec(0usize..128, 0..5),
        out_proj in proptest::collection::vec(0usize..64, 0..5),
    ) {
        let mut float = FLOAT.clone();
        let layer = &mut float.layers[0];
        for (weight, rows) in [
            (&mut layer.in_proj, &in_proj),
            (&mut layer.x_proj, &x_proj),
            (&mut layer.dt_proj, &dt_proj),
            (&mut layer.out_proj, &out_proj),
        ] {
            for row in rows {
                weight.index_axis_mut(Axis(0), *row).fill(ZERO);
            }
        }
        let layer = float.layers[0].clone();
        let model = pruned(move |l| *l = layer.clone());
        for profile in profiles() {
            let seen = run(&model, &profile);
            for (point, rows) in [
                (TracePoint::InProjOut, &in_proj),
                (TracePoint::XProjOut, &x_proj),
                (TracePoint::DtProjOut, &dt_proj),
                (TracePoint::OutProjOut, &out_proj),
            ] {
                let zero = is_zero(&real(&seen, point), rows.iter().copied());
                prop_assert!(zero, "{}: {point:?}", profile.name);
            }
        }
    }
}

/// A factor that no integer multiplier has names its block, step and row.
#[test]
fn scales_that_cannot_be_expressed_name_their_place() {
    let mut model = pruned(|_| ());
    let quantized = Arc::make_mut(model.quantized.as_mut().unwrap());
    let tiny = scalescope_sim::quant::Scale::new(f32::MIN_POSITIVE).unwrap();
    quantized.layers[1].scales.x_proj_output = tiny;
    let table = ModeTable::default();
    let profile = Profile::get("asic-int8").unwrap();
    let path = Datapath::new(&model, table.get("0").unwrap(), &profile).unwrap();
    let mut blind = scalescope_sim::trace::Blind;
    let error = path
        .prefill(&TOKENS, LogitRows::All, &mut blind)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("block 1: x_proj: token 0, row 0: multiplier: expected"),
        "{error}"
    );
}
