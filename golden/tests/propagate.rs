//! Local error is made where it is said to be made, and nowhere else.

use scalescope_golden::diagnosis::propagate::{Propagation, error_over_time, propagate};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::mode::{MODES, ModeSpec, ModeTable};
use scalescope_sim::profile::Profile;
use scalescope_sim::sample;

const TOKENS: [u32; 24] = [
    46, 37, 55, 1238, 47, 50, 898, 294, 2365, 339, 262, 7, 1, 2, 3, 4, 5, 6, 46, 37, 900, 12, 77,
    300,
];

/// Mode 1 with these fields changed, or a mode of the table.
fn mode(name: &str, fields: &str) -> ModeSpec {
    let mut table = ModeTable::default();
    let toml = format!("[mode.it]\nbase = \"{name}\"\n{fields}\n");
    table.add_toml(&toml).unwrap();
    table.get("it").unwrap().clone()
}

fn errors(mode: &ModeSpec, against: &ModeSpec, profile: &str) -> Propagation {
    let (model, profile) = (sample::model(), Profile::get(profile).unwrap());
    let path = Datapath::new(&model, mode, &profile).unwrap();
    let reference = Datapath::new(&model, against, &profile).unwrap();
    let sequences = [TOKENS.to_vec(), TOKENS[..9].to_vec()];
    propagate(&path, &reference, &sequences, || {}).unwrap()
}

/// A step that reads codes instead of reals may round in another order: that is no more than this share
/// of its output.
const ORDER_OF_ROUNDING: f64 = 1e-6;

/// Sites of block 0 to 11 with a local error, without repetition.
fn made_at(errors: &Propagation) -> Vec<&'static str> {
    let sites = errors.sites_of_a_block();
    let bad = |site: &&'static str| {
        let local = |layer| errors.get(Some(layer), site).unwrap().local_l2();
        (0..12).any(|layer| local(layer) > ORDER_OF_ROUNDING)
    };
    sites.into_iter().filter(bad).collect()
}

#[test]
fn a_mode_makes_no_error_against_itself() {
    for (name, profile) in [
        ("0", "deployed"),
        ("1", "exact"),
        ("2-3", "deployed"),
        ("3", "exact"),
    ] {
        let it = mode(name, "");
        let errors = errors(&it, &it, profile);
        for site in &errors.sites {
            assert!(
                site.propagated.is_equal(),
                "{name} {:?} {}",
                site.layer,
                site.site
            );
            assert!(
                site.local.is_equal(),
                "{name} {:?} {}",
                site.layer,
                site.site
            );
        }
    }
}

#[test]
fn every_mode_is_held_against_fp32() {
    let clean = mode("1", "");
    for row in MODES.iter().filter(|row| row.name != "1") {
        let errors = errors(row, &clean, "exact");
        let logits = errors.get(None, "logits").unwrap();
        assert!(logits.propagated_l2() > 0.0, "{}", row.name);
        assert!(!made_at(&errors).is_empty(), "{}", row.name);
    }
}

#[test]
fn one_quantizer_alone_makes_its_error_and_others_carry_it() {
    let clean = mode("1", "");
    for (fields, site) in [
        ("norm_out = \"int8\"", "norm_out"),
        ("z = \"int8\"", "in_proj_z"),
        ("scan_bc = \"int8\"", "ssm_bc"),
        ("conv_in = \"static\"", "conv_in"),
        ("conv_in = \"dynamic-tensor\"", "conv_in"),
        ("conv_in = \"dynamic-token\"", "conv_in"),
        ("x_proj_in = \"int8\"", "x_proj_in"),
        ("u = \"int8\"", "ssm_u"),
        ("x_proj_out = \"int8\"", "x_proj_out"),
        ("dt_proj_out = \"int8\"", "dt_proj_out"),
        ("state = \"int8\"", "ssm_state"),
        ("had_out = \"int8\"", "had_out"),
    ] {
        let errors = errors(&mode("1", fields), &clean, "exact");
        assert_eq!(made_at(&errors), [site], "{fields}");
        let at = errors.get(Some(0), site).unwrap();
        assert_eq!(at.local_l2(), at.propagated_l2(), "{fields}");
        // The state is not read again in a prefill; all others reach the logits.
        let logits = errors.get(None, "logits").unwrap();
        assert!(logits.local_l2() <= ORDER_OF_ROUNDING);
        assert_eq!(
            logits.propagated.is_equal(),
            site == "ssm_state",
            "{fields}"
        );
        let before = errors.sites.iter().take_while(|s| s.site != site);
        assert!(
            before.into_iter().all(|s| s.propagated.is_equal()),
            "{fields}"
        );
    }
}

#[test]
fn every_step_of_a_quantized_mode_has_both_errors() {
    let errors = errors(&mode("2-4", ""), &mode("1", ""), "deployed");
    let sites = errors.sites_of_a_block();
    assert_eq!(
        sites,
        [
            "residual_out",
            "norm_out",
            "in_proj_x",
            "in_proj_z",
            "conv_out",
            "x_proj_in",
            "x_proj_out",
            "dt_proj_out",
            "ssm_u",
            "ssm_y",
            "ssm_state",
            "had_out",
            "out_proj_out"
        ]
    );
    for layer in 0..12 {
        for site in &sites {
            let at = errors.get(Some(layer), site).unwrap();
            let made = at.local_l2() > 0.0;
            // u is the convolution's own output, the residual stream a sum in FP32.
            assert_eq!(
                made,
                !["residual_out", "ssm_u"].contains(site),
                "{layer} {site}"
            );
            let inputs = at.amplification.is_some() as usize;
            assert_eq!(
                inputs,
                (layer > 0 || *site != "norm_out") as usize * (*site != "residual_out") as usize
            );
        }
    }
    // What is made in a block is less than what has gathered at its end, deep in the model.
    let deep = errors.get(Some(11), "ssm_y").unwrap();
    assert!(deep.local_l2() < deep.propagated_l2());
    assert_eq!(errors.layer_amplification().len(), 11);
}

#[test]
fn the_state_gathers_error_of_its_own_and_of_its_inputs() {
    let (model, profile) = (sample::model(), Profile::get("exact").unwrap());
    let over_time = |fields: &str| {
        let mode = mode("1", fields);
        let path = Datapath::new(&model, &mode, &profile).unwrap();
        let clean = self::mode("1", "");
        let reference = Datapath::new(&model, &clean, &profile).unwrap();
        let sequences = [TOKENS[..12].to_vec()];
        error_over_time(&path, &reference, &sequences, || {}).unwrap()
    };
    let none = over_time("");
    assert_eq!(none.windows.len(), 12);
    assert_eq!((none.windows[3].first, none.windows[11].last), (3, 11));
    assert!(
        none.windows
            .iter()
            .all(|w| w.ssm_state.iter().all(|e| *e == 0.0))
    );
    let inputs = over_time("norm_out = \"int8\"");
    let state = over_time("state = \"int8\"");
    for (inputs, state) in inputs.windows.iter().zip(&state.windows) {
        assert!(inputs.ssm_state.iter().all(|e| *e > 0.0));
        assert!(inputs.ssm_state_clean_inputs.iter().all(|e| *e == 0.0));
        assert!(state.ssm_state_clean_inputs.iter().all(|e| *e > 0.0));
        // Block 0 has clean inputs either way.
        assert_eq!(state.ssm_state[0], state.ssm_state_clean_inputs[0]);
    }
}
