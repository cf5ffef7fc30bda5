//! Runs the built-in model in two modes and counts the tokens they predict differently.
//! `cargo run --release --example run_a_mode`

use scalescope_sim::trace::Blind;
use scalescope_sim::{ModeTable, Profile, Result, Simulator, sample};

pub(crate) fn main() -> Result<()> {
    let tokens: Vec<u32> = (1..64).collect();
    let modes = ModeTable::default();
    let profile = Profile::get("deployed")?;
    // For each mode, the most likely token after each.
    let mut predicted = Vec::new();
    for name in ["0", "1"] {
        let simulator = Simulator::new(sample::model(), modes.get(name)?, &profile)?;
        let logits = simulator.run(&tokens, &mut Blind)?.to_real();
        let largest = logits.rows().into_iter().map(|row| {
            let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b]));
            best.expect("a vocabulary is not empty")
        });
        predicted.push(largest.collect::<Vec<usize>>());
    }
    let other = predicted[0].iter().zip(&predicted[1]);
    let other = other.filter(|(a, b)| a != b).count();
    println!(
        "mode 0 (INT8) and mode 1 (FP32) predict another token at {other} of {} places",
        tokens.len()
    );
    assert!(other < tokens.len() / 2);
    Ok(())
}
