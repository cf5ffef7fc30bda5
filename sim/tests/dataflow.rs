//! The table of the block held against the engine. In every mode (the built-in ones and ones drawn at
//! random), profile and phase:
//!
//! - the tensors that a probe sees are the rows of the table, with their types, scales and shapes;
//! - with every input held, changing a tensor changes what the table says reads it, and nothing else;
//! - with every input held, changing the scale of one use changes what the table says it goes into;
//! - changing a rule changes only what the table says runs by it;
//! - quantizers count where the table has one.

use half::f16;
use ndarray::Array2;
use scalescope_sim::arith::accumulate::{AccOverflow, Accumulator};
use scalescope_sim::arith::quantizer::QUANTIZERS;
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::checkpoint::synthetic::{Shape, float_model, quantized_model};
use scalescope_sim::dataflow::{Block, Columns, Format, Origin, Phase, Quantizer, Step};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::error::Result;
use scalescope_sim::fault::{Defect, Fault, ScaleSite};
use scalescope_sim::mode::*;
use scalescope_sim::model::{Checkpoint, Model};
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::unit::ActivationGranularity;
use scalescope_sim::profile::{InputScale, Profile, QuantizerRule, StepRules};
use scalescope_sim::trace::{Place, Probe, Tensor, TracePoint};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// The block that is looked at: it has one before it.
const LAYER: usize = 1;
/// Tokens of the prefill; two more are decoded.
const LENGTH: usize = 9;

type Tensors = BTreeMap<Place, Tensor>;
/// Quantizers whose rounding was seen to matter.
type Told = BTreeSet<QuantizerRule>;

fn model() -> Model {
    let shape = Shape::named("tiny").unwrap();
    let float = Arc::new(float_model(shape));
    Model {
        quantized: Some(Arc::new(quantized_model(shape))),
        float: Some(float.clone()),
        original: Some(Arc::new(Checkpoint::F16((*float).clone()))),
    }
}

fn tokens() -> Vec<u32> {
    (0..LENGTH as u32 + 2)
        .map(|i| (i * 97 + 13) % 256)
        .collect()
}

/// Notes what is made; holds every tensor at a clean run's, but one.
#[derive(Default)]
struct Hold<'a> {
    clean: Option<&'a Tensors>,
    /// A place, and the columns of it, to be changed.
    change: Option<(Place, std::ops::Range<usize>)>,
    made: Tensors,
    counted: BTreeSet<Place>,
}

impl Probe for Hold<'_> {
    fn wants(&self, _: Place) -> bool {
        true
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        self.made.insert(place, value.clone());
        if let Some(clean) = self.clean.and_then(|clean| clean.get(&place)) {
            *value = clean.clone();
        }
        if let Some((changed, columns)) = &self.change
            && *changed == place
        {
            *value = other(value, columns.clone());
        }
        Ok(())
    }

    fn count(&mut self, place: Place, status: Status) {
        if status.values > 0 {
            self.counted.insert(place);
        }
    }
}

/// A tensor with other elements in some columns.
fn other(value: &Tensor, columns: std::ops::Range<usize>) -> Tensor {
    fn map<T: Copy>(values: &mut Array2<T>, columns: std::ops::Range<usize>, f: impl Fn(T) -> T) {
        for mut row in values.rows_mut() {
            for v in row.slice_mut(ndarray::s![columns.clone()]) {
                *v = f(*v);
            }
        }
    }
    let code = |q: i8| if q >= 0 { q - 45 } else { q + 45 };
    let mut value = value.clone();
    match &mut value {
        Tensor::I8(q) => map(&mut q.codes, columns, code),
        Tensor::Codes(q) => map(q, columns, code),
        Tensor::F16(v) => map(v, columns, |v| f16::from_f32(0.7 - 1.5 * v.to_f32())),
        // Positive: it may be a scale.
        Tensor::F32(v) if v.ncols() == 1 => map(v, columns, |v| v * 3.0),
        Tensor::F32(v) => map(v, columns, |v| 0.7 - 1.5 * v),
    }
    value
}

/// Whether the elements differ, whatever the scale of codes.
fn differ(a: &Tensor, b: &Tensor) -> bool {
    match (a, b) {
        (Tensor::I8(a), Tensor::I8(b)) => a.codes != b.codes,
        (a, b) => a != b,
    }
}

/// One phase of a run: a prefill, or the second of two decoded tokens (the first is held too, so that
/// states can be changed in it).
struct Setting<'m> {
    path: Datapath<'m>,
    block: Block,
    name: String,
}

/// Runs a phase. `before` is held and changed in the step before it, `now` in the phase itself.
fn run<'a>(
    path: &Datapath,
    phase: Phase,
    mut before: Hold<'a>,
    mut now: Hold<'a>,
) -> [Hold<'a>; 2] {
    let tokens = tokens();
    match phase {
        Phase::Prefill => {
            path.prefill(&tokens[..LENGTH], LogitRows::All, &mut now)
                .unwrap();
        }
        Phase::Decode => {
            let mut blind = scalescope_sim::trace::Blind;
            let (_, mut state) = path
                .prefill(&tokens[..LENGTH], LogitRows::None, &mut blind)
                .unwrap();
            path.decode(tokens[LENGTH], &mut state, &mut before)
                .unwrap();
            path.decode(tokens[LENGTH + 1], &mut state, &mut now)
                .unwrap();
        }
    }
    [before, now]
}

impl<'m> Setting<'m> {
    fn phase(&self) -> Phase {
        self.block.phase()
    }

    fn clean(&self) -> [Hold<'static>; 2] {
        run(&self.path, self.phase(), Hold::default(), Hold::default())
    }

    /// The points of the block (or the end) whose tensors another path makes otherwise, all inputs held.
    fn altered(&self, path: &Datapath, clean: &[Hold; 2]) -> BTreeSet<TracePoint> {
        let hold = |i: usize| Hold {
            clean: Some(&clean[i].made),
            ..Hold::default()
        };
        let [_, seen] = run(path, self.phase(), hold(0), hold(1));
        changed(&seen.made, &clean[1].made)
    }

    fn faulty(&self, defect: Defect) -> Datapath<'m> {
        let mut path = self.path.clone();
        path.inject(&Fault {
            layer: Some(LAYER),
            defect,
        })
        .unwrap();
        path
    }
}

fn of_interest(place: Place) -> bool {
    place.layer.is_none_or(|layer| layer == LAYER)
}

fn changed(made: &Tensors, clean: &Tensors) -> BTreeSet<TracePoint> {
    let places = clean.keys().filter(|place| of_interest(**place));
    let differing = places.filter(|place| differ(&made[place], &clean[place]));
    differing.map(|place| place.point).collect()
}

fn rows_are_what_is_seen(s: &Setting, clean: &Hold) {
    let seen: BTreeSet<TracePoint> = (clean.made.keys().filter(|p| of_interest(**p)))
        .map(|p| p.point)
        .collect();
    let shown: BTreeSet<TracePoint> = s
        .block
        .rows()
        .iter()
        .filter(|row| row.shown)
        .map(|row| row.point)
        .collect();
    assert_eq!(seen, shown, "{}", s.name);
    let length = match s.phase() {
        Phase::Prefill => LENGTH,
        Phase::Decode => 1,
    };
    for row in s.block.rows().iter().filter(|row| row.shown) {
        let place = Place {
            layer: row.point.in_layer().then_some(LAYER),
            point: row.point,
        };
        let value = &clean.made[&place];
        let dims = row.shape.map(|dim| dim.of(s.path.config(), length));
        assert_eq!(value.dim(), (dims[0], dims[1]), "{} {place}", s.name);
        match (row.format, value) {
            (Format::Int8(by), Tensor::I8(q)) => {
                assert_eq!(
                    q.scale,
                    s.path.scales(LAYER).unwrap().get(by),
                    "{} {place}",
                    s.name
                );
            }
            (Format::Codes, Tensor::Codes(_))
            | (Format::F16, Tensor::F16(_))
            | (Format::F32, Tensor::F32(_)) => {}
            (format, value) => panic!("{} {place}: {format:?}, found {}", s.name, value.dtype()),
        }
        assert_eq!(
            clean.counted.contains(&place),
            row.quantizer.is_some_and(counts),
            "{} {place} counts",
            s.name
        );
    }
}

/// A quantizer that scales a whole tensor to its absmax has nothing to count.
fn counts(quantizer: Quantizer) -> bool {
    !matches!(quantizer, Quantizer::Tensor(_)) && quantizer != Quantizer::Token(ScaleUse::ConvIn)
}

/// Every (tensor, columns) that some row reads.
fn origins(s: &Setting) -> BTreeSet<(Origin, Columns)> {
    let rows = s.block.rows().iter();
    rows.flat_map(|row| row.reads.iter().map(|read| (read.from, read.columns)))
        .collect()
}

fn reads_are_what_changes(s: &Setting, clean: &[Hold; 2]) {
    for (origin, columns) in origins(s) {
        let (step, place) = match origin {
            Origin::Here(point) => (
                1,
                Place {
                    layer: point.in_layer().then_some(LAYER),
                    point,
                },
            ),
            Origin::BlockBefore(point) => (1, Place::layer(LAYER - 1, point)),
            Origin::TokenBefore(TracePoint::SsmState) => continue, // the step before is a decode
            Origin::TokenBefore(point) => (0, Place::layer(LAYER, point)),
        };
        let tensor = &clean[step].made[&place];
        let range = columns.range(s.path.config(), tensor.dim().1);
        let hold = |i: usize| Hold {
            clean: Some(&clean[i].made),
            change: (i == step).then(|| (place, range.clone())),
            ..Hold::default()
        };
        let [_, seen] = run(&s.path, s.phase(), hold(0), hold(1));
        let mut found = changed(&seen.made, &clean[1].made);
        // What leaves this block is not read here; the end of the model reads what leaves the last one.
        let at_end = |point: &TracePoint| !point.in_layer();
        if matches!(origin, Origin::BlockBefore(_)) {
            found.retain(|point| !at_end(point));
        }
        let rows = s.block.rows().iter().filter(|row| row.shown);
        let reading = rows.filter(|row| {
            let mut reads = row.reads.iter();
            reads.any(|read| {
                read.from == origin
                    && (read.columns == columns
                        || columns == Columns::All
                        || read.columns == Columns::All)
            })
        });
        let mut expected: BTreeSet<TracePoint> = reading.map(|row| row.point).collect();
        match origin {
            Origin::BlockBefore(_) => expected.retain(|point| !at_end(point)),
            Origin::Here(TracePoint::OutProjOut | TracePoint::ResidualOut) => {}
            _ => {}
        }
        // The block looked at is the last one: what leaves it is read by the end.
        if let Origin::Here(point) = origin
            && s.block
                .row(TracePoint::FinalResidual)
                .unwrap()
                .reads
                .iter()
                .any(|r| r.from == Origin::BlockBefore(point))
        {
            expected.insert(TracePoint::FinalResidual);
        }
        // One scale for a whole window: it changes only if the largest magnitude does.
        if s.path.mode().conv_in == ConvInput::DynamicTensor && s.phase() == Phase::Decode {
            use TracePoint as P;
            let by_scale = [P::ConvIn, P::ConvInScale, P::ConvOut, P::ConvOutF32];
            expected.retain(|point| found.contains(point) || !by_scale.contains(point));
        }
        assert_eq!(
            found, expected,
            "{}: {columns:?} of {origin:?} changed",
            s.name
        );
    }
}

fn scales_are_what_changes(s: &Setting, clean: &[Hold; 2]) {
    if s.path.scales(LAYER).is_none() {
        return;
    }
    for scale in ScaleUse::ALL {
        let site = ScaleSite::Use(scale);
        let path = s.faulty(Defect::StaleScale { site, factor: 1.9 });
        let found = s.altered(&path, clean);
        let hidden = |point: &TracePoint| !s.block.row(*point).unwrap().shown;
        let mut expected: BTreeSet<TracePoint> =
            s.block.altered_by_scale(scale).into_iter().collect();
        // Codes of a dynamic quantizer stay when all values grow alike; their scale does not.
        let grows = |point: &TracePoint| s.block.row(*point).unwrap().format == Format::Codes;
        expected.retain(|point| !hidden(point) && (!grows(point) || found.contains(point)));
        // Where nothing lies beyond the first scale's codes, the second one is not used.
        if scale == ScaleUse::ScanUMax {
            expected.retain(|point| found.contains(point));
        }
        assert_eq!(found, expected, "{}: scale {}", s.name, scale.name());
    }
}

fn rules_are_what_changes(s: &Setting, clean: &[Hold; 2], model: &Model) -> Told {
    let mut told = Told::new();
    let narrow = Accumulator::new(9, AccOverflow::Wrap).unwrap();
    type Edit = (&'static str, fn(&mut StepRules, Accumulator));
    let edits: [Edit; 9] = [
        ("norm_out", |r, _| r.norm_out.rounding = Rounding::Floor),
        ("linear.in_proj", |r, by| r.linear.in_proj.accumulator = by),
        ("linear.x_proj", |r, by| r.linear.x_proj.accumulator = by),
        ("linear.dt_proj", |r, by| r.linear.dt_proj.accumulator = by),
        ("linear.out_proj", |r, by| {
            r.linear.out_proj.accumulator = by
        }),
        ("conv_in", |r, _| r.conv_in.rounding = Rounding::Floor),
        ("conv", |r, _| r.conv.input_scale = InputScale::Twice),
        ("requantize", |r, _| r.requantize.rounding = Rounding::Floor),
        ("hadamard", |r, _| r.hadamard.rounding = Rounding::Floor),
    ];
    for by in [Implementation::Cuda, Implementation::Torch] {
        let edited = |edit: &dyn Fn(&mut StepRules)| {
            let mut profile = s.path.profile().clone();
            let arithmetic = match by {
                Implementation::Cuda => &mut profile.cuda,
                Implementation::Torch => &mut profile.torch,
            };
            edit(&mut arithmetic.prefill);
            edit(&mut arithmetic.decode);
            let path = Datapath::new(model, s.path.mode(), &profile).unwrap();
            let mut found = s.altered(&path, clean);
            found.retain(|point| point.in_layer());
            found
        };
        for (path, edit) in edits {
            let found = edited(&|rules| edit(rules, narrow));
            let mut expected: BTreeSet<TracePoint> =
                s.block.altered_by_rule(by, path).into_iter().collect();
            expected.extend(inside_the_window(s, by, path));
            assert!(
                found.is_subset(&expected),
                "{}: rule {by:?} {path}: {found:?}, table {expected:?}",
                s.name
            );
        }
        for rule in QuantizerRule::ALL {
            let found = edited(&|rules| rule.edit(rules, |r| r.rounding = Rounding::Floor));
            // Inside a step a unit may round by it too.
            let mut expected: BTreeSet<TracePoint> = s
                .block
                .altered_by_rule(by, rule.path())
                .into_iter()
                .collect();
            expected.extend(inside_the_window(s, by, rule.path()));
            // Rounding moves nothing where every value lies on the grid already.
            assert!(
                found.is_subset(&expected),
                "{}: quantizer {by:?} {rule:?}: {found:?}, table {expected:?}",
                s.name
            );
            told.extend(found.iter().map(|_| rule));
        }
    }
    told
}

/// A quantizer that finds its scale at run time sees the history too, whose codes nobody is shown.
fn inside_the_window(s: &Setting, by: Implementation, path: &str) -> Vec<TracePoint> {
    use ConvInput::{DynamicTensor, DynamicToken};
    let dynamic = matches!(s.path.mode().conv_in, DynamicTensor | DynamicToken);
    let its = by == Implementation::Torch && path == "requantize";
    match dynamic && its && s.phase() == Phase::Decode {
        true => vec![TracePoint::ConvOut, TracePoint::ConvOutF32],
        false => Vec::new(),
    }
}

fn hold_against_engine(model: &Model, mode: &ModeSpec, profile: &Profile) -> Told {
    let mut told = Told::new();
    for phase in [Phase::Prefill, Phase::Decode] {
        let setting = Setting {
            path: Datapath::new(model, mode, profile).unwrap(),
            block: Block::of(mode, profile, phase),
            name: format!(
                "mode {} {mode:?}, profile {}, {phase:?}",
                mode.name, profile.name
            ),
        };
        let clean = setting.clean();
        rows_are_what_is_seen(&setting, &clean[1]);
        reads_are_what_changes(&setting, &clean);
        scales_are_what_changes(&setting, &clean);
        told.extend(rules_are_what_changes(&setting, &clean, model));
    }
    told
}

#[test]
fn built_in_modes() {
    let model = model();
    for mode in MODES.iter().chain(REFERENCE_MODES) {
        for profile in ["exact", "deployed", "asic-int8"] {
            // A chip's scan takes codes only.
            let real = mode.dt_proj_out == Precision::Float || mode.x_proj_out == Precision::Float;
            if profile == "asic-int8" && real && mode.weights == Precision::Int8 {
                continue;
            }
            hold_against_engine(&model, mode, &Profile::get(profile).unwrap());
        }
    }
}

/// A mode drawn at random: any value of any field.
fn drawn(seed: u64) -> ModeSpec {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut pick = |count: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) % count
    };
    let mut precision = || match pick(2) {
        0 => Precision::Int8,
        _ => Precision::Float,
    };
    let [
        norm_out,
        z,
        conv_out,
        x_proj_in,
        x_proj_out,
        dt_proj_out,
        state_of,
        had_out,
    ] = std::array::from_fn(|_| precision());
    ModeSpec {
        name: format!("drawn-{seed}").into(),
        norm_out,
        z,
        conv_out,
        x_proj_in,
        x_proj_out,
        dt_proj_out,
        state: state_of,
        had_out,
        conv_in_quotient: [QuotientType::F32, QuotientType::F16][pick(2) as usize],
        x_proj_from: [RouteA::Conv, RouteA::U][pick(2) as usize],
        projected: [Projected::Real, Projected::Grid][pick(2) as usize],
        scan_bc: [ScanBc::Projected, ScanBc::Int8][pick(2) as usize],
        u_quantizer: (pick(2) == 0)
            .then(|| QUANTIZERS[pick(QUANTIZERS.len() as u64) as usize].clone()),
        requantize_rounding: (pick(3) == 0).then_some(Rounding::HalfAwayByAdding),
        x: [XOutput::Int8, XOutput::F16, XOutput::Float][pick(3) as usize],
        conv_in: [
            ConvInput::Static,
            ConvInput::DynamicTensor,
            ConvInput::DynamicToken,
            ConvInput::Float,
        ][pick(4) as usize],
        u: [ScanInput::Int8, ScanInput::Float, ScanInput::RoundTrip][pick(3) as usize],
        stream: [Stream::F16, Stream::Float][pick(2) as usize],
        conv: [Implementation::Cuda, Implementation::Torch][pick(2) as usize],
        scan: [Implementation::Cuda, Implementation::Torch][pick(2) as usize],
        weights: [Precision::Int8, Precision::Int8, Precision::Float][pick(3) as usize],
        ..MODES[0].clone()
    }
}

/// Without a rotation, the Hadamard quantizer is what makes out_proj's input.
#[test]
fn a_mode_without_rotation() {
    let model = model();
    let mode = ModeSpec {
        name: "not-rotated".into(),
        rotated: false,
        ..MODES[0].clone()
    };
    for granularity in [ActivationGranularity::Tensor, ActivationGranularity::Token] {
        let mut profile = Profile::get("exact").unwrap();
        profile.storage.activation_granularity = granularity;
        let told = hold_against_engine(&model, &mode, &profile);
        assert!(told.contains(&QuantizerRule::HadOut), "{granularity:?}");
    }
}

#[test]
fn modes_drawn_at_random() {
    let model = model();
    let names = ["exact", "deployed", "torch", "asic-int8"];
    let (mut told, mut refused) = (Told::new(), 0);
    for seed in 1..=20 {
        let mut profile = Profile::get(names[seed as usize % 4]).unwrap();
        if seed % 5 == 0 {
            profile.storage.activation_granularity = ActivationGranularity::Token;
        }
        let mode = drawn(seed);
        // A chip's scan takes codes only.
        let path = Datapath::new(&model, &mode, &profile).unwrap();
        let mut blind = scalescope_sim::trace::Blind;
        if path
            .prefill(&tokens()[..2], LogitRows::None, &mut blind)
            .is_err()
        {
            assert_eq!(&*profile.name, "asic-int8", "{mode:?}");
            refused += 1;
            continue;
        }
        told.extend(hold_against_engine(&model, &mode, &profile));
    }
    assert!(refused < 5, "{refused}");
    assert_eq!(
        told,
        QuantizerRule::ALL.into_iter().collect(),
        "every quantizer's rule matters somewhere"
    );
}

#[test]
fn what_stands_in_for_a_tensor_is_what_its_readers_read_instead() {
    // Of every mode: for a point that it does not make, what the readers of that point read.
    let blocks: Vec<Block> = (1..400)
        .map(|seed| {
            Block::of(
                &drawn(seed),
                &Profile::get("exact").unwrap(),
                Phase::Prefill,
            )
        })
        .collect();
    for point in TracePoint::ALL
        .into_iter()
        .filter(|p| p.in_layer() && !p.is_scale())
    {
        let makers = blocks.iter().filter(|b| b.row(point).is_some());
        let readers: BTreeSet<Step> = makers
            .flat_map(|b| {
                b.readers(point)
                    .map(|(row, _)| row.step)
                    .collect::<Vec<_>>()
            })
            .collect();
        let others: BTreeSet<(TracePoint, Columns)> = point.stand_ins().iter().copied().collect();
        for (other, _) in &others {
            let read = blocks.iter().filter(|b| b.row(point).is_none());
            let by = |b: &Block| {
                b.readers(*other)
                    .any(|(row, _)| readers.contains(&row.step))
            };
            assert!(read.clone().any(by), "{other:?} for {point:?}");
        }
        for name in point.names() {
            let both =
                |b: &&Block| *name != point && b.row(point).is_some() && b.row(*name).is_some();
            let x_and_z = point.names().len() == 3;
            assert!(
                x_and_z || !blocks.iter().any(|b| both(&b)),
                "{name:?} {point:?}"
            );
        }
    }
}
