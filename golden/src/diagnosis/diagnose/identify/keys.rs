//! The keys of profile files that are tried, group by group.

use scalescope_sim::trace::TracePoint;
use serde_json::{Value, json};

/// Keys of a profile file and their values.
pub(super) type Keys = Vec<(String, Value)>;

/// Settings of one sort: at most one of them holds.
pub(super) type Sort = Vec<Keys>;

/// A group of keys, and the tensors that tell about it.
pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) points: Vec<TracePoint>,
    pub(super) sorts: Vec<Sort>,
}

impl Group {
    /// Every setting.
    pub(super) fn moves(&self) -> impl Iterator<Item = &Keys> {
        self.sorts.iter().flatten()
    }
}

const ROUNDINGS: [&str; 7] = [
    "nearest-ties-to-even",
    "nearest-ties-away",
    "nearest-ties-up",
    "floor",
    "ceil",
    "toward-zero",
    "half-away-by-adding",
];
const OVERFLOWS: [&str; 3] = ["saturate", "saturate-symmetric", "wrap"];

fn key(name: &str, value: impl Into<Value>) -> (String, Value) {
    (name.to_owned(), value.into())
}

fn one<const N: usize>(name: &str, values: [impl Into<Value>; N]) -> Sort {
    values.map(|value| vec![key(name, value)]).into()
}

/// Rounding and overflow below a key.
fn quantizer(prefix: &str) -> Vec<Sort> {
    vec![
        one(&format!("{prefix}.rounding"), ROUNDINGS),
        one(&format!("{prefix}.overflow"), OVERFLOWS),
    ]
}

/// How sums come to their grid, below a key.
fn requant(prefix: &str) -> Vec<Sort> {
    let at = |rest: &str| format!("{prefix}.{rest}");
    let mut scaling = one(&at("scaling"), ["f32", "power-of-two"]);
    scaling.extend((8..=32).map(|bits| {
        vec![
            key(&at("scaling"), "fixed"),
            key(&at("multiplier_bits"), bits),
        ]
    }));
    let mut steps = one(&at("rounding_steps"), ["single"]);
    for first in ["nearest-ties-up", "nearest-ties-away", "floor"] {
        steps.push(vec![
            key(&at("rounding_steps"), "double"),
            key(&at("first_rounding"), first),
        ]);
    }
    let mut all = vec![scaling];
    all.extend(quantizer(prefix));
    all.push(steps);
    all
}

fn register(prefix: &str) -> Vec<Sort> {
    let bits = (12..=32).flat_map(|bits| ["wrap", "saturate"].map(|overflow| (bits, overflow)));
    let register = |(bits, overflow)| {
        vec![
            key(&format!("{prefix}.bits"), bits),
            key(&format!("{prefix}.overflow"), overflow),
        ]
    };
    vec![bits.map(register).collect()]
}

fn function(name: &str) -> Vec<Sort> {
    let at = |rest: &str| format!("nonlinearity.{name}.{rest}");
    let mut forms = one(&at("form"), ["exact"]);
    let table = |entries: i64, interpolation: &str| {
        vec![
            key(&at("form"), "table"),
            key(&at("entries"), entries),
            key(&at("interpolation"), interpolation),
        ]
    };
    for power in 3..=12 {
        for interpolation in ["linear", "nearest"] {
            forms.push(table(1 << power, interpolation));
        }
    }
    for degree in 1..=3 {
        for segments in [4i64, 8, 16, 32, 64] {
            forms.push(vec![
                key(&at("form"), "polynomial"),
                key(&at("segments"), segments),
                key(&at("degree"), degree),
            ]);
        }
    }
    if name == "exp" {
        forms.push(vec![key(&at("form"), "shift")]);
    }
    let range = |high: i64| match name {
        "exp" => json!([-high, 0]),
        _ => json!([-high, high]),
    };
    vec![
        forms,
        one(&at("range"), [4, 8, 16].map(range)),
        (8..=20i64)
            .map(|fraction| vec![key(&at("output_fraction"), fraction)])
            .collect(),
        (6..=14i64)
            .map(|fraction| vec![key(&at("input_fraction"), fraction)])
            .collect(),
    ]
}

fn scan() -> Vec<Sort> {
    let mut states = one("scan.state", ["f32", "f16"]);
    for state in ["int8", "int16", "int24", "int32"] {
        for headroom in 0..=4 {
            states.push(vec![
                key("scan.state", state),
                key("scan.headroom", headroom),
            ]);
        }
    }
    let mut orders = one("scan.order", ["sequential"]);
    for order in ["kogge-stone", "chunked"] {
        for block in [4i64, 8, 16, 32, 64, 128] {
            orders.push(vec![key("scan.order", order), key("scan.block", block)]);
        }
    }
    vec![
        states,
        one("scan.requantize_every", [1, 2, 4, 8, 16]),
        one("scan.rounding", ROUNDINGS),
        orders,
        one("scan.scale", ["calibrated", "power-of-two"]),
        one("scan.overflow", ["saturate", "wrap"]),
    ]
}

fn hadamard() -> Vec<Sort> {
    let mut forms = one("hadamard.form", ["f32"]);
    for bits in [8i64, 10, 12, 14, 16, 18, 20, 24] {
        for fraction in [0i64, 2, 4, 6, 8] {
            forms.push(vec![
                key("hadamard.form", "integer"),
                key("hadamard.bits", bits),
                key("hadamard.fraction", fraction),
            ]);
        }
    }
    let growth = (0..=10).map(|growth| vec![key("hadamard.growth", growth)]);
    vec![forms, growth.collect()]
}

/// Every group, in the order of the data.
pub(super) fn groups() -> Vec<Group> {
    use TracePoint as P;
    let group = |name, points: &[TracePoint], sorts: Vec<Vec<Sort>>| Group {
        name,
        points: points.to_vec(),
        sorts: sorts.into_iter().flatten().collect(),
    };
    let weights = vec![
        one("activations.scales", ["power-of-two"]),
        one("weights.granularity", ["tensor", "channel", "group"]),
        one("weights.bits", [8, 4]),
        one("weights.scales", ["power-of-two"]),
    ];
    let linear = |name: &'static str, points: &[TracePoint]| {
        let sorts = vec![
            requant(&format!("requant.{name}")),
            register(&format!("accumulator.{name}")),
        ];
        group(name, points, sorts)
    };
    vec![
        group(
            "weights",
            &[
                P::InProjOut,
                P::InProjX,
                P::InProjZ,
                P::XProjOut,
                P::OutProjOut,
            ],
            vec![weights],
        ),
        group(
            "quantizer",
            &[P::NormOut, P::ConvIn, P::XProjIn, P::SsmU, P::SsmBc],
            vec![quantizer("quantizer")],
        ),
        linear("in_proj", &[P::InProjOut, P::InProjX, P::InProjZ]),
        group(
            "conv",
            &[P::ConvOut, P::ConvOutF32],
            vec![
                vec![one("weights.conv_granularity", ["channel"])],
                requant("requant.conv"),
                function("silu"),
                register("accumulator.conv"),
            ],
        ),
        linear("x_proj", &[P::XProjOut]),
        linear("dt_proj", &[P::DtProjOut]),
        group(
            "scan",
            &[P::SsmY, P::SsmState],
            vec![
                scan(),
                function("exp"),
                function("softplus"),
                requant("requant.scan"),
            ],
        ),
        group(
            "hadamard",
            &[P::HadOut],
            vec![hadamard(), requant("requant.hadamard")],
        ),
        linear("out_proj", &[P::OutProjOut]),
    ]
}
