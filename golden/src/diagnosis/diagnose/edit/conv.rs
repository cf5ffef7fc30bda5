//! Edits of the convolution.

use super::codes::{Narrowed, Packing, turned_bits, unsigned};
use super::{Around, ChannelOrder, Edit, Edits, Half, TokenOrder, moves, replace, turned};
use crate::diagnosis::diagnose::formula::{
    Activation, BlockInputs, Conv, Formula, Measured, Sigmoid, Stride, Table,
};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::{Array2, s};
use scalescope_sim::dataflow::{Row, Step};
use std::sync::Arc;

mod history;
mod once;
mod parameters;

/// Factors that a parameter may have by mistake.
const FACTORS: [f32; 6] = [
    0.5,
    0.25,
    4.0,
    std::f32::consts::SQRT_2,
    std::f32::consts::FRAC_1_SQRT_2,
    127.0 / 128.0,
];

/// The function that takes the place of SiLU, read off what deviates.
pub fn measured<'a>(scene: Option<&'a BlockInputs<'a, '_>>, row: &'a Row, found: Measured) -> Edit {
    let mut edits = Edits::new(scene, row, 0);
    let words = format!("another function in the place of SiLU: {}", found.words());
    let found = Arc::new(found);
    let change = on_conv(move |c| c.measured = Some(Arc::clone(&found)));
    edits.formula(8, (Kind::Function, "SiLU"), words, change);
    edits.all.remove(0)
}

/// Every order of a few but their own.
fn orders(count: usize) -> Vec<Vec<usize>> {
    let own: Vec<usize> = (0..count).collect();
    let mut all = vec![Vec::new()];
    if count > 4 {
        // Of more those that are turned round, and the reverse.
        return (1..count)
            .map(|by| own.iter().map(|i| (i + by) % count).collect())
            .collect();
    }
    for _ in 0..count {
        let longer = |order: &Vec<usize>| {
            let rest = own.iter().filter(|i| !order.contains(i));
            let add = |i: &usize| order.iter().copied().chain([*i]).collect();
            rest.map(add).collect::<Vec<Vec<usize>>>()
        };
        all = all.iter().flat_map(longer).collect();
    }
    all.retain(|order| *order != own);
    all
}

/// One code of a channel's parameters: every bit of its taps turned over, and none; every code of its bias.
pub fn bits<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    own: &Conv,
    channel: usize,
) -> Vec<Edit> {
    let mut edits = Edits::new(scene, row, own.taps.ncols());
    for tap in 0..own.taps.nrows() {
        let before = own.taps[(tap, channel)];
        for (after, bit) in turned_bits(before) {
            let words = format!("tap {tap} of channel {channel} is {after} and not {before}{bit}");
            let change = on_conv(move |c| c.taps[(tap, channel)] = after);
            edits.formula(6, (Kind::Weights, "weight"), words, change);
        }
    }
    if let Some(scale) = own.bias_scale {
        let before = (own.bias[channel] / scale).round();
        for (after, bit) in turned_bits(before) {
            let words =
                format!("the bias of channel {channel} is code {after} and not {before}{bit}");
            let change = on_conv(move |c| c.bias[channel] = after * scale);
            edits.formula(6, (Kind::Weights, "bias"), words, change);
        }
    }
    edits.all
}

fn on_conv(
    change: impl Fn(&mut Conv) + Send + Sync,
) -> impl Fn(&mut Formula, Around) + Send + Sync {
    move |formula, _| {
        if let Formula::Conv(step) = formula {
            change(step);
        }
    }
}

impl Edits<'_, '_> {
    pub(super) fn of_conv(&mut self, own: &Conv) {
        let (k, e) = own.taps.dim();
        self.formula(
            1,
            (Kind::LeftOut, "bias"),
            "the bias is missing",
            on_conv(|c| c.bias.fill(0.0)),
        );
        self.formula(
            1,
            (Kind::Twice, "bias"),
            "the bias is added twice",
            on_conv(|c| {
                c.bias.iter_mut().for_each(|b| *b *= 2.0);
            }),
        );
        self.formula(
            2,
            (Kind::Sign, "bias"),
            "the bias is subtracted",
            on_conv(|c| {
                c.bias.iter_mut().for_each(|b| *b = -*b);
            }),
        );
        self.formula(
            1,
            (Kind::Order, "taps"),
            "the taps are in reverse",
            on_conv(|c| {
                c.taps = c.taps.slice(s![..;-1, ..]).to_owned();
            }),
        );
        let reverse: Vec<usize> = (0..k).rev().collect();
        for order in orders(k).into_iter().filter(|order| *order != reverse) {
            let names: Vec<String> = order.iter().map(ToString::to_string).collect();
            let words = format!("the taps are in the order {}", names.join(", "));
            let change = on_conv(move |c| c.taps = c.taps.select(ndarray::Axis(0), &order));
            self.formula(3, (Kind::Order, "taps"), words, change);
        }
        self.conv_parameters(own);
        self.formula(
            2,
            (Kind::Order, "bias"),
            "the bias is added after SiLU",
            on_conv(|c| c.bias_after = true),
        );
        for factor in FACTORS {
            let words = format!("the bias is multiplied by {factor:.4}");
            let change = on_conv(move |c| c.bias.iter_mut().for_each(|b| *b *= factor));
            self.formula(4, (Kind::Factor, "bias"), words, change);
        }
        self.formula(
            2,
            (Kind::LeftOut, "weight"),
            "the taps are missing: the bias alone",
            on_conv(|c| c.taps.fill(0.0)),
        );
        for tap in 0..k {
            let words = format!("tap {tap} is missing");
            self.formula(
                1,
                (Kind::PartMissing, "taps"),
                words,
                on_conv(move |c| c.taps.row_mut(tap).fill(0.0)),
            );
        }
        if k > 2 {
            let words = "only the token's own tap is summed: no history";
            self.formula(
                1,
                (Kind::History, "taps"),
                words,
                on_conv(move |c| {
                    c.taps.slice_mut(s![..k - 1, ..]).fill(0.0);
                }),
            );
        }
        for activation in Activation::OTHERS {
            let words = match activation {
                Activation::Identity => "SiLU is missing".to_owned(),
                Activation::SiluTwice => "SiLU is applied twice".to_owned(),
                other => format!("{} in the place of SiLU", other.name()),
            };
            let kind = match activation {
                Activation::Identity => Kind::LeftOut,
                Activation::SiluTwice => Kind::Twice,
                _ => Kind::Function,
            };
            self.formula(
                1,
                (kind, "SiLU"),
                words,
                on_conv(move |c| c.activation = activation),
            );
        }
        for sigmoid in Sigmoid::others() {
            let activation = Activation::Gated(sigmoid);
            let words = format!("SiLU is {}", activation.name());
            let change = on_conv(move |c| c.activation = activation);
            self.formula(6, (Kind::Function, "SiLU"), words, change);
        }
        for table in Table::all(&[(-4.0, 4.0), (-8.0, 8.0), (-16.0, 16.0)]) {
            let words = format!("SiLU is {}", table.name());
            let activation = Activation::Tabled(table);
            let change = on_conv(move |c| c.activation = activation);
            self.formula(6, (Kind::Table, "SiLU"), words, change);
        }
        for tile in [2usize, 4, 8, 16, 32, 64, 128, 256, 512] {
            self.conv_tile(tile);
        }
        self.conv_operands();
        for (layer, scene) in self.other_layers() {
            let weight = scene.path.conv_weight(layer);
            if !weight.has_codes() {
                continue;
            }
            let taps = Array2::from_shape_fn((k, e), |(tap, c)| f32::from(weight.code(tap, c)));
            let scale: Vec<f32> = match own.tap_scale.len() {
                1 => vec![weight.tap_scale(0)],
                _ => (0..e).map(|c| weight.tap_scale(c)).collect(),
            };
            let bias: Vec<f32> = (0..e).map(|c| weight.bias(c)).collect();
            let all = (taps.clone(), bias.clone(), scale.clone());
            let words = format!("weight and bias are those of block {layer}");
            self.formula(
                2,
                (Kind::Neighbour, "weight"),
                words,
                on_conv(move |c| {
                    (c.taps, c.bias, c.tap_scale) = all.clone();
                }),
            );
            let (own_scale, with_scale) = (taps.clone(), scale.clone());
            let words = format!("the weight is that of block {layer}, at its own scale");
            self.formula(
                2,
                (Kind::Neighbour, "weight"),
                words,
                on_conv(move |c| {
                    (c.taps, c.tap_scale) = (taps.clone(), with_scale.clone());
                }),
            );
            let words = format!("the weight's codes are those of block {layer}");
            self.formula(
                2,
                (Kind::Neighbour, "weight"),
                words,
                on_conv(move |c| {
                    c.taps = own_scale.clone();
                }),
            );
            let words = format!("the bias is that of block {layer}");
            self.formula(
                2,
                (Kind::Neighbour, "bias"),
                words,
                on_conv(move |c| c.bias = bias.clone()),
            );
            let words = format!("the weight's scale is that of block {layer}");
            self.formula(
                3,
                (Kind::Neighbour, "weight scale"),
                words,
                on_conv(move |c| c.tap_scale.clone_from(&scale)),
            );
        }
        for order in TokenOrder::all() {
            let words = format!("the input's {}", order.words());
            let change = on_conv(move |c| c.x.values = order.of(&c.x.values));
            self.formula(4, (order.kind(), "input"), words, change);
        }
        for stride in Stride::of_each(&own.x) {
            let words = stride.words("the input");
            let change = on_conv(move |c| stride.of_operand(&mut c.x));
            self.formula(4, (Kind::Order, "input"), words, change);
        }
        for half in Half::ALL {
            let words = format!(
                "{} of the input are those of the token before",
                half.words()
            );
            let change = on_conv(move |c| c.x.values = half.late(&c.x.values));
            self.formula(4, (Kind::Neighbour, "input"), words, change);
        }
        for order in ChannelOrder::heads(e) {
            let words = format!("the input's {}", order.words());
            let change = on_conv(move |c| c.x.values = order.of(&c.x.values));
            self.formula(4, (order.kind(), "input"), words, change);
        }
        for by in moves([1, -1, 2, -2, 3, -3, 4, -4, 8, -8, 16, -16, 32, -32]) {
            let words = format!("the input is that {}", by.words());
            self.formula(
                2,
                (Kind::Neighbour, "input"),
                words,
                on_conv(move |c| {
                    c.x.values = by.of(&c.x.values);
                }),
            );
        }
        for by in [1isize, -1] {
            let words = format!("each channel reads channel {:+}", -by);
            self.formula(
                3,
                (Kind::Neighbour, "input"),
                words,
                on_conv(move |c| {
                    c.x.values = turned(&c.x.values, by);
                }),
            );
            let words = format!("each channel has the weight of channel {:+}", -by);
            self.formula(
                3,
                (Kind::Neighbour, "weight"),
                words,
                on_conv(move |c| c.taps = turned(&c.taps, by)),
            );
            let words = format!("each channel has the bias of channel {:+}", -by);
            self.formula(
                3,
                (Kind::Neighbour, "bias"),
                words,
                on_conv(move |c| {
                    if by > 0 {
                        c.bias.rotate_right(1)
                    } else {
                        c.bias.rotate_left(1)
                    }
                }),
            );
            for zero in [1.0f32, 2.0, 3.0, 4.0, 8.0, 128.0].map(|zero| zero * by as f32) {
                let words = format!("the input has a zero point of {zero}");
                self.formula(
                    5,
                    (Kind::ZeroPoint, "input"),
                    words,
                    on_conv(move |c| {
                        c.x.values += zero;
                        c.history += zero;
                    }),
                );
                // Of a kernel that adds it after it has put zeros before the first token.
                let words =
                    format!("the input has a zero point of {zero}, but not before the first token");
                let change = on_conv(move |c| c.x.values += zero);
                self.formula(5, (Kind::ZeroPoint, "input"), words, change);
            }
        }
        self.formula(
            3,
            (Kind::LeftOut, "weight scale"),
            "the weight's scale is left out",
            on_conv(|c| c.tap_scale.fill(1.0)),
        );
        self.formula(
            3,
            (Kind::LeftOut, "input scale"),
            "the input's scale is left out",
            on_conv(|c| c.x.scale = 1.0),
        );
        if let Some(scale) = own.bias_scale {
            self.formula(
                3,
                (Kind::LeftOut, "bias scale"),
                "the bias's scale is left out",
                on_conv(move |c| {
                    c.bias.iter_mut().for_each(|b| *b /= scale);
                }),
            );
            let words = "the bias has the weight's scale";
            self.formula(
                3,
                (Kind::Neighbour, "bias scale"),
                words,
                on_conv(move |c| {
                    for i in 0..c.bias.len() {
                        c.bias[i] *= c.tap_scale(i) / scale;
                    }
                }),
            );
        }
        // z in the place of x: the scan reads it last.
        let z = self.scene.and_then(|scene| {
            let mut rows = scene.block.of_step(Step::Scan);
            let row = rows.find(|row| !row.weights.is_empty() && !row.point.is_state())?;
            scene.operand(row.reads.last()?)
        });
        if let Some(z) = z {
            self.formula(
                2,
                (Kind::Neighbour, "input"),
                "the input is z and not x",
                on_conv(move |c| {
                    replace(&mut c.x.values, &z.values);
                }),
            );
        }
        for by in [2usize, 3, 4] {
            let words = format!("taps are {by} tokens apart");
            let change = on_conv(move |c| c.dilation = by);
            self.formula(3, (Kind::Neighbour, "taps"), words, change);
        }
        let words = "the weight's buffer holds the first taps of all channels first";
        self.formula(
            3,
            (Kind::Order, "weight"),
            words,
            on_conv(|c| {
                // Read [E, K] from a buffer that is [K, E].
                let (k, e) = c.taps.dim();
                let buffer: Vec<f32> = c.taps.t().iter().copied().collect();
                c.taps = Array2::from_shape_fn((k, e), |(tap, c)| buffer[tap * e + c]);
            }),
        );
        self.formula(
            3,
            (Kind::Order, "weight"),
            "the weight's buffer is read tap by tap, and holds the taps of a channel together",
            on_conv(|c| {
                let (k, e) = c.taps.dim();
                let buffer: Vec<f32> = c.taps.iter().copied().collect();
                c.taps = Array2::from_shape_fn((k, e), |(tap, c)| buffer[c * k + tap]);
            }),
        );
        if own.integer || own.chip.is_some() {
            let words = "the weight's codes are read as unsigned";
            let change = on_conv(|c| c.taps.mapv_inplace(unsigned));
            self.formula(5, (Kind::Format, "weight"), words, change);
            let words = "the input codes are read as unsigned";
            let change = on_conv(|c| c.x.values.mapv_inplace(unsigned));
            self.formula(5, (Kind::Format, "input"), words, change);
        }
        self.conv_starts(k);
        self.in_half_of_silu();
    }

    /// Codes of the input and of the taps that lack bits, or have another sign.
    fn conv_operands(&mut self) {
        for (site, name, of) in [
            ("input", "the input codes", true),
            ("weight", "the weight's codes", false),
        ] {
            let each = move |c: &mut Conv, change: &dyn Fn(f32) -> f32| match of {
                true => c.x.values.mapv_inplace(change),
                false => c.taps.mapv_inplace(change),
            };
            for narrowed in Narrowed::all() {
                let words = narrowed.words(name);
                let change = on_conv(move |c| each(c, &|v| narrowed.of(v)));
                self.formula(narrowed.rank(), (narrowed.kind(), site), words, change);
            }
        }
        for packing in Packing::ALL {
            let words = packing.words("the input");
            let change = on_conv(move |c| c.x.values = packing.of(&c.x.values));
            self.formula(5, (Kind::Format, "input"), words, change);
        }
    }
}
