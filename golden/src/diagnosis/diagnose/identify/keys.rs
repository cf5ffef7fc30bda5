//! The keys of profile files that are tried, group by group.

use scalescope_sim::trace::TracePoint;
use serde_json::{Value, json};

/// Keys of a profile file and their values.
pub(super) type Keys = Vec<(String, Value)>;

/// A group of keys, and the tensors that tell about it.
pub(super) struct Group {
    pub(super) name: &'static str,
    pub(super) points: Vec<TracePoint>,
    pub(super) moves: Vec<Keys>,
}

impl Group {
    /// Settings of two sorts together, for what no single one brings nearer: a state in f16 that is scanned in
    /// another order is farther from either than from neither. Of each sort those that differ much.
    pub(super) fn pairs(&self) -> Vec<Keys> {
        let sort = |keys: &Keys| {
            let name = &keys[0].0;
            let parts = name.split('.').take(2).collect::<Vec<_>>().join(".");
            let last = name.rsplit('.').next().unwrap_or_default().to_owned();
            match last.as_str() {
                "rounding" | "overflow" if parts != *name => format!("{parts} {last}"),
                _ => parts,
            }
        };
        let plain = |keys: &&Keys| {
            let has = |part: &str, value: &str| {
                keys.iter()
                    .any(|(name, v)| name.ends_with(part) && v == value)
            };
            let fine = ["fraction", "range"];
            let fine = |name: &str| fine.iter().any(|part| name.ends_with(part)) && keys.len() != 3;
            let fixed = has("scaling", "fixed");
            !keys[0].0.starts_with("accumulator")
                && !keys.iter().any(|(name, _)| fine(name))
                && (!fixed || has("rounding", "nearest-ties-up") && has("rounding_steps", "single"))
        };
        let moves: Vec<&Keys> = self.moves.iter().filter(plain).collect();
        let mut all = Vec::new();
        for (i, one) in moves.iter().enumerate() {
            let others = moves[i + 1..]
                .iter()
                .filter(|other| sort(one) != sort(other));
            all.extend(others.map(|other| {
                let mut both = (*one).clone();
                both.extend((*other).iter().cloned());
                both
            }));
        }
        all
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

/// Rounding and overflow below a key.
fn quantizer(prefix: &str) -> Vec<Keys> {
    let roundings = ROUNDINGS.map(|r| vec![key(&format!("{prefix}.rounding"), r)]);
    let overflows = OVERFLOWS.map(|o| vec![key(&format!("{prefix}.overflow"), o)]);
    roundings.into_iter().chain(overflows).collect()
}

/// How sums come to their grid, below a key.
fn requant(prefix: &str) -> Vec<Keys> {
    let mut all = quantizer(prefix);
    for scaling in ["f32", "power-of-two"] {
        all.push(vec![key(&format!("{prefix}.scaling"), scaling)]);
    }
    for bits in 8..=32 {
        for rounding in [
            "nearest-ties-up",
            "nearest-ties-to-even",
            "nearest-ties-away",
            "floor",
        ] {
            let fixed = vec![
                key(&format!("{prefix}.scaling"), "fixed"),
                key(&format!("{prefix}.multiplier_bits"), bits),
                key(&format!("{prefix}.rounding"), rounding),
            ];
            let mut double = fixed.clone();
            double.push(key(&format!("{prefix}.rounding_steps"), "double"));
            double.push(key(&format!("{prefix}.first_rounding"), "nearest-ties-up"));
            let mut single = fixed;
            single.push(key(&format!("{prefix}.rounding_steps"), "single"));
            all.push(single);
            all.push(double);
        }
    }
    all
}

fn register(prefix: &str) -> Vec<Keys> {
    let mut all = Vec::new();
    for bits in 12..=32 {
        for overflow in ["wrap", "saturate"] {
            all.push(vec![
                key(&format!("{prefix}.bits"), bits),
                key(&format!("{prefix}.overflow"), overflow),
            ]);
        }
    }
    all
}

fn function(name: &str) -> Vec<Keys> {
    let at = |rest: &str| format!("nonlinearity.{name}.{rest}");
    let mut all = vec![vec![key(&at("form"), "exact")]];
    let table = |entries: i64, interpolation: &str| {
        vec![
            key(&at("form"), "table"),
            key(&at("entries"), entries),
            key(&at("interpolation"), interpolation),
        ]
    };
    for power in 3..=12 {
        for interpolation in ["linear", "nearest"] {
            all.push(table(1 << power, interpolation));
        }
    }
    let range = match name {
        "silu" => json!([-8, 8]),
        "exp" => json!([-16, 0]),
        _ => json!([-16, 16]),
    };
    for entries in [64i64, 256, 1024] {
        for fraction in [12i64, 14, 16] {
            let mut keys = table(entries, "linear");
            keys.push(key(&at("range"), range.clone()));
            keys.push(key(&at("output_fraction"), fraction));
            all.push(keys);
        }
    }
    for degree in 1..=3 {
        for segments in [4i64, 8, 16, 32, 64] {
            all.push(vec![
                key(&at("form"), "polynomial"),
                key(&at("segments"), segments),
                key(&at("degree"), degree),
            ]);
        }
    }
    if name == "exp" {
        all.push(vec![key(&at("form"), "shift")]);
    }
    for fraction in 8..=20 {
        all.push(vec![key(&at("output_fraction"), fraction)]);
    }
    for fraction in 6..=14 {
        all.push(vec![key(&at("input_fraction"), fraction)]);
    }
    for high in [4i64, 8, 16] {
        let low = -high;
        let range = if name == "exp" {
            json!([low, 0])
        } else {
            json!([low, high])
        };
        all.push(vec![key(&at("range"), range)]);
    }
    all
}

fn scan() -> Vec<Keys> {
    let mut all = Vec::new();
    for state in ["f32", "f16"] {
        all.push(vec![key("scan.state", state)]);
    }
    for state in ["int8", "int16", "int24", "int32"] {
        for headroom in 0..=4 {
            all.push(vec![
                key("scan.state", state),
                key("scan.headroom", headroom),
            ]);
        }
    }
    all.extend(ROUNDINGS.map(|r| vec![key("scan.rounding", r)]));
    for overflow in ["saturate", "wrap"] {
        all.push(vec![key("scan.overflow", overflow)]);
    }
    for scale in ["calibrated", "power-of-two"] {
        all.push(vec![key("scan.scale", scale)]);
    }
    all.push(vec![key("scan.order", "sequential")]);
    for order in ["kogge-stone", "chunked"] {
        for block in [4i64, 8, 16, 32, 64, 128] {
            all.push(vec![key("scan.order", order), key("scan.block", block)]);
        }
    }
    for every in [1i64, 2, 4, 8, 16] {
        all.push(vec![key("scan.requantize_every", every)]);
    }
    all
}

fn hadamard() -> Vec<Keys> {
    let mut all = vec![vec![key("hadamard.form", "f32")]];
    for bits in [8i64, 10, 12, 14, 16, 18, 20, 24] {
        for fraction in [0i64, 2, 4, 6, 8] {
            all.push(vec![
                key("hadamard.form", "integer"),
                key("hadamard.bits", bits),
                key("hadamard.fraction", fraction),
            ]);
        }
    }
    for growth in 0..=10 {
        all.push(vec![key("hadamard.growth", growth)]);
    }
    all
}

/// Every group, in the order of the data.
pub(super) fn groups() -> Vec<Group> {
    use TracePoint as P;
    let group = |name, points: &[TracePoint], moves: Vec<Vec<Keys>>| Group {
        name,
        points: points.to_vec(),
        moves: moves.into_iter().flatten().collect(),
    };
    let weights: Vec<Keys> = [
        ("weights.bits", json!(8)),
        ("weights.bits", json!(4)),
        ("weights.granularity", json!("tensor")),
        ("weights.granularity", json!("channel")),
        ("weights.granularity", json!("group")),
        ("weights.scales", json!("power-of-two")),
        ("activations.scales", json!("power-of-two")),
    ]
    .into_iter()
    .map(|(name, value)| vec![key(name, value)])
    .collect();
    let linear = |name: &'static str, points: &[TracePoint]| {
        let moves = vec![
            requant(&format!("requant.{name}")),
            register(&format!("accumulator.{name}")),
        ];
        group(name, points, moves)
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
                vec![vec![key("weights.conv_granularity", "channel")]],
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
