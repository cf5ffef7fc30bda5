//! Traces of any two modes can be held against each other.

use ndarray::Array2;
use scalescope_golden::compare::{CompareOptions, compare_traces};
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::mode::MODES;
use scalescope_sim::profile::Profile;
use scalescope_sim::sample;
use scalescope_sim::trace::{Recorder, Selection};

const TOKENS: [u32; 6] = [46, 37, 55, 1238, 47, 50];

#[test]
fn every_mode_is_compared_with_one_that_quantizes_b_and_c() {
    let (model, profile) = (sample::model(), Profile::get("exact").unwrap());
    let config = model.config().unwrap();
    let trace = |mode| {
        let path = Datapath::new(&model, mode, &profile).unwrap();
        let mut recorder = Recorder::new(Selection {
            layers: Some([0, 1].into()),
            points: None,
        });
        path.prefill(&TOKENS, LogitRows::All, &mut recorder)
            .unwrap();
        let ids = Array2::from_shape_vec((1, TOKENS.len()), TOKENS.to_vec()).unwrap();
        TraceFile::from_recorders(ids, [recorder]).unwrap()
    };
    let bc = trace(MODES.iter().find(|mode| mode.name == "6-4").unwrap());
    let common = CompareOptions {
        common: true,
        ..CompareOptions::default()
    };
    for mode in MODES {
        let other = trace(mode);
        for (x, y) in [(&bc, &other), (&other, &bc)] {
            let found = compare_traces(x, y, &common).unwrap();
            let one = |point| {
                let mut points = found.points.iter();
                points
                    .find(|p| p.layer == Some(1) && p.point == point)
                    .unwrap()
            };
            let n = config.d_state;
            assert_eq!(
                one("ssm_bc").compared(),
                TOKENS.len() * 2 * n,
                "{}",
                mode.name
            );
            let width = config.dt_rank + 2 * n;
            assert_eq!(one("x_proj_out").compared(), TOKENS.len() * width);
        }
    }
}
