//! The GPU against the CPU, bit for bit. These tests need a CUDA device and are ignored without being
//! asked for: `cargo test --release --features cuda -p scalescope-sim --test cuda -- --ignored`.
//! (`scalescope check gpu` compares whole models.)

use half::f16;
use ndarray::{Array2, s};
use rayon::prelude::*;
use scalescope_sim::arith::int4::Dequantize;
use scalescope_sim::checkpoint::quantize::{Ends, quantize, to_int4};
use scalescope_sim::checkpoint::recipe::Recipe;
use scalescope_sim::checkpoint::synthetic::{
    Shape, float_model, plausible_scales, quantized_model,
};
use scalescope_sim::cuda::{CudaDatapath, Device, Function, values};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::engine::Engine;
use scalescope_sim::error::Result;
use scalescope_sim::mode::{MODES, ModeTable};
use scalescope_sim::model::{Checkpoint, FloatLayer, FloatModel, Head, Model};
use scalescope_sim::profile::{PROFILES, Profile};
use scalescope_sim::quant::{Int4Tensor, QWeight, Scale};
use scalescope_sim::trace::{Blind, Place, Probe, Recorder, Selection, Tensor, TracePoint};
use std::sync::{Arc, OnceLock};

fn device() -> &'static Arc<Device> {
    static DEVICE: OnceLock<Arc<Device>> = OnceLock::new();
    DEVICE
        .get_or_init(|| Device::open(0).expect("these tests are asked for where there is a device"))
}

fn model(d_model: usize) -> Model {
    let shape = Shape {
        name: "test",
        n_layers: 2,
        d_model,
        vocab_size: 203,
    };
    Model {
        quantized: Some(quantized_model(shape).into()),
        float: Some(float_model(shape).into()),
        original: None,
    }
}

/// A model whose linear weights have four bits, its head too.
fn four_bit_model() -> Model {
    let mut model = model(256);
    let mut quantized = model.quantized.as_deref().unwrap().clone();
    let float = model.float.as_deref().unwrap();
    to_int4(&mut quantized, float, &"w4a8".parse().unwrap()).unwrap();
    let QWeight::Int4(in_proj) = &quantized.layers[0].in_proj else {
        panic!("not four bits")
    };
    let rows = ..quantized.config.vocab_size;
    let groups = in_proj
        .groups
        .as_ref()
        .unwrap()
        .slice(s![rows, ..])
        .to_owned();
    let head = Int4Tensor::of_nibbles(
        in_proj.nibbles.slice(s![rows, ..]).to_owned(),
        // Some of them wrap.
        Some(groups.mapv(|scale| scale * half::f16::from_f32(1.1))),
        in_proj.channels[rows].to_vec(),
    );
    let head = head.unwrap();
    assert!(head.overflows(Dequantize::WrappingFma) > 0);
    quantized.head = Head::Quantized {
        input: Scale::new(0.03).unwrap(),
        weight: head.into(),
    };
    model.quantized = Some(quantized.into());
    model
}

fn tokens(length: usize, seed: usize) -> Vec<u32> {
    (0..length)
        .map(|i| ((i * 7_919 + seed * 31) % 203) as u32)
        .collect()
}

fn bits(tensor: &Tensor) -> Vec<u32> {
    match tensor {
        Tensor::I8(q) => q.codes.iter().map(|v| *v as u32).collect(),
        Tensor::Codes(q) => q.iter().map(|v| *v as u32).collect(),
        Tensor::F16(v) => v.iter().map(|v| u32::from(v.to_bits())).collect(),
        Tensor::F32(v) => v.iter().map(|v| v.to_bits()).collect(),
    }
}

/// The first difference of what two runs recorded, tensors in the order of the data and counters.
fn difference(cpu: &Recorder, gpu: &Recorder) -> Option<String> {
    let places = |r: &Recorder| r.tensors.keys().copied().collect::<Vec<_>>();
    if places(cpu) != places(gpu) {
        return Some(format!("places {:?} and {:?}", places(cpu), places(gpu)));
    }
    for (place, expected) in &cpu.tensors {
        let found = &gpu.tensors[place];
        if (expected.dim(), expected.scale()) != (found.dim(), found.scale()) {
            let words = |t: &Tensor| format!("{:?} {:?}", t.dim(), t.scale());
            return Some(format!("{place}: {} and {}", words(expected), words(found)));
        }
        let (x, y) = (bits(expected), bits(found));
        let count = (0..x.len()).filter(|i| x[*i] != y[*i]).count();
        if let Some(at) = (0..x.len()).find(|i| x[*i] != y[*i]) {
            let (of, dim, x, y) = (x.len(), expected.dim(), x[at], y[at]);
            return Some(format!(
                "{place}: {count} of {of} differ, the first at {at} of {dim:?}: cpu {x:#x}, gpu {y:#x}"
            ));
        }
    }
    (cpu.counts != gpu.counts).then(|| {
        let places = cpu.counts.keys().chain(gpu.counts.keys());
        let differing = places.filter(|place| cpu.counts.get(place) != gpu.counts.get(place));
        let words = differing.map(|place| {
            let (x, y) = (cpu.counts.get(place), gpu.counts.get(place));
            format!("counters of {place}: cpu {x:?}, gpu {y:?}")
        });
        words.take(2).collect::<Vec<_>>().join("; ")
    })
}

/// Fails with all that went wrong, or the first part of it.
fn assert_none(wrong: &[String]) {
    let shown = wrong[..wrong.len().min(40)].join("\n");
    assert!(wrong.is_empty(), "{} differences:\n{shown}", wrong.len());
}

#[test]
#[ignore = "needs a CUDA device; cargo test --release --features cuda -p scalescope-sim --test cuda -- --ignored"]
fn functions_give_the_bits_of_the_cpu() {
    /// Inputs at once, and their distance: a prime, so that every field of an f32 varies.
    const COUNT: u32 = 1 << 22;
    const STRIDE: u32 = 1021;
    let mut wrong = Vec::new();
    for function in Function::ALL {
        let x: Vec<f32> = (0..COUNT)
            .map(|i| f32::from_bits(i.wrapping_mul(STRIDE)))
            .filter(|x| function.covers(*x))
            .collect();
        let found = values(device(), function, &x).unwrap();
        let differing: Vec<String> = (x.par_iter().zip(&found))
            .filter_map(|(x, found)| {
                let expected = function.value(*x);
                let equal = expected.to_bits() == found.to_bits();
                let nan = expected.is_nan() && found.is_nan();
                (!equal && !nan).then(|| format!("{x:e}: cpu {expected:e}, gpu {found:e}"))
            })
            .collect();
        if !differing.is_empty() {
            let some = &differing[..differing.len().min(8)];
            wrong.push(format!(
                "{function:?}: {} differ: {some:?}",
                differing.len()
            ));
        }
    }
    assert_none(&wrong);
}

#[test]
#[ignore = "needs a CUDA device; cargo test --release --features cuda -p scalescope-sim --test cuda -- --ignored"]
fn every_mode_and_profile_records_the_same_tensors_and_counters() {
    let mut table = ModeTable::default();
    let per_token = "[mode.\"2-4t\"]\nbase = \"2-4\"\nconv_in = \"dynamic-token\"\n";
    let real_state = "[mode.\"0s\"]\nbase = \"0\"\nstate = \"float\"\nx = \"f16\"\n";
    table.add_toml(&format!("{per_token}{real_state}")).unwrap();
    let mut wrong = Vec::new();
    // Widths that are not a multiple of any vector, and those that are.
    for (model, lengths) in [
        (model(64), &[1, 3, 129, 700][..]),
        (model(48), &[37, 300]),
        (model(12), &[5]),
        (model(20), &[9]),
        (four_bit_model(), &[1, 37, 300]),
    ] {
        let d_model = model.config().unwrap().d_model;
        for mode in table.rows() {
            for profile in PROFILES {
                let path = || Datapath::new(&model, mode, profile).unwrap();
                let (cpu, gpu) = (path(), CudaDatapath::new(path(), device()).unwrap());
                for length in lengths {
                    let what = format!(
                        "M {d_model}, mode {}, {}, L {length}",
                        mode.name, profile.name
                    );
                    let (mut cpu, mut gpu) = (Engine::begin(&cpu), gpu.begin());
                    let recorder = || Recorder::new(Selection::default());
                    let (mut expected, mut found) = (recorder(), recorder());
                    let (rows, tokens) = (LogitRows::All, tokens(*length, 1));
                    cpu.prefill(&tokens, rows, &mut expected).unwrap();
                    gpu.prefill(&tokens, rows, &mut found).unwrap();
                    let differs = difference(&expected, &found);
                    wrong.extend(differs.map(|d| format!("{what}: {d}")));
                    for step in 0..3 {
                        let (mut expected, mut found) = (recorder(), recorder());
                        cpu.decode(40 + step, &mut expected).unwrap();
                        gpu.decode(40 + step, &mut found).unwrap();
                        let differs = difference(&expected, &found);
                        wrong.extend(differs.map(|d| format!("{what}, step {step}: {d}")));
                    }
                }
            }
        }
    }
    assert_none(&wrong);
}

/// Records tensors and does not count, so that kernels run that cannot.
struct Uncounted(Recorder);

impl Probe for Uncounted {
    fn wants(&self, place: Place) -> bool {
        self.0.wants(place)
    }

    fn counts(&self) -> bool {
        false
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        self.0.visit(place, value)
    }
}

/// Whole tiles of 64 rows, and one that is not whole; outputs that do not fill the last panel.
#[test]
#[ignore = "needs a CUDA device; cargo test --release --features cuda -p scalescope-sim --test cuda -- --ignored"]
fn tensors_that_nobody_counts_have_the_bits_of_the_cpu() {
    let table = ModeTable::default();
    let mut wrong = Vec::new();
    for d_model in [256, 768] {
        let model = model(d_model);
        for mode in ["0", "2-1", "2-4", "3"] {
            let mode = table.get(mode).unwrap();
            for profile in PROFILES {
                let path = || Datapath::new(&model, mode, profile).unwrap();
                let (cpu, gpu) = (path(), CudaDatapath::new(path(), device()).unwrap());
                let text = tokens(300, 6);
                let mut expected = Recorder::default();
                cpu.prefill(&text, LogitRows::Last, &mut expected).unwrap();
                let mut found = Uncounted(Recorder::default());
                gpu.begin()
                    .prefill(&text, LogitRows::Last, &mut found)
                    .unwrap();
                for (place, tensor) in &expected.tensors {
                    let equal =
                        (found.0.tensors.get(place)).is_some_and(|t| bits(t) == bits(tensor));
                    let what = format!("{d_model}: mode {}, {}, {place}", mode.name, profile.name);
                    wrong.extend((!equal).then_some(what));
                }
            }
        }
    }
    assert_none(&wrong);
}

#[test]
#[ignore = "needs a CUDA device; cargo test --release --features cuda -p scalescope-sim --test cuda -- --ignored"]
fn sequences_of_a_batch_get_the_bits_they_get_alone() {
    let model = model(64);
    let mut wrong = Vec::new();
    for mode in MODES {
        for profile in PROFILES {
            let path = || Datapath::new(&model, mode, profile).unwrap();
            let (cpu, gpu) = (path(), CudaDatapath::new(path(), device()).unwrap());
            for length in [2, 133] {
                let sequences: Vec<Vec<u32>> = (0..3).map(|seed| tokens(length, seed)).collect();
                for rows in [LogitRows::Last, LogitRows::From(1), LogitRows::All] {
                    let run = gpu.prefill_batch(&sequences, rows, &mut Blind);
                    let (logits, mut state) = run.unwrap();
                    let next = gpu
                        .decode_batch(&[7, 8, 9], &mut state, &mut Blind)
                        .unwrap();
                    let (mut expected, mut expected_next) = (Vec::new(), Vec::new());
                    for (sequence, token) in sequences.iter().zip([7, 8, 9]) {
                        let (logits, mut state) = cpu.prefill(sequence, rows, &mut Blind).unwrap();
                        expected.extend(bits(&logits));
                        expected_next
                            .extend(bits(&cpu.decode(token, &mut state, &mut Blind).unwrap()));
                    }
                    let what =
                        format!("mode {}, {}, L {length}, {rows:?}", mode.name, profile.name);
                    wrong.extend((bits(&logits) != expected).then(|| what.clone()));
                    wrong.extend((bits(&next) != expected_next).then(|| format!("{what}, next")));
                }
            }
        }
    }
    assert_none(&wrong);
}

/// Puts another value in place of one element of every tensor it sees.
struct Meddler {
    place: Place,
}

impl Probe for Meddler {
    fn wants(&self, place: Place) -> bool {
        place == self.place
    }

    fn visit(&mut self, _: Place, value: &mut Tensor) -> Result<()> {
        match value {
            Tensor::I8(q) => q.codes.map_inplace(|v| *v = v.wrapping_neg()),
            Tensor::Codes(q) => q.map_inplace(|v| *v = v.wrapping_neg()),
            Tensor::F16(v) => v.map_inplace(|v| *v = -*v),
            // A scale stays one.
            Tensor::F32(v) if self.place.point.is_scale() => v.map_inplace(|v| *v *= 1.5),
            Tensor::F32(v) => v.map_inplace(|v| *v = -*v),
        }
        Ok(())
    }
}

#[test]
#[ignore = "needs a CUDA device; cargo test --release --features cuda -p scalescope-sim --test cuda -- --ignored"]
fn what_a_probe_puts_in_place_goes_on() {
    let model = model(64);
    let profile = Profile::get("deployed").unwrap();
    let mut wrong = Vec::new();
    for mode in MODES {
        let path = || Datapath::new(&model, mode, &profile).unwrap();
        let (cpu, gpu) = (path(), CudaDatapath::new(path(), device()).unwrap());
        let tokens = tokens(30, 2);
        let run = |engine: &dyn Engine, place| {
            let mut sequence = engine.begin();
            let mut probe = Meddler { place };
            let logits = sequence
                .prefill(&tokens, LogitRows::All, &mut probe)
                .unwrap();
            (
                bits(&logits),
                bits(&sequence.decode(5, &mut probe).unwrap()),
            )
        };
        let places = TracePoint::ALL
            .into_iter()
            .map(|point| match point.in_layer() {
                true => Place::layer(1, point),
                false => Place::end(point),
            });
        for place in places {
            let equal = run(&cpu, place) == run(&gpu, place);
            wrong.extend((!equal).then(|| format!("mode {}, {place}", mode.name)));
        }
    }
    assert_none(&wrong);
}

/// Ends in INT8, and a checkpoint in f32 as it is.
#[test]
#[ignore = "needs a CUDA device; cargo test --release --features cuda -p scalescope-sim --test cuda -- --ignored"]
fn int8_ends_and_wide_checkpoints_give_the_bits_of_the_cpu() {
    let shape = Shape {
        name: "test",
        n_layers: 2,
        d_model: 64,
        vocab_size: 203,
    };
    let float = float_model(shape);
    let scales = plausible_scales(&float.config);
    let head_input = Scale::new(0.04).unwrap();
    let ends = Ends::Int8 { head_input };
    let quantized = quantize(&float, &scales, &Recipe::QUAMBA, ends).unwrap();
    let model = Model {
        quantized: Some(quantized.into()),
        original: Some(Arc::new(Checkpoint::F32(wide(&float)))),
        ..Model::default()
    };
    let table = ModeTable::default();
    let mut wrong = Vec::new();
    for mode in ["0", "2-4", "3", "original"] {
        let mode = table.get(mode).unwrap();
        for profile in PROFILES {
            let path = || Datapath::new(&model, mode, profile).unwrap();
            let (cpu, gpu) = (path(), CudaDatapath::new(path(), device()).unwrap());
            let record = |engine: &dyn Engine| {
                let mut sequence = engine.begin();
                let mut seen = vec![Recorder::default(), Recorder::default()];
                let text = tokens(33, 5);
                sequence
                    .prefill(&text, LogitRows::All, &mut seen[0])
                    .unwrap();
                sequence.decode(7, &mut seen[1]).unwrap();
                seen
            };
            for (phase, (cpu, gpu)) in record(&cpu).iter().zip(&record(&gpu)).enumerate() {
                let normed = Place::end(TracePoint::NormFOut);
                assert_eq!(cpu.tensors.contains_key(&normed), mode.needs_quantized());
                let what = format!("mode {}, {}, phase {phase}", mode.name, profile.name);
                wrong.extend(difference(cpu, gpu).map(|d| format!("{what}: {d}")));
            }
        }
    }
    assert_none(&wrong);
}

/// The same weights and a little more, which binary16 does not hold.
fn wide(float: &FloatModel) -> FloatModel<f32> {
    let value = |w: &f16| f32::from(*w) * (1.0 + 1e-5);
    let vector = |v: &[f16]| -> Vec<f32> { v.iter().map(value).collect() };
    let matrix = |m: &Array2<f16>| m.map(value);
    FloatModel {
        config: float.config.clone(),
        embedding: matrix(&float.embedding),
        layers: (float.layers.iter())
            .map(|l| FloatLayer {
                norm: vector(&l.norm),
                in_proj: matrix(&l.in_proj),
                conv_weight: matrix(&l.conv_weight),
                conv_bias: vector(&l.conv_bias),
                x_proj: matrix(&l.x_proj),
                dt_proj: matrix(&l.dt_proj),
                dt_bias: vector(&l.dt_bias),
                a_log: l.a_log.clone(),
                d: l.d.clone(),
                out_proj: matrix(&l.out_proj),
            })
            .collect(),
        norm_f: vector(&float.norm_f),
        head: matrix(&float.head),
        rotated: false,
    }
}

#[test]
#[ignore = "needs a CUDA device; cargo test --release --features cuda -p scalescope-sim --test cuda -- --ignored"]
fn a_recorded_token_gives_the_bits_of_the_cpu() {
    let model = model(64);
    let mut wrong = Vec::new();
    for mode in MODES {
        for profile in PROFILES {
            let path = || Datapath::new(&model, mode, profile).unwrap();
            let (cpu, gpu) = (path(), CudaDatapath::new(path(), device()).unwrap());
            let (mut expected, mut found) = (cpu.begin(), gpu.begin());
            let text = tokens(20, 3);
            for sequence in [&mut expected, &mut found] {
                sequence
                    .prefill(&text, LogitRows::None, &mut Blind)
                    .unwrap();
            }
            for (i, token) in tokens(12, 4).into_iter().enumerate() {
                let expected = expected.decode(token, &mut Blind).unwrap();
                // A probe in between moves the states from where the recording knew them.
                let mut recorder = Recorder::new(Selection::default());
                let probe: &mut dyn Probe = if i == 6 { &mut recorder } else { &mut Blind };
                let found = found.decode(token, probe).unwrap();
                let what = format!("mode {}, {}, token {i}", mode.name, profile.name);
                wrong.extend((bits(&expected) != bits(&found)).then_some(what));
            }
        }
    }
    assert_none(&wrong);
}
