//! Every candidate of a block that the datapath itself runs.

use super::{Candidate, Lie, Misread, Reading, RuleChange, RuleEdit};
use crate::diagnosis::diagnose::rule::{QuantizerPart, Way};
use scalescope_sim::arith::accumulate::{AccOverflow, Accumulator};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::dataflow::{Block, Step};
use scalescope_sim::fault::{
    Defect, Fault, FourBitDefect, RoundingRule, ScaleSite, ScanParameter, WeightScale,
};
use scalescope_sim::model::{Config, ScaleKey};
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::{QuantizerRule, StepRules};
use scalescope_sim::trace::{Place, TracePoint};
use std::sync::Arc;

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
    let four_bits = Step::FOUR_BIT.into_iter().flat_map(|site| {
        [WeightScale::Group, WeightScale::Channel].map(|scale| {
            let what = FourBitDefect::StaleScale(scale, 1.0);
            Candidate::Faults(vec![Fault {
                layer: Some(layer),
                defect: Defect::FourBit { site, what },
            }])
        })
    });
    keys.chain(uses).chain(whole).chain(four_bits).collect()
}

/// Every fault of a block without a free number.
pub fn discrete(layer: usize) -> Vec<Candidate> {
    let mut defects = vec![
        Defect::ConvDoubleInputScale,
        Defect::ConvHistoryLoss,
        Defect::HadamardWrap,
        Defect::SwappedBc,
    ];
    defects.extend(ScanParameter::ALL.map(|site| Defect::MissingScale { site }));
    for site in QuantizerRule::ALL {
        for rule in RoundingRule::ALL {
            if site.has_quotient() || !rule.is_quotient() {
                defects.push(Defect::Rounding { site, rule });
            }
        }
    }
    defects.extend(TracePoint::buffers().map(|site| Defect::Transposed { site }));
    for site in Step::FOUR_BIT {
        for what in [
            FourBitDefect::ScaleOrder(WeightScale::Group),
            FourBitDefect::ScaleOrder(WeightScale::Channel),
            FourBitDefect::WordOrder,
        ] {
            defects.push(Defect::FourBit { site, what });
        }
    }
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

/// The site of a rule of every linear step's quantizer.
pub const LINEARS: &str = "linears";
/// That of a rule of every quantizer.
pub const QUANTIZERS: &str = "quantizers";

/// Every rule of a block that could be another, beyond the fault models.
pub fn rules(layer: usize, block: &Block) -> Vec<Candidate> {
    let mut all = Vec::new();
    let mut push = |kind, site, step, words: String, alters: Vec<TracePoint>, change| {
        if !alters.is_empty() {
            all.push(Candidate::Rule(RuleEdit {
                layer: Some(layer),
                kind,
                site,
                step,
                words,
                alters,
                change,
            }));
        }
    };
    for site in QuantizerRule::ALL {
        let alters = block.quantized_by(site);
        let step = |point: &TracePoint| block.row(*point).map(|row| row.step);
        let Some(step) = alters.first().and_then(step) else {
            continue;
        };
        // Ties to even and away are fault models.
        let of_faults =
            [Rounding::NearestTiesToEven, Rounding::NearestTiesAway].map(QuantizerPart::Rounding);
        let has = |part: &QuantizerPart| match part {
            QuantizerPart::Quotient(_) => site.has_quotient(),
            QuantizerPart::Rounding(_) | QuantizerPart::Overflow(_) => !of_faults.contains(part),
        };
        for part in QuantizerPart::all().filter(has) {
            let change: RuleChange =
                Arc::new(move |rules| site.edit(rules, |rule| part.apply(rule)));
            let alters = alters.clone();
            push(part.kind(), site.name(), step, part.words(), alters, change);
        }
    }
    // The same in several steps, as a device has it.
    let linears = QuantizerRule::ALL
        .into_iter()
        .filter(|site| site.path().starts_with("linear."));
    let groups = [
        (LINEARS, linears.collect()),
        (QUANTIZERS, QuantizerRule::ALL.to_vec()),
    ];
    let parts = QuantizerPart::all().filter(|part| !matches!(part, QuantizerPart::Quotient(_)));
    for (part, (name, sites)) in parts.flat_map(|part| groups.clone().map(|g| (part, g))) {
        let alters: Vec<TracePoint> = sites.iter().flat_map(|s| block.quantized_by(*s)).collect();
        let step = alters.first().and_then(|point| block.row(*point));
        let Some(step) = step.map(|row| row.step) else {
            continue;
        };
        let change: RuleChange = Arc::new(move |rules| {
            for site in &sites {
                site.edit(rules, |rule| part.apply(rule));
            }
        });
        push(
            part.kind(),
            name,
            step,
            format!("all {name}: {part}"),
            alters,
            change,
        );
    }
    for way in Way::all() {
        let step = way.step();
        let alters = block.made_by_rule(step.rule());
        let change = Arc::new(move |rules: &mut StepRules| way.apply(rules));
        push(way.kind(), step.name(), step, way.words(), alters, change);
    }
    all
}
