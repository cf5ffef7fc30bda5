//! What could be wrong between two tensors of a dump: every fault model at every site, and every way
//! in which a buffer can be misread.

mod list;
mod misread;

pub use list::{LINEARS, QUANTIZERS, discrete, misreads, registers, rules, scales};
pub use misread::{Lie, Misread, Reading};

use super::edit::Edit;
use super::kind::Kind;
use super::rule::QuantizerPart;
use scalescope_sim::arith::requant::QuantRule;
use scalescope_sim::dataflow::{Block, Step};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::fault::{Defect, FAULTS, Fault, FourBitDefect, ScaleSite};
use scalescope_sim::profile::StepRules;
use scalescope_sim::trace::{Place, TracePoint};
use std::fmt;
use std::sync::Arc;

/// Something that could be wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Candidate {
    /// A fault, or one scale's at every use.
    Faults(Vec<Fault>),
    /// A buffer.
    Misread(Misread),
    /// A rule of the block.
    Rule(RuleEdit),
    /// Something else that a step does otherwise.
    Edit(Edit),
}

/// A change of the rules of steps.
pub type RuleChange = Arc<dyn Fn(&mut StepRules) + Send + Sync>;

/// A rule that is another, in one block or in every one.
#[derive(Clone)]
pub struct RuleEdit {
    /// The block; `None` for every one.
    pub layer: Option<usize>,
    /// The sort.
    pub kind: Kind,
    /// The quantizer or step.
    pub site: &'static str,
    /// The step.
    pub step: Step,
    /// In words.
    pub words: String,
    /// Tensors that it can alter.
    pub alters: Vec<TracePoint>,
    /// The change.
    pub change: RuleChange,
}

impl RuleEdit {
    /// Puts it into a datapath.
    pub fn put_into(&self, path: &mut Datapath) {
        let all = 0..path.config().n_layers;
        let layers = self.layer.map_or(all, |layer| layer..layer + 1);
        for layer in layers {
            path.edit_rules(layer, |rules| (self.change)(rules));
        }
    }
}

impl fmt::Debug for RuleEdit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl PartialEq for RuleEdit {
    fn eq(&self, other: &Self) -> bool {
        (self.layer, self.site, &self.words) == (other.layer, other.site, &other.words)
    }
}

impl Candidate {
    /// The name of its fault model.
    pub fn kind(&self) -> &'static str {
        match self {
            Candidate::Faults(faults) => faults[0].defect.name(),
            Candidate::Misread(m) => match m.lie {
                Lie::Swapped(..) => "swapped-bc",
                _ => "transposed",
            },
            Candidate::Rule(rule) => rule.kind.name(),
            Candidate::Edit(edit) => edit.kind.name(),
        }
    }

    /// The step that does it.
    pub fn step(&self, block: &Block) -> Step {
        let of = |point: TracePoint| {
            let names = point.names().iter();
            let mut rows = names.filter_map(|p| block.row(*p));
            rows.next().map_or(Step::Embed, |row| row.step)
        };
        match self {
            Candidate::Faults(_) => of(self
                .alters(block)
                .first()
                .copied()
                .unwrap_or(TracePoint::HiddenIn)),
            Candidate::Misread(m) => of(m.place.point),
            Candidate::Rule(rule) => rule.step,
            Candidate::Edit(edit) => edit.step,
        }
    }

    /// What is done otherwise, in words.
    pub fn words(&self) -> String {
        match self {
            Candidate::Faults(faults) => {
                let model = FAULTS.iter().find(|model| model.name == self.kind());
                let all: Vec<String> = faults
                    .iter()
                    .map(|fault| match fault.defect {
                        Defect::StaleScale { site, factor } => {
                            let name = match site {
                                ScaleSite::Key(key) => key.name(),
                                ScaleSite::Use(by) => by.name(),
                            };
                            format!("the scale {name} is multiplied by {factor}")
                        }
                        Defect::Rounding { rule, .. } => {
                            let mut quantizer = QuantRule::NEAREST_EVEN;
                            rule.apply(&mut quantizer);
                            match rule.is_quotient() {
                                true => QuantizerPart::Quotient(quantizer.quotient).words(),
                                false => QuantizerPart::Rounding(quantizer.rounding).words(),
                            }
                        }
                        _ => model.map_or(String::new(), |model| model.effect.to_owned()),
                    })
                    .collect();
                all.join(" and ")
            }
            Candidate::Misread(m) => m.words(),
            Candidate::Rule(rule) => rule.words.clone(),
            Candidate::Edit(edit) if edit.alone => format!("{} (in the dump alone)", edit.words),
            Candidate::Edit(edit) => edit.words.clone(),
        }
    }

    /// Where it is, as findings say.
    pub fn site(&self) -> &str {
        match self {
            Candidate::Faults(faults) => faults[0].defect.site(),
            Candidate::Misread(m) => m.place.point.names()[0].name(),
            Candidate::Rule(rule) => rule.site,
            Candidate::Edit(edit) => match &edit.site[..] {
                "output" | "tokens" | "channels" => edit.point.name(),
                site => site,
            },
        }
    }

    /// The block.
    pub fn layer(&self) -> Option<usize> {
        match self {
            Candidate::Faults(faults) => faults[0].layer,
            Candidate::Misread(m) => m.place.layer,
            Candidate::Rule(rule) => rule.layer,
            Candidate::Edit(edit) => Some(edit.layer),
        }
    }

    /// The same fault or rule in every block; `None` for what is made for one.
    pub fn in_every_block(&self) -> Option<Self> {
        match self {
            Candidate::Faults(faults) => {
                let all = faults.iter().map(|fault| Fault {
                    layer: None,
                    ..*fault
                });
                Some(Candidate::Faults(all.collect()))
            }
            Candidate::Rule(rule) => Some(Candidate::Rule(RuleEdit {
                layer: None,
                ..rule.clone()
            })),
            Candidate::Misread(_) | Candidate::Edit(_) => None,
        }
    }

    /// Whether it is a way to compute rather than a mistake: in every block it is how a device is.
    pub fn is_arithmetic(&self) -> bool {
        match self {
            Candidate::Faults(faults) => matches!(
                faults[0].defect,
                Defect::Rounding { .. } | Defect::HadamardWrap | Defect::NarrowAccumulator { .. }
            ),
            Candidate::Misread(_) => false,
            Candidate::Rule(_) => true,
            Candidate::Edit(edit) => edit.only.is_none() && edit.kind.is_arithmetic(),
        }
    }

    /// How it changes the rules of steps, if rules are all that it changes.
    pub fn on_rules(&self) -> Option<RuleChange> {
        let defect = match self {
            Candidate::Rule(rule) => return Some(Arc::clone(&rule.change)),
            Candidate::Faults(faults) => faults.first()?.defect,
            Candidate::Misread(_) | Candidate::Edit(_) => return None,
        };
        match defect {
            Defect::Rounding { site, rule } => Some(Arc::new(move |rules| {
                site.edit(rules, |quantizer| rule.apply(quantizer));
            })),
            Defect::NarrowAccumulator { site, register } => Some(Arc::new(move |rules| {
                if let Some(own) = rules.accumulator_mut(site) {
                    *own = register;
                }
            })),
            _ => None,
        }
    }

    /// Whether it is about the step that makes a tensor, and about no other.
    pub fn is_of(&self, block: &Block, point: TracePoint) -> bool {
        let group = matches!(self.site(), LINEARS | QUANTIZERS);
        !group && self.alters(block).contains(&point)
    }

    /// Whether it is an edit of a part of the tensor.
    pub fn is_restricted(&self) -> bool {
        matches!(self, Candidate::Edit(edit) if edit.only.is_some())
    }

    /// Whether the dump alone has it.
    pub fn is_alone(&self) -> bool {
        matches!(self, Candidate::Edit(edit) if edit.alone)
    }

    /// Whether it alters the quantizer of a tensor that stays real: a wrong scale then is as far off as any other
    /// wrong one, but for those next to the right one.
    pub fn hides(&self, block: &Block) -> bool {
        let on_a_grid = |point: &TracePoint| {
            let row = block.row(*point);
            row.is_some_and(|row| row.quantizer.is_some() && row.format.dtype() == "f32")
        };
        self.alters(block).iter().any(on_a_grid)
    }

    /// Whether what it does to a token depends on how many follow.
    pub fn needs_all_tokens(&self) -> bool {
        let of = |fault: &Fault| matches!(fault.defect, Defect::Transposed { .. });
        matches!(self, Candidate::Faults(faults) if faults.iter().any(of))
    }

    /// As `--fault` takes it, if it is one fault.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Candidate::Faults(faults) if faults.len() == 1 => faults.first(),
            _ => None,
        }
    }

    /// With a factor in place of its own, for stale scales.
    pub fn with_factor(&self, factor: f32) -> Self {
        let mut changed = self.clone();
        if let Candidate::Faults(faults) = &mut changed {
            for fault in faults {
                match &mut fault.defect {
                    Defect::StaleScale { factor: f, .. }
                    | Defect::FourBit {
                        what: FourBitDefect::StaleScale(_, f),
                        ..
                    } => *f = factor,
                    _ => {}
                }
            }
        }
        changed
    }

    /// The factor of a stale scale.
    pub fn factor(&self) -> Option<f32> {
        match self {
            Candidate::Faults(faults) => match faults[0].defect {
                Defect::StaleScale { factor, .. }
                | Defect::FourBit {
                    what: FourBitDefect::StaleScale(_, factor),
                    ..
                } => Some(factor),
                _ => None,
            },
            _ => None,
        }
    }

    /// Of candidates that explain equally well the one with the lower rank is named first: models
    /// without a free number, then whole scales, then single uses.
    pub fn rank(&self) -> usize {
        match self {
            Candidate::Faults(faults) => match faults[0].defect {
                Defect::ConvDoubleInputScale
                | Defect::ConvHistoryLoss
                | Defect::HadamardWrap
                | Defect::MissingScale { .. }
                | Defect::SwappedBc => 0,
                Defect::Rounding { .. } | Defect::FourBit { .. } => 1,
                Defect::Transposed { .. } => 2,
                Defect::StaleScale {
                    site: ScaleSite::Key(_),
                    ..
                } => 4,
                Defect::NarrowAccumulator { .. } => 5,
                Defect::StaleScale { .. } if faults.len() > 1 => 6,
                Defect::StaleScale { .. } => 7,
            },
            Candidate::Misread(m) => match m.reading {
                Reading::DumpLies | Reading::ProducerWrites => 3,
                Reading::ConsumerReads => 4,
            },
            Candidate::Rule(rule) => match (rule.site, rule.kind) {
                (LINEARS | QUANTIZERS, _) => 4,
                (_, Kind::Rounding | Kind::Overflow) => 1,
                _ => 3,
            },
            Candidate::Edit(edit) => {
                edit.rank + 2 * usize::from(edit.only.is_some()) + usize::from(edit.alone)
            }
        }
    }

    /// Tensors of the block that it can alter while all before them stay as they are.
    fn alters(&self, block: &Block) -> Vec<TracePoint> {
        match self {
            Candidate::Misread(m) => vec![m.place.point],
            Candidate::Rule(rule) => rule.alters.clone(),
            Candidate::Edit(edit) => match edit.point {
                TracePoint::SsmY if edit.changes_formula() => {
                    vec![TracePoint::SsmY, TracePoint::SsmState]
                }
                point => vec![point],
            },
            Candidate::Faults(faults) => {
                let points = faults.iter().flat_map(|fault| fault.defect.alters(block));
                points.collect()
            }
        }
    }

    /// Whether it can be what makes `first` the first tensor that deviates: it alters that one, or
    /// one before it that is not dumped.
    pub fn fits(&self, block: &Block, first: Place, dumped: &dyn Fn(Place) -> bool) -> bool {
        let Some(layer) = self.layer() else {
            return true;
        };
        if let Candidate::Misread(m) = self {
            // What is read wrong is itself as it should be.
            return (m.place == first) == (m.reading != Reading::ConsumerReads);
        }
        let order = |place: Place| (place.layer.unwrap_or(usize::MAX), place.point);
        self.alters(block).into_iter().any(|point| {
            let mut places = point.names().iter().map(|p| Place::layer(layer, *p));
            let place = Place::layer(layer, point);
            places.clone().any(|p| p == first)
                || (order(place) < order(first) && !places.any(dumped))
        })
    }
}
