//! Flips in a trace and in the model that it came from.

use super::{Fate, Kind, broken, embedded_trace};
use crate::check::{CheckOptions, CheckReport, check};
use crate::compare::{Tolerance, Tolerances};
use crate::trace_file::{Points, TraceFile};
use crate::value::Value;
use half::f16;
use ndarray::s;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use scalescope_sim::mode::{MODES, ModeSpec};
use scalescope_sim::model::{
    ActivationScales, Head, Model, QuantizedLayer, QuantizedModel, ScaleKey,
};
use scalescope_sim::profile::Profile;
use scalescope_sim::quant::{QTensor, QWeight, Scale};
use scalescope_sim::random::Congruential;
use scalescope_sim::sample;
use scalescope_sim::trace::{Place, Probe, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Flips of each tensor of a trace, of each weight.
const FLIPS: usize = 4;
const WEIGHT_FLIPS: usize = 10;

/// Blocks that run: those up to the last one that is flipped.
const BLOCKS: usize = 7;

/// The first blocks of the sample model, almost without a head: what a flip costs in time.
fn first_blocks() -> Result<Model> {
    let model = sample::try_model()?;
    let quantized = model.quantized.as_deref();
    let mut quantized = quantized.expect("the sample model is quantized").clone();
    quantized.layers.truncate(BLOCKS);
    quantized.config.n_layers = BLOCKS;
    if let Head::F16(head) = &mut quantized.head {
        *head = head.slice(s![..1, ..]).to_owned();
    }
    Ok(Model {
        quantized: Some(Arc::new(quantized)),
        ..Model::default()
    })
}

/// One decode step of the sample model in mode 0, profile `deployed`.
struct Subject {
    model: Model,
    trace: TraceFile,
    mode: &'static ModeSpec,
    profile: Profile,
}

impl Subject {
    fn check(&self, model: &Model, trace: &TraceFile) -> Result<CheckReport> {
        let path = Datapath::new(model, self.mode, &self.profile)?;
        check(&path, trace, &CheckOptions::default())
    }

    /// Every tensor that the step makes where the trace has one, each from the trace's inputs.
    fn tensors(&self, model: &Model) -> Result<BTreeMap<Place, Tensor>> {
        let path = Datapath::new(model, self.mode, &self.profile)?;
        let step = &self.trace.steps[0];
        let mut probe = Snapshot {
            points: &step.sequences[0],
            made: BTreeMap::new(),
        };
        path.decode(step.tokens[0], &mut path.empty_state(), &mut probe)?;
        Ok(probe.made)
    }
}

/// Keeps what it is shown and puts the trace's values in place.
struct Snapshot<'a> {
    points: &'a Points,
    made: BTreeMap<Place, Tensor>,
}

impl Probe for Snapshot<'_> {
    fn wants(&self, place: Place) -> bool {
        self.points.contains_key(&place)
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        self.made.insert(place, value.clone());
        match (value, &self.points[&place]) {
            (Tensor::I8(q), Value::I8(codes)) => q.codes.assign(codes),
            (Tensor::F16(v), Value::F16(file)) => v.assign(file),
            (Tensor::F32(v), Value::F32(file)) => v.assign(file),
            _ => {}
        }
        Ok(())
    }
}

pub(super) fn kinds(random: &mut Congruential) -> Result<Vec<Kind>> {
    let mut trace = embedded_trace()?;
    trace.steps.truncate(1);
    for points in &mut trace.steps[0].sequences {
        points.retain(|place, _| place.layer.is_some_and(|layer| layer < BLOCKS));
    }
    let subject = Subject {
        model: first_blocks()?,
        trace,
        mode: &MODES[0],
        profile: Profile::get("deployed")?,
    };
    let report = subject.check(&subject.model, &subject.trace)?;
    if report.exit_code() != 0 {
        return Err(broken("decode trace", report.summary));
    }
    let quantized = subject.model.quantized.as_deref();
    let quantized = quantized.expect("made quantized");
    let before = subject.tensors(&subject.model)?;
    let judged: Vec<Place> = (before.keys().copied())
        .filter(|place| {
            let point = place.point.name();
            let given = |g: &crate::check::Given| (g.layer, g.point) == (place.layer, point);
            !report.given.iter().any(given)
        })
        .collect();
    let judge = |altered: Result<QuantizedModel>| -> Result<Fate> {
        let Ok(altered) = altered else {
            return Ok(Fate::Detected); // refused as no scale at all
        };
        let model = Model {
            quantized: Some(Arc::new(altered)),
            ..Model::default()
        };
        let reported = subject.check(&model, &subject.trace)?.exit_code() != 0;
        let after = subject.tensors(&model)?;
        let changed = judged.iter().any(|p| !same(&before[p], &after[p]));
        Ok(Fate::of(reported, changed))
    };
    let mut kinds = flip_values(&subject, &report, random)?;
    kinds.push(flip_activation_scales(quantized, &judge)?);
    kinds.push(flip_weight_scales(quantized, &judge)?);
    kinds.push(flip_weights(quantized, random, &judge)?);
    Ok(kinds)
}

/// Equality of bits; the scale of codes is compared through what reads them.
fn same(a: &Tensor, b: &Tensor) -> bool {
    match (a, b) {
        (Tensor::I8(a), Tensor::I8(b)) => a.codes == b.codes,
        (Tensor::Codes(a), Tensor::Codes(b)) => a == b,
        (Tensor::F16(a), Tensor::F16(b)) => {
            a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        (Tensor::F32(a), Tensor::F32(b)) => {
            a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        _ => false,
    }
}

fn flip_values(
    subject: &Subject,
    report: &CheckReport,
    random: &mut Congruential,
) -> Result<Vec<Kind>> {
    let mut judged = Kind::new("golden values of a trace");
    let mut given = Kind::new("given values of a trace");
    let mut trace = subject.trace.clone();
    let places: Vec<Place> = trace.steps[0].places();
    for place in places {
        let is_given =
            |g: &crate::check::Given| g.layer == place.layer && g.point == place.point.name();
        let is_given = report.given.iter().any(is_given);
        let exact = Tolerances::default().of(place) == Tolerance::Exact;
        for _ in 0..FLIPS {
            let value = |trace: &mut TraceFile, at: usize, bit: usize| {
                let points = &mut trace.steps[0].sequences[0];
                flip(
                    points.get_mut(&place).expect("a place of the step"),
                    at,
                    bit,
                );
            };
            let count = trace.steps[0].sequences[0][&place].elements().len();
            let (at, bit) = (random.below(count), random.below(32));
            value(&mut trace, at, bit);
            let reported = subject.check(&subject.model, &trace)?.exit_code() != 0;
            value(&mut trace, at, bit);
            // What a given value or a tolerance lets pass is no miss.
            let fate = Fate::of(reported, exact && !is_given);
            let kind = if is_given { &mut given } else { &mut judged };
            kind.add(fate, || format!("{place}[{at}] bit {bit}"));
        }
    }
    Ok(vec![judged, given])
}

fn flip(value: &mut Value, at: usize, bit: usize) {
    match value {
        Value::I8(a) => a.as_slice_mut().expect("row-major")[at] ^= (1u8 << (bit % 8)) as i8,
        Value::F16(a) => {
            let v = &mut a.as_slice_mut().expect("row-major")[at];
            *v = f16::from_bits(v.to_bits() ^ 1 << (bit % 16));
        }
        Value::F32(a) => {
            let v = &mut a.as_slice_mut().expect("row-major")[at];
            *v = f32::from_bits(v.to_bits() ^ 1 << (bit % 32));
        }
    }
}

fn flipped(scale: Scale, bit: u32) -> Result<Scale> {
    Scale::new(f32::from_bits(scale.get().to_bits() ^ 1 << bit))
}

type Judge<'a> = &'a dyn Fn(Result<QuantizedModel>) -> Result<Fate>;

/// Every bit of every activation scale of block 0.
fn flip_activation_scales(model: &QuantizedModel, judge: Judge) -> Result<Kind> {
    let mut kind = Kind::new("activation scales");
    for key in ScaleKey::ALL {
        for bit in 0..32 {
            let mut altered = model.clone();
            let scales = model.layers[0].scales;
            let scales = ActivationScales::from_fn(|other| {
                let scale = scales.get(other);
                if other == key {
                    flipped(scale, bit)
                } else {
                    Ok(scale)
                }
            });
            let altered = scales.map(|scales| {
                altered.layers[0].scales = scales;
                altered
            });
            let fate = judge(altered)?;
            kind.add(fate, || format!("{} bit {bit}", key.name()));
        }
    }
    Ok(kind)
}

/// A matrix or a vector of a block.
fn parts(layer: &mut QuantizedLayer) -> [(&'static str, &mut [i8], &mut Scale); 9] {
    fn matrix(t: &mut QTensor) -> (&mut [i8], &mut Scale) {
        let codes = t.codes.as_slice_mut().expect("weights are row-major");
        (codes, &mut t.scale)
    }
    fn weight(w: &mut QWeight) -> (&mut [i8], &mut Scale) {
        match w {
            QWeight::Int8(t) => matrix(t),
            QWeight::Int4(_) => unreachable!("the sample model has eight-bit weights"),
        }
    }
    let (w0, s0) = weight(&mut layer.in_proj);
    let (w1, s1) = matrix(&mut layer.conv_weight);
    let (w2, s2) = weight(&mut layer.x_proj);
    let (w3, s3) = matrix(&mut layer.dt_proj);
    let (w4, s4) = matrix(&mut layer.a_log);
    let (w5, s5) = weight(&mut layer.out_proj);
    [
        ("in_proj.weight", w0, s0),
        ("conv1d.weight", w1, s1),
        ("x_proj.weight", w2, s2),
        ("dt_proj.weight", w3, s3),
        ("ssm.A_log", w4, s4),
        ("out_proj.weight", w5, s5),
        (
            "conv1d.bias",
            &mut layer.conv_bias.codes,
            &mut layer.conv_bias.scale,
        ),
        (
            "ssm.dt_bias",
            &mut layer.dt_bias.codes,
            &mut layer.dt_bias.scale,
        ),
        ("ssm.D", &mut layer.d.codes, &mut layer.d.scale),
    ]
}

/// Every third bit of every weight scale of block 0.
fn flip_weight_scales(model: &QuantizedModel, judge: Judge) -> Result<Kind> {
    let mut kind = Kind::new("weight scales");
    for part in 0..9 {
        for bit in (0..32).step_by(3) {
            let mut altered = model.clone();
            let (name, _, scale) = parts(&mut altered.layers[0])
                .into_iter()
                .nth(part)
                .expect("nine");
            let fate = match flipped(*scale, bit) {
                Ok(other) => {
                    *scale = other;
                    judge(Ok(altered))?
                }
                Err(refused) => judge(Err(refused))?,
            };
            kind.add(fate, || format!("{name}_scale bit {bit}"));
        }
    }
    Ok(kind)
}

/// Sampled bits of the weights of block 6.
fn flip_weights(model: &QuantizedModel, random: &mut Congruential, judge: Judge) -> Result<Kind> {
    let mut kind = Kind::new("weights");
    for part in 0..9 {
        for _ in 0..WEIGHT_FLIPS {
            let mut altered = model.clone();
            let (name, codes, _) = parts(&mut altered.layers[6])
                .into_iter()
                .nth(part)
                .expect("nine");
            let (at, bit) = (random.below(codes.len()), random.below(8));
            codes[at] ^= (1u8 << bit) as i8;
            let fate = judge(Ok(altered))?;
            kind.add(fate, || format!("{name}[{at}] bit {bit}"));
        }
    }
    Ok(kind)
}
