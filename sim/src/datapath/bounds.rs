//! What the accumulators of a prepared model can reach, by interval arithmetic over its weights.

use super::Datapath;
use super::prepare::Layer;
use crate::headroom::Bound;
use crate::mode::Implementation;
use crate::plan::ScaleUse;
use crate::profile::unit::StateFormat;
use crate::step::hadamard_unit::IntegerRotation;
use crate::trace::{Place, TracePoint};

impl Datapath<'_> {
    /// The bound of every accumulator of prefill, block by block. Inputs of a linear step may be any
    /// INT8 code; f32 sums have none.
    pub fn accumulator_bounds(&self) -> Vec<Bound> {
        let layers = self.layers.iter().enumerate();
        layers
            .flat_map(|(index, layer)| bounds(index, layer))
            .collect()
    }
}

fn bounds(index: usize, layer: &Layer) -> Vec<Bound> {
    let rules = &layer.profile.arithmetic(Implementation::Cuda).prefill;
    let linear = &rules.linear;
    let at = |point, register, reach| Bound {
        place: Place::layer(index, point),
        register,
        reach: Some(reach),
    };
    let mut found = Vec::new();
    let (x, z) = (layer.in_proj_x.reach(), layer.in_proj_z.reach());
    let in_proj = x.zip(z).map(|(x, z)| (x.0.min(z.0), x.1.max(z.1)));
    for (point, rule, reach) in [
        (TracePoint::InProjOut, linear.in_proj, in_proj),
        (TracePoint::XProjOut, linear.x_proj, layer.x_proj.reach()),
        (TracePoint::DtProjOut, linear.dt_proj, layer.dt_proj.reach()),
        (
            TracePoint::OutProjOut,
            linear.out_proj,
            layer.out_proj.reach(),
        ),
    ] {
        found.extend(reach.map(|reach| at(point, rule.accumulator, reach)));
    }
    let Some(scales) = &layer.scales else {
        return found;
    };
    let conv = layer.profile.arithmetic(layer.mode.conv).prefill.conv;
    let reach = layer.conv.reach(&conv, scales.get(ScaleUse::ConvIn));
    found.extend(reach.map(|reach| at(TracePoint::ConvOut, conv.accumulator, reach)));
    let scan = layer.profile.arithmetic(layer.mode.scan).prefill.scan;
    if let Some(unit) = scan.unit
        && let StateFormat::Fixed { register, .. } = unit.state
    {
        // A state is a recurrence: with a decay of 1 nothing but its register bounds it. The sum over
        // states is bounded by that.
        let terms = layer.scan.states() as i64 + 1;
        let top = (register.max() + 1).saturating_mul(128 * terms);
        found.push(at(TracePoint::SsmY, unit.accumulator, (-top, top)));
        found.push(Bound {
            place: Place::layer(index, TracePoint::SsmState),
            register,
            reach: None,
        });
    }
    if let Some(size) = layer.rotation
        && let Some(rotation) = IntegerRotation::of(size, rules.hadamard.form)
    {
        found.push(at(
            TracePoint::HadOut,
            rotation.register(),
            rotation.reach(),
        ));
    }
    found
}
