//! Which quantizer's codes reach which reader, by the fields of a mode.

use scalescope_sim::mode::{ConvInput, ModeSpec, Precision, ScanInput, XOutput};
use scalescope_sim::plan::ScaleUse;
use scalescope_sim::profile::unit::ActivationGranularity;
use scalescope_sim::trace::TracePoint;
use serde::Serialize;

/// Who makes codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Maker {
    /// A quantizer with a calibrated scale.
    Static(ScaleUse),
    /// A quantizer that finds its scale at run time, in the place of one with the scale of this use.
    Dynamic(ScaleUse),
}

/// The columns of a tensor that a reader takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// Every one.
    All,
    /// x of x‖z.
    X,
    /// z of x‖z.
    Z,
    /// dt of dt‖B‖C.
    Dt,
    /// B of dt‖B‖C.
    B,
    /// C of dt‖B‖C.
    C,
}

/// Codes on their way from a quantizer to a reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// Who makes them.
    pub maker: Maker,
    /// Where they can be seen.
    pub point: TracePoint,
    /// What the reader takes of them.
    pub part: Part,
    /// Who reads; a dynamic scale travels with the codes, so that its reader has no use of its own.
    pub reader: Option<ScaleUse>,
}

/// Every flow of codes in a block of this mode, in the order of the data. `granularity` is that of
/// in_proj's and out_proj's inputs.
pub fn flows(mode: &ModeSpec, granularity: ActivationGranularity) -> Vec<Flow> {
    let int8 = |precision| precision == Precision::Int8;
    let mut flows = Vec::new();
    let mut flow = |when: bool, maker, point, part, reader| {
        if when {
            let maker = Maker::Static(maker);
            flows.push(Flow {
                maker,
                point,
                part,
                reader: Some(reader),
            });
        }
    };
    let x = mode.x == XOutput::Int8;
    let z = int8(mode.z);
    // x and z are one tensor only if both are codes.
    let (x_point, x_part) = match z {
        true => (TracePoint::InProjOut, Part::X),
        false => (TracePoint::InProjX, Part::All),
    };
    let (z_point, z_part) = match x {
        true => (TracePoint::InProjOut, Part::Z),
        false => (TracePoint::InProjZ, Part::All),
    };
    use {ScaleUse as U, TracePoint as P};
    flow(
        int8(mode.norm_out),
        U::NormOut,
        P::NormOut,
        Part::All,
        U::InProjIn,
    );
    flow(x, U::InProjOut, x_point, x_part, U::ConvIn);
    flow(z, U::InProjOut, z_point, z_part, U::ScanZ);
    let fixed = mode.conv_in == ConvInput::Static;
    flow(fixed && !x, U::ConvIn, P::ConvIn, Part::All, U::ConvIn);
    let conv = int8(mode.conv_out);
    flow(conv, U::ConvOut, P::ConvOut, Part::All, U::XProjIn);
    flow(conv, U::ConvOut, P::ConvOut, Part::All, U::ScanU);
    let route_a = !conv && int8(mode.x_proj_in);
    flow(route_a, U::XProjQuant, P::XProjIn, Part::All, U::XProjIn);
    let route_b = match mode.u {
        ScanInput::Int8 => !conv,
        ScanInput::RoundTrip => true,
        ScanInput::Float => false,
    };
    flow(route_b, U::ScanUQuant, P::SsmU, Part::All, U::ScanU);
    for (part, reader) in [
        (Part::Dt, U::DtProjIn),
        (Part::B, U::ScanB),
        (Part::C, U::ScanC),
    ] {
        flow(
            int8(mode.x_proj_out),
            U::XProjOut,
            P::XProjOut,
            part,
            reader,
        );
    }
    flow(
        int8(mode.dt_proj_out),
        U::DtProjOut,
        P::DtProjOut,
        Part::All,
        U::ScanDt,
    );
    flow(
        int8(mode.state),
        U::StateOut,
        P::SsmState,
        Part::All,
        U::StateIn,
    );
    flow(
        int8(mode.had_out),
        U::HadOut,
        P::HadOut,
        Part::All,
        U::OutProjIn,
    );
    if matches!(
        mode.conv_in,
        ConvInput::DynamicTensor | ConvInput::DynamicToken
    ) {
        let dynamic = Flow {
            maker: Maker::Dynamic(ScaleUse::ConvIn),
            point: TracePoint::ConvIn,
            part: Part::All,
            reader: None,
        };
        let at = flows
            .iter()
            .position(|f| f.point > TracePoint::ConvIn)
            .unwrap_or(flows.len());
        flows.insert(at, dynamic);
    }
    if granularity == ActivationGranularity::Token {
        for flow in &mut flows {
            if let Maker::Static(by @ (U::NormOut | U::HadOut)) = flow.maker {
                (flow.maker, flow.reader) = (Maker::Dynamic(by), None);
            }
        }
    }
    flows
}
