//! A mode of one's own: mode 0 with dt in FP32. What does it change?
//! `cargo run --release --example own_mode`

use scalescope_sim::trace::Blind;
use scalescope_sim::{ModeTable, Profile, Result, Simulator, sample};

/// A row names a mode to begin with and the fields that differ; docs/modes.md lists the fields.
const MODES: &str = r#"
[mode."0-dt"]
base = "0"
summary = "mode 0 with the scan's dt in FP32"
dt_proj_out = "float"
"#;

pub(crate) fn main() -> Result<()> {
    let mut modes = ModeTable::default();
    modes.add_toml(MODES)?;
    let tokens: Vec<u32> = (1..64).collect();
    let profile = Profile::get("exact")?;
    let logits = |name: &str| {
        let simulator = Simulator::new(sample::model(), modes.get(name)?, &profile)?;
        Ok(simulator.run(&tokens, &mut Blind)?.to_real())
    };
    let (full, int8, own) = (logits("1")?, logits("0")?, logits("0-dt")?);
    let distance = |a: &ndarray::Array2<f32>| {
        let squares = a.iter().zip(&full).map(|(a, b)| f64::from(a - b).powi(2));
        (squares.sum::<f64>() / a.len() as f64).sqrt()
    };
    println!("RMS distance of the logits from those of FP32:");
    println!("mode 0     {:.4}", distance(&int8));
    println!("mode 0-dt  {:.4}", distance(&own));
    assert!(own != int8 && distance(&own) > 0.0);
    Ok(())
}
