//! Identities are proved, differences are found where they begin and explained.

use scalescope_golden::diagnosis::equiv::{
    Data, Divergence, Equivalence, IDENTITIES, Run, by_rule, equivalence,
};
use scalescope_sim::fault::Fault;
use scalescope_sim::mode::{ModeSpec, ModeTable};
use scalescope_sim::profile::Profile;
use scalescope_sim::sample;

fn sequences() -> Vec<Vec<u32>> {
    // Any tokens do: the model reads them as text.
    let sequence = |seed: u32| {
        (0..40)
            .map(|i| (seed + i * i * 37 + i * 11) % 8192)
            .collect()
    };
    vec![sequence(46), sequence(1000)]
}

fn run((a, a_profile): (&ModeSpec, &str), (b, b_profile): (&ModeSpec, &str)) -> Equivalence {
    let profiles = [a_profile, b_profile].map(|name| Profile::get(name).unwrap());
    let runs = [(a, &profiles[0]), (b, &profiles[1])];
    let [a, b] = runs.map(|(mode, profile)| Run {
        mode,
        profile,
        faults: &[],
    });
    let sequences = sequences();
    let data = Data {
        sequences: &sequences,
        decode: 3,
    };
    equivalence(&sample::model(), (a, b), data, || {}).unwrap()
}

fn modes(a: &str, b: &str, profile: &str) -> Equivalence {
    let table = ModeTable::default();
    run(
        (table.get(a).unwrap(), profile),
        (table.get(b).unwrap(), profile),
    )
}

fn parting(equivalence: Equivalence) -> Divergence {
    assert!(!equivalence.equal);
    equivalence.divergence.unwrap()
}

#[test]
fn the_identities_hold() {
    for (a, b, profile) in [
        ("2-0", "0", "deployed"),
        ("2-2", "2-1", "deployed"),
        ("0", "2-1", "exact"),
        ("3", "3", "torch"),
    ] {
        let found = modes(a, b, profile);
        assert!(found.equal && found.divergence.is_none(), "{a} {b}");
        assert!(found.compared > 100_000);
        assert_eq!((found.prefill_tokens, found.decoded_tokens), (74, 6));
    }
    // u is codes in one, FP32 on the grid in the other.
    let found = modes("2-2", "2-1", "deployed");
    assert!(found.by_value.contains(&("ssm_u", "f32", "i8")));
}

#[test]
fn what_a_rule_proves_is_equal_in_every_profile_that_it_names() {
    let table = ModeTable::default();
    for (a, b, profile, _) in IDENTITIES {
        let deployed = Profile::get(profile.unwrap_or("deployed")).unwrap();
        let run = |mode| Run {
            mode: table.get(mode).unwrap(),
            profile: &deployed,
            faults: &[],
        };
        assert!(by_rule(&run(a), &run(b)).is_some() && by_rule(&run(b), &run(a)).is_some());
        assert!(modes(a, b, &deployed.name).equal, "{a} {b}");
    }
    let (exact, deployed) = (
        Profile::get("exact").unwrap(),
        Profile::get("deployed").unwrap(),
    );
    let run = |mode, profile| Run {
        mode: table.get(mode).unwrap(),
        profile,
        faults: &[],
    };
    // Equal on the built-in text, and in no rule.
    assert!(by_rule(&run("2-3", &exact), &run("2-1", &exact)).is_none());
    assert!(by_rule(&run("2-1", &deployed), &run("0", &deployed)).is_none());
    assert!(by_rule(&run("2-0", &exact), &run("0", &deployed)).is_none());
}

#[test]
fn modes_part_where_their_fields_do() {
    let at = parting(modes("0", "2-1", "deployed"));
    assert_eq!(
        (at.layer, at.a_point, at.b_point),
        (Some(0), "ssm_y", "ssm_y")
    );
    assert!(at.a != at.b && at.mismatched > 0 && at.mismatched < at.elements);
    let [field] = &at.why.fields[..] else {
        panic!("{:?}", at.why)
    };
    assert_eq!(
        (field.field, &*field.a, &*field.b),
        ("scan", "cuda", "torch")
    );
    assert!(field.alone);
    assert!(at.why.rules.iter().any(|r| r.rule == "scan.formula"));
    let at = parting(modes("2-4", "2-3", "exact"));
    assert_eq!((at.layer, at.a_point), (Some(0), "ssm_u"));
    assert_eq!(at.why.fields[0].field, "u");
    // Of two fields that differ, the one that acts here.
    let mut table = ModeTable::default();
    let toml = "[mode.two]\nbase = \"0\"\nu = \"round-trip\"\nhad_out = \"float\"\n";
    table.add_toml(toml).unwrap();
    let at = parting(run(
        (table.get("0").unwrap(), "exact"),
        (table.get("two").unwrap(), "exact"),
    ));
    assert_eq!((at.a_point, at.why.fields[0].field), ("had_out", "had_out"));
    assert_eq!((at.why.fields.len(), at.why.fields[0].alone), (1, true));
}

#[test]
fn profiles_part_where_their_rules_do() {
    let table = ModeTable::default();
    let mode = table.get("2-1").unwrap();
    let at = parting(run((mode, "exact"), (mode, "torch")));
    assert!(at.why.fields.is_empty());
    assert!(
        at.why.rules.iter().all(|r| r.rule.starts_with("scan.")),
        "{:?}",
        at.why.rules
    );
    let at = parting(run(
        (table.get("0").unwrap(), "exact"),
        (table.get("0").unwrap(), "deployed"),
    ));
    assert!(!at.why.rules.is_empty());
    // The engine of `attribute` says what the tensors alone tell: here two floats that are an ulp off.
    let first = &at.why.findings[0];
    assert!(first.evidence.contains(at.b_point), "{}", first.evidence);
}

/// What B does otherwise is diagnosed from its tensors, in the words of `attribute --dump`.
#[test]
fn a_fault_of_b_is_diagnosed() {
    let (table, exact) = (ModeTable::default(), Profile::get("exact").unwrap());
    let fault: Fault = "swapped-bc@layer=2".parse().unwrap();
    let of = |faults| Run {
        mode: table.get("0").unwrap(),
        profile: &exact,
        faults,
    };
    let sequences = [sequences()[0][..16].to_vec()];
    let data = Data {
        sequences: &sequences,
        decode: 0,
    };
    let faults = [fault];
    let found = equivalence(&sample::model(), (of(&[]), of(&faults)), data, || {}).unwrap();
    let why = parting(found).why;
    assert!(why.faults[0].alone);
    let words = why.findings[0].edit.as_deref();
    assert_eq!(words, Some("the scan takes C for B and B for C"));
}
