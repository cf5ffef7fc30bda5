//! A profile of one's own: a chip whose accumulators have 18 bits. Where do they overflow?
//! `cargo run --release --example own_profile`

use scalescope_sim::{ModeTable, Profile, Recorder, Result, Selection, Simulator, sample};

/// What a profile leaves out it has from the one it extends; docs/asic.md lists the keys.
const CHIP: &str = r#"
version = 1
extends = "asic-int8"
summary = "asic-int8 with accumulators of 18 bits"

[accumulator]
bits = 18
overflow = "saturate"
"#;

pub(crate) fn main() -> Result<()> {
    let chip = Profile::from_toml("narrow", CHIP)?;
    let modes = ModeTable::default();
    let tokens: Vec<u32> = (1..64).collect();
    let run = |profile: &Profile| {
        let simulator = Simulator::new(sample::model(), modes.get("0")?, profile)?;
        let mut seen = Recorder::new(Selection::default());
        simulator.run(&tokens, &mut seen)?;
        Ok(seen)
    };
    let (wide, narrow) = (run(&Profile::get("asic-int8")?)?, run(&chip)?);
    let differs = (wide.tensors.iter()).find(|(place, tensor)| narrow.tensors[place] != **tensor);
    let (place, _) = differs.expect("18 bits are too few for this model");
    println!(
        "{} against asic-int8: the first tensor that differs is {place}",
        chip.label()
    );
    Ok(())
}
