//! Compares two traces: what PyTorch's arithmetic makes of a mode, and what the CUDA kernels make.
//! `cargo run --release --example compare_traces`

use ndarray::Array2;
use scalescope_golden::compare::{CompareOptions, compare_traces};
use scalescope_golden::trace_file::TraceFile;
use scalescope_sim::{ModeTable, Profile, Recorder, Result, Selection, Simulator, sample};

pub(crate) fn main() -> Result<()> {
    let tokens: Vec<u32> = (1..64).collect();
    let modes = ModeTable::default();
    let trace = |profile: &str| {
        let (mode, profile) = (modes.get("0")?, Profile::get(profile)?);
        let simulator = Simulator::new(sample::model(), mode, &profile)?;
        let mut seen = Recorder::new(Selection::default());
        simulator.run(&tokens, &mut seen)?;
        let row = Array2::from_shape_vec((1, tokens.len()), tokens.clone());
        TraceFile::from_recorders(row.expect("one row"), [seen])
    };
    let (expected, found) = (trace("torch")?, trace("deployed")?);
    let comparison = compare_traces(&expected, &found, &CompareOptions::default())?;
    let differing = comparison.points.iter().filter(|point| !point.is_equal());
    println!(
        "{} of {} tensors differ",
        differing.count(),
        comparison.points.len()
    );
    // A trace is equal to itself.
    assert!(compare_traces(&found, &found, &CompareOptions::default())?.is_equal());
    Ok(())
}
