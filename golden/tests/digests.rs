//! Every mode in every profile of kernels, and mode 0 in those of chips, held to the bits it gave before: digests of every traced point of
//! the sample model, in `golden/data/digests.toml`. They come from this simulator and prove no
//! agreement with anything else; they say when a number changes.
//!
//! A mode or a profile without digests fails. After a change that is meant,
//! `SCALESCOPE_UPDATE_DIGESTS=1 cargo test -p scalescope-golden --test all digests` writes them anew (and
//! the manifest wants the file's new sha256).

use scalescope_golden::trace_file::in_data_order;
use scalescope_golden::value::{Elements, Value};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::mode::MODES;
use scalescope_sim::profile::{CHIP_PROFILES, PROFILES, Profile};
use scalescope_sim::sample;
use scalescope_sim::trace::{Recorder, Selection};
use sha2::{Digest, Sha256};
use std::collections::BTreeMap;
use std::path::Path;

/// Digests by point, prefill and decode, over all blocks.
type Points = BTreeMap<String, String>;

/// Long enough for the second plan of the block scan.
const TOKENS: u32 = 130;
const STEPS: u32 = 2;

fn add(digests: &mut BTreeMap<String, Sha256>, phase: &str, recorder: Recorder) {
    let order = in_data_order(recorder.tensors.keys().copied());
    let mut tensors = recorder.tensors;
    for place in order {
        let (value, scale) = Value::from_tensor(tensors.remove(&place).expect("recorded"));
        let key = format!("{phase}_{}", place.point.name());
        let digest = digests.entry(key).or_default();
        digest.update(place.key());
        digest.update(scale.map_or(0.0, |s| s.get()).to_le_bytes());
        match value.elements() {
            Elements::I8(v) => digest.update(v.iter().map(|q| *q as u8).collect::<Vec<_>>()),
            Elements::F16(v) => v.iter().for_each(|v| digest.update(v.to_le_bytes())),
            Elements::F32(v) => v.iter().for_each(|v| digest.update(v.to_le_bytes())),
        }
    }
}

fn digests(path: &Datapath) -> Points {
    let mut digests = BTreeMap::new();
    let tokens: Vec<u32> = (0..TOKENS)
        .map(|t| (97 * t * t + 13 * t + 5) % 8192)
        .collect();
    let mut recorder = Recorder::new(Selection::default());
    let (_, mut state) = path
        .prefill(&tokens, LogitRows::All, &mut recorder)
        .unwrap();
    add(&mut digests, "prefill", recorder);
    for step in 0..STEPS {
        let mut recorder = Recorder::new(Selection::default());
        path.decode(1000 + step, &mut state, &mut recorder).unwrap();
        add(&mut digests, "decode", recorder);
    }
    let short = |digest: Sha256| -> String {
        let bytes = digest.finalize();
        bytes[..12].iter().map(|b| format!("{b:02x}")).collect()
    };
    digests.into_iter().map(|(k, d)| (k, short(d))).collect()
}

#[test]
fn every_mode_in_every_profile_gives_the_bits_it_gave() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/digests.toml");
    let model = sample::model();
    let mut now: BTreeMap<String, Points> = BTreeMap::new();
    for mode in MODES {
        for profile in PROFILES {
            let path = Datapath::new(&model, mode, profile).unwrap();
            now.insert(format!("{} {}", mode.name, profile.name), digests(&path));
        }
    }
    for (name, _) in CHIP_PROFILES {
        let path = Datapath::new(&model, &MODES[0], &Profile::get(name).unwrap()).unwrap();
        now.insert(format!("{} {name}", MODES[0].name), digests(&path));
    }
    // What the identities of the modes say, said once more of whole runs.
    let scan = |name: &str, key: &str| now[name][key].clone();
    for profile in PROFILES {
        for (a, b) in [("0", "2-0"), ("2-1", "2-2")] {
            for key in [
                "prefill_ssm_y",
                "prefill_ssm_state",
                "decode_ssm_y",
                "prefill_logits",
            ] {
                let (a, b) = (
                    format!("{a} {}", profile.name),
                    format!("{b} {}", profile.name),
                );
                assert_eq!(scan(&a, key), scan(&b, key), "{a}, {b}: {key}");
            }
        }
    }
    assert_eq!(now["0 exact"], now["2-1 exact"]);
    assert_ne!(now["0 deployed"], now["2-1 deployed"]);
    if std::env::var_os("SCALESCOPE_UPDATE_DIGESTS").is_some() {
        let mut text = format!(
            "# Digests (sha256, first 12 bytes) of every traced point over all blocks, codes with their\n\
             # scales. Origin: this simulator, version {}; sample model, {TOKENS} tokens and {STEPS} decode\n\
             # steps as `golden/tests/digests.rs` makes them.\n",
            env!("CARGO_PKG_VERSION")
        );
        for (name, points) in &now {
            text += &format!("\n[\"{name}\"]\n");
            for (point, digest) in points {
                text += &format!("{point} = \"{digest}\"\n");
            }
        }
        std::fs::write(&file, text).unwrap();
    }
    let text = std::fs::read_to_string(&file).unwrap();
    let then: BTreeMap<String, Points> = toml::from_str(&text).unwrap();
    assert_eq!(
        then.keys().collect::<Vec<_>>(),
        now.keys().collect::<Vec<_>>(),
        "a mode or a profile has no digests, or digests have no mode"
    );
    for (name, points) in &now {
        for (point, digest) in points {
            assert_eq!(
                then[name].get(point),
                Some(digest),
                "{name}: {point} changed"
            );
        }
        assert_eq!(then[name].len(), points.len(), "{name}");
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let model = sample::model();
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap().install(|| {
            let path = Datapath::new(&model, &MODES[0], &PROFILES[2]).unwrap();
            digests(&path)
        })
    };
    let one = run(1);
    for threads in [2, 3, 8] {
        assert_eq!(run(threads), one, "{threads} threads");
    }
}
