//! A probe of one's own: the largest magnitude of every block's scan output, without keeping a tensor.
//! `cargo run --release --example probe`

use scalescope_sim::{ModeTable, Place, Probe, Profile, Result, Simulator, Tensor, TracePoint};

struct Peaks(Vec<(Place, f32)>);

impl Probe for Peaks {
    fn wants(&self, place: Place) -> bool {
        place.point == TracePoint::SsmY
    }

    // What is left in `value` is what the next step reads: a probe can also replace it.
    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        let peak = value
            .to_real()
            .iter()
            .fold(0.0, |peak: f32, y| peak.max(y.abs()));
        self.0.push((place, peak));
        Ok(())
    }
}

pub(crate) fn main() -> Result<()> {
    let modes = ModeTable::default();
    let (mode, profile) = (modes.get("2-1")?, Profile::get("deployed")?);
    let simulator = Simulator::new(scalescope_sim::sample::model(), mode, &profile)?;
    let mut peaks = Peaks(Vec::new());
    simulator.run(&(1..64).collect::<Vec<u32>>(), &mut peaks)?;
    for (place, peak) in &peaks.0 {
        println!("{place:>16} {peak:8.3}");
    }
    assert_eq!(peaks.0.len(), simulator.model().config()?.n_layers);
    Ok(())
}
