//! What could be wrong between two tensors of a dump: every fault model at every site, and every way
//! in which a buffer can be misread.

use super::replay::{from_columns, swapped, to_columns, turned};
use crate::value::Value;
use scalescope_sim::arith::accumulate::{AccOverflow, Accumulator};
use scalescope_sim::dataflow::{Block, Step};
use scalescope_sim::fault::{Defect, Fault, RoundingRule, ScaleSite, ScanParameter};
use scalescope_sim::model::{Config, ScaleKey};
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::QuantizerRule;
use scalescope_sim::trace::{Place, TracePoint};

/// How a dumped buffer lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Lie {
    /// Written column by column under the shape of rows.
    ByColumns,
    /// Rows read as if they were columns.
    FromColumns,
    /// Its axes have changed places.
    Turned,
    /// Two blocks of columns have changed places: the first one's start, their width.
    Swapped(usize, usize),
}

/// Who lays a buffer wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reading {
    /// The dump alone: what follows comes from the right tensor.
    DumpLies,
    /// The step that writes it; the next one reads what is there.
    ProducerWrites,
    /// The step that reads it; what is there is right.
    ConsumerReads,
}

/// A dumped tensor that lies differently.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Misread {
    /// The tensor.
    pub place: Place,
    /// How it lies.
    pub lie: Lie,
    /// Who is to blame.
    pub reading: Reading,
}

impl Misread {
    /// The tensor as it should lie (or, where the consumer is to blame, as it is read).
    pub fn undo(&self, value: &Value) -> Value {
        match self.lie {
            Lie::ByColumns => from_columns(value),
            Lie::FromColumns => to_columns(value),
            Lie::Turned => turned(value),
            Lie::Swapped(first, width) => swapped(value, first, width),
        }
    }
}

/// Something that could be wrong.
#[derive(Clone, Debug, PartialEq)]
pub enum Candidate {
    /// A fault, or one scale's at every use.
    Faults(Vec<Fault>),
    /// A buffer.
    Misread(Misread),
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
        }
    }

    /// Where it is, as findings say.
    pub fn site(&self) -> &'static str {
        match self {
            Candidate::Faults(faults) => faults[0].defect.site(),
            Candidate::Misread(m) => m.place.point.names()[0].name(),
        }
    }

    /// The block.
    pub fn layer(&self) -> Option<usize> {
        match self {
            Candidate::Faults(faults) => faults[0].layer,
            Candidate::Misread(m) => m.place.layer,
        }
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
                if let Defect::StaleScale { factor: f, .. } = &mut fault.defect {
                    *f = factor;
                }
            }
        }
        changed
    }

    /// The factor of a stale scale.
    pub fn factor(&self) -> Option<f32> {
        match self {
            Candidate::Faults(faults) => match faults[0].defect {
                Defect::StaleScale { factor, .. } => Some(factor),
                _ => None,
            },
            Candidate::Misread(_) => None,
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
            Candidate::Misread(_) => 3,
        }
    }

    /// Tensors of the block that it can alter while all before them stay as they are.
    fn alters(&self, block: &Block) -> Vec<TracePoint> {
        match self {
            Candidate::Misread(m) => vec![m.place.point],
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

/// Every stale scale of a block, with the factor 1.
pub fn scales(layer: usize) -> Vec<Candidate> {
    let fault = |site| Fault {
        layer: Some(layer),
        defect: Defect::StaleScale { site, factor: 1.0 },
    };
    let keys = ScaleKey::ALL
        .into_iter()
        .map(|key| Candidate::Faults(vec![fault(ScaleSite::Key(key))]));
    let uses = ScaleUse::ALL
        .into_iter()
        .map(|u| Candidate::Faults(vec![fault(ScaleSite::Use(u))]));
    // A model file of other scales: every use of one key.
    let whole = ScaleKey::ALL.into_iter().map(|key| {
        let uses = ScaleUse::ALL.into_iter().filter(|u| u.key() == key);
        Candidate::Faults(uses.map(|u| fault(ScaleSite::Use(u))).collect())
    });
    keys.chain(uses).chain(whole).collect()
}

/// Every fault of a block without a free number.
pub fn discrete(layer: usize) -> Vec<Candidate> {
    let mut defects = vec![
        Defect::ConvDoubleInputScale,
        Defect::ConvHistoryLoss,
        Defect::HadamardWrap,
        Defect::SwappedBc,
        Defect::MissingScale {
            site: ScanParameter::ALog,
        },
    ];
    for site in QuantizerRule::ALL {
        for rule in RoundingRule::ALL {
            if site.has_quotient() || !rule.is_quotient() {
                defects.push(Defect::Rounding { site, rule });
            }
        }
    }
    defects.extend(TracePoint::buffers().map(|site| Defect::Transposed { site }));
    let fault = |defect| {
        Candidate::Faults(vec![Fault {
            layer: Some(layer),
            defect,
        }])
    };
    defects.into_iter().map(fault).collect()
}

/// Narrow registers of a block, widest first, of those that could overflow.
pub fn registers(layer: usize, site: Step) -> Vec<Candidate> {
    let mut all = Vec::new();
    for bits in (10..=24).rev() {
        for overflow in [AccOverflow::Wrap, AccOverflow::Saturate] {
            let register = Accumulator::new(bits, overflow).expect("8 to 64 bits");
            all.push(Candidate::Faults(vec![Fault {
                layer: Some(layer),
                defect: Defect::NarrowAccumulator { site, register },
            }]));
        }
    }
    all
}

/// Every way in which a dumped tensor can be misread. One whose axes have changed places (`turned`)
/// fits no other shape.
pub fn misreads(config: &Config, place: Place, turned: bool) -> Vec<Candidate> {
    let readings = [
        Reading::DumpLies,
        Reading::ProducerWrites,
        Reading::ConsumerReads,
    ];
    let mut lies = Vec::new();
    if turned {
        lies.push(Lie::Turned);
    } else {
        if place.point.names()[0].is_buffer() {
            lies.extend([Lie::ByColumns, Lie::FromColumns]);
        }
        if place.point == TracePoint::XProjOut {
            lies.push(Lie::Swapped(config.dt_rank, config.d_state));
        }
    }
    let misread = |lie| {
        readings.map(move |reading| {
            Candidate::Misread(Misread {
                place,
                lie,
                reading,
            })
        })
    };
    lies.into_iter().flat_map(misread).collect()
}
