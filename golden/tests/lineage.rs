//! Lineage counts what quantizers did, in every mode.

use scalescope_golden::diagnosis::finding::Severity;
use scalescope_golden::diagnosis::lineage::{Lineage, lineage};
use scalescope_sim::dataflow::{Format, Quantizer, phases};
use scalescope_sim::datapath::{Datapath, LogitRows, State};
use scalescope_sim::fault::{Defect, Fault, ScaleSite};
use scalescope_sim::mode::{MODES, ModeSpec, ModeTable};
use scalescope_sim::model::{ActivationScales, Model, ScaleKey};
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::Profile;
use scalescope_sim::sample;
use scalescope_sim::trace::{Blind, Tensor};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Modes with INT8 tensors.
fn quantized() -> impl Iterator<Item = &'static ModeSpec> {
    MODES.iter().filter(|mode| mode.needs_quantized())
}

fn sequences() -> Vec<Vec<u32>> {
    let sequence =
        |seed: u32, length| (0..length).map(move |i| (seed + i * i * 37 + i * 11) % 8192);
    vec![sequence(46, 24).collect(), sequence(1000, 9).collect()]
}

fn of(model: &Model, mode: &str, profile: &str) -> Lineage {
    let table = ModeTable::default();
    let profile = Profile::get(profile).unwrap();
    let path = Datapath::new(model, table.get(mode).unwrap(), &profile).unwrap();
    lineage(&path, &sequences(), || {}).unwrap()
}

#[test]
fn every_code_is_counted_once_and_every_reader_agrees() {
    let model = sample::model();
    for mode in quantized() {
        let lineage = of(&model, &mode.name, "exact");
        assert_eq!(lineage.quantizers.len() % 12, 0);
        assert!(lineage.is_consistent());
        for q in &lineage.quantizers {
            let (place, codes) = (
                format!("{} {} {}", mode.name, q.layer, q.name),
                &q.histogram,
            );
            assert!(q.values > 0, "{place}");
            if q.segments.len() > 1 {
                assert_eq!(q.segments.iter().sum::<u64>(), q.values, "{place}");
            }
            if codes.is_empty() {
                assert!(
                    q.readers.is_empty() && q.grid_occupancy.is_none(),
                    "{place}"
                );
                continue;
            }
            assert_eq!(codes.iter().sum::<u64>(), q.values, "{place}");
            // What saturated came out at an end of the grid.
            let saturated = (q.clipped * q.values as f64).round() as u64;
            assert!(codes[0] + codes[255] >= saturated, "{place}");
            assert_eq!(q.scale_ratio > 128.5 / 127.0, saturated > 0, "{place}");
            assert!(!q.readers.is_empty(), "{place}");
            for reader in &q.readers {
                assert_eq!(reader.factor, 1.0);
                let used = q.grid_occupancy.unwrap();
                assert!(reader.grid_occupancy <= used && reader.reach <= 128.0 / 127.0);
            }
        }
    }
}

#[test]
fn a_scale_of_another_size_shows_by_its_factor() {
    let mut model = sample::model();
    let before = of(&model, "2-4", "exact");
    let mut quantized = (*model.quantized.take().unwrap()).clone();
    let scales = &mut quantized.layers[3].scales;
    let factor = |key| {
        if key == ScaleKey::InProjInput {
            0.25
        } else {
            1.0
        }
    };
    *scales = ActivationScales::from_fn(|key| scales.get(key).times(factor(key))).unwrap();
    model.quantized = Some(Arc::new(quantized));
    let after = of(&model, "2-4", "exact");
    for (a, b) in before.quantizers.iter().zip(&after.quantizers) {
        if (b.layer, b.name) == (3, "norm_out") {
            let growth = b.scale_ratio / a.scale_ratio;
            assert!((growth - 4.0).abs() < 0.05, "{growth}");
            assert_eq!(b.severity, Severity::Error);
            assert!(b.clipped > 0.01 && b.remarks()[0].1.contains("are clipped"));
            // Every use has the same wrong scale: it fits badly, but nobody disagrees.
            assert_eq!(b.readers[0].factor, 1.0);
        } else if b.layer < 3 {
            assert_eq!((a.scale_ratio, &a.histogram), (b.scale_ratio, &b.histogram));
        }
    }
}

/// Logits and state after a prefill and two tokens of decode.
fn outcome(path: &Datapath) -> (Vec<Tensor>, State) {
    let tokens: Vec<u32> = sequences()[1].clone();
    let (logits, mut state) = path
        .prefill(&tokens[..7], LogitRows::Last, &mut Blind)
        .unwrap();
    let mut all = vec![logits];
    for token in &tokens[7..] {
        all.push(path.decode(*token, &mut state, &mut Blind).unwrap());
    }
    (all, state)
}

#[test]
fn a_scale_matters_if_and_only_if_the_graph_has_it() {
    const FACTOR: f32 = 1.7;
    let (model, profile) = (sample::model(), Profile::get("exact").unwrap());
    for mode in quantized() {
        let blocks = phases(mode, &profile);
        let rows = || blocks.iter().flat_map(|block| block.rows());
        let live: BTreeSet<ScaleUse> = rows().flat_map(|row| row.scales()).collect();
        // Nobody reads what stays FP32 on a grid, or lies beyond the codes.
        let mut read: BTreeSet<ScaleUse> = rows()
            .flat_map(|r| r.reads.iter().flat_map(|r| r.scale))
            .collect();
        let coded = rows().filter(|row| row.format != Format::F32);
        read.extend(coded.filter_map(|row| match row.quantizer? {
            Quantizer::Static(by) => Some(by),
            Quantizer::Tensor(_) | Quantizer::Token(_) => None,
        }));
        let truth = outcome(&Datapath::new(&model, mode, &profile).unwrap());
        for by in ScaleUse::ALL {
            let at = format!("{} {}", mode.name, by.name());
            let site = ScaleSite::Use(by);
            let defect = Defect::StaleScale {
                site,
                factor: FACTOR,
            };
            let fault = Fault {
                layer: Some(3),
                defect,
            };
            let path = Datapath::with_faults(&model, mode, &profile, &[fault]).unwrap();
            // The second scale of a quantizer matters where something lies beyond the first.
            let by_chance = by == ScaleUse::ScanUMax && live.contains(&by);
            assert!(
                by_chance || (outcome(&path) != truth) == live.contains(&by),
                "{at}"
            );
            let lineage = lineage(&path, &sequences()[1..], || {}).unwrap();
            assert_eq!(!lineage.is_consistent(), read.contains(&by), "{at}");
            let all = lineage.quantizers.iter();
            let readers = all.flat_map(|q| q.readers.iter().map(move |r| (q, r)));
            for (q, r) in readers.filter(|(_, r)| r.severity == Severity::Error) {
                let factor = match by.produces() {
                    true => 1.0 / FACTOR,
                    false => FACTOR,
                };
                assert!((r.factor / f64::from(factor) - 1.0).abs() < 1e-6, "{at}");
                assert!(
                    q.layer == 3 && [q.name, r.name].contains(&by.name()),
                    "{at}"
                );
            }
        }
    }
}
