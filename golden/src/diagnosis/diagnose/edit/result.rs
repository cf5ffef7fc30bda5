//! Edits of what a step makes, whatever the step; and those that a pattern gives away.

use super::{ChannelOrder, Edit, Edits, halves, moves, reversed, turned};
use crate::diagnosis::diagnose::formula::{BlockInputs, Made, Narrow};
use crate::diagnosis::diagnose::kind::Kind;
use crate::diagnosis::diagnose::pattern::{How, Pattern, Values};
use crate::diagnosis::diagnose::rule::QuantizerPart;
use ndarray::{Array2, s};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::arith::saturate::Overflow;
use scalescope_sim::dataflow::Row;

fn each(made: &mut Made, of: impl Fn(f32) -> f32) {
    made.out.mapv_inplace(&of);
    if let Some(state) = &mut made.state {
        state.mapv_inplace(&of);
    }
}

/// A code as a byte without a sign.
pub(super) fn unsigned(code: f32) -> f32 {
    if code < 0.0 { code + 256.0 } else { code }
}

/// A code some of whose bits are stuck.
pub(super) fn stuck(code: f32, mask: u8, set: bool) -> f32 {
    let byte = code as i8 as u8;
    f32::from((if set { byte | mask } else { byte & !mask }) as i8)
}

/// Codes of an operand that lack something.
#[derive(Clone, Copy)]
pub(super) enum Narrowed {
    /// A bit is stuck.
    Stuck(u8, bool),
    /// Rounded to so many bits.
    Rounded(u8),
    /// End at those of so many bits.
    Ended(u8),
    /// End at ± so much.
    Clipped(u8),
    /// The upper four bits and the lower ones have changed places.
    Nibbles,
    /// The other sign.
    Negated,
    /// Negative ones are zero.
    Positive,
    /// The sign is lost.
    Magnitude,
}

impl Narrowed {
    pub(super) fn all() -> Vec<Self> {
        let stuck = (0..8).flat_map(|bit| [Self::Stuck(bit, false), Self::Stuck(bit, true)]);
        let bits = [4, 5, 6].into_iter();
        let narrow = bits.flat_map(|bits| [Self::Rounded(bits), Self::Ended(bits)]);
        let signs = [Self::Negated, Self::Positive, Self::Magnitude];
        let clipped = [32u8, 48, 64, 80, 96, 100, 112, 120].map(Self::Clipped);
        let narrow = narrow.chain(clipped).chain([Self::Nibbles]);
        stuck.chain(narrow).chain(signs).collect()
    }

    pub(super) fn of(self, v: f32) -> f32 {
        match self {
            Self::Stuck(bit, set) => stuck(v, 1 << bit, set),
            Self::Rounded(bits) => {
                let (step, top) = (f32::from(1u8 << (8 - bits)), f32::from(1u8 << (bits - 1)));
                (v / step).round_ties_even().clamp(-top, top - 1.0) * step
            }
            Self::Ended(bits) => {
                let top = f32::from(1u8 << (bits - 1));
                v.clamp(-top, top - 1.0)
            }
            Self::Clipped(top) => v.clamp(-f32::from(top), top.into()),
            Self::Nibbles => f32::from((v as i8 as u8).rotate_left(4) as i8),
            Self::Negated => -v,
            Self::Positive => v.max(0.0),
            Self::Magnitude => v.abs(),
        }
    }

    /// Whether it needs codes.
    pub(super) fn is_of_codes(self) -> bool {
        matches!(
            self,
            Self::Stuck(..) | Self::Rounded(_) | Self::Ended(_) | Self::Clipped(_) | Self::Nibbles
        )
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Stuck(..) => Kind::StuckBit,
            Self::Rounded(_) => Kind::Width,
            Self::Ended(_) | Self::Clipped(_) => Kind::Overflow,
            Self::Nibbles => Kind::Order,
            Self::Negated => Kind::Sign,
            Self::Positive | Self::Magnitude => Kind::Function,
        }
    }

    pub(super) fn rank(self) -> usize {
        match self {
            Self::Negated => 5,
            _ => 6,
        }
    }

    pub(super) fn words(self, name: &str) -> String {
        match self {
            Self::Stuck(bit, set) => {
                format!("bit {bit} of {name} is stuck at {}", u8::from(set))
            }
            Self::Rounded(bits) => format!("{name} are rounded to {bits} bits"),
            Self::Ended(bits) => format!("{name} end at those of {bits} bits"),
            Self::Clipped(top) => format!("{name} end at ±{top}"),
            Self::Nibbles => format!("the two halves of the bytes of {name} are swapped"),
            Self::Negated => format!("{name} have the other sign"),
            Self::Positive => format!("negative {name} are zero"),
            Self::Magnitude => format!("{name} have lost their sign"),
        }
    }
}

/// Codes that differ from one in a bit, zero, and the other sign, with words for the bit.
pub(super) fn turned_bits(code: f32) -> Vec<(f32, String)> {
    let byte = code as i8 as u8;
    let bits = (0..8u8).map(|bit| {
        let after = f32::from((byte ^ 1 << bit) as i8);
        (after, format!(", bit {bit}"))
    });
    let others = [0.0, -code].map(|after| (after, String::new()));
    let all = bits.chain(others);
    all.filter(|(after, _)| *after != code && (-128.0..=127.0).contains(after))
        .collect()
}

fn whole(made: &mut Made, of: impl Fn(&Array2<f32>) -> Array2<f32>) {
    if !made.out.is_empty() {
        made.out = of(&made.out);
    } else if let Some(state) = &mut made.state {
        *state = of(state);
    }
}

/// Values one after another in a buffer of another shape.
fn poured<'a>(shape: (usize, usize), values: impl Iterator<Item = &'a f32>) -> Array2<f32> {
    let values = values.copied().collect();
    Array2::from_shape_vec(shape, values).expect("as many elements")
}

impl Edits<'_, '_> {
    /// How results are stored.
    pub(super) fn of_output(&mut self) {
        let codes = self.row.format.dtype() == "i8";
        if codes {
            for zero in [1.0f32, -1.0, 2.0, -2.0, 128.0, -128.0] {
                let words = format!("the zero point is {zero}");
                self.formula(6, (Kind::ZeroPoint, "output"), words, move |f, _| {
                    if let Some(q) = &mut f.output().quantizer {
                        q.zero_point = zero;
                    }
                });
            }
            for rounding in Rounding::ALL {
                let words = QuantizerPart::Rounding(rounding).words();
                self.formula(4, (Kind::Rounding, "output"), words, move |f, _| {
                    if let Some(q) = &mut f.output().quantizer {
                        q.rule.rounding = rounding;
                    }
                });
            }
            for overflow in Overflow::ALL {
                let words = QuantizerPart::Overflow(overflow).words();
                self.formula(4, (Kind::Overflow, "output"), words, move |f, _| {
                    if let Some(q) = &mut f.output().quantizer {
                        q.rule.overflow = overflow;
                    }
                });
            }
            for bits in [4u8, 5, 6, 7] {
                let words = format!("codes have the range of INT{bits}");
                self.formula(6, (Kind::Width, "output"), words, move |f, _| {
                    if let Some(q) = &mut f.output().quantizer {
                        q.bits = bits;
                    }
                });
            }
            for largest in [128.0f32, 126.0, 120.0, 255.0, 256.0, 64.0] {
                let words = format!("the scale found at run time is the largest over {largest}");
                self.formula(4, (Kind::Constant, "output"), words, move |f, _| {
                    if let Some(q) = &mut f.output().quantizer {
                        q.largest = largest;
                    }
                });
            }
            for parts in [2u8, 4, 8, 16] {
                let words = format!("results are rounded to 1/{parts} of a step first");
                self.formula(6, (Kind::Rounding, "output"), words, move |f, _| {
                    f.output().first_rounded = Some(parts);
                });
            }
            for offset in [0.5f32, -0.5] {
                let words = format!("{offset:+} is added before the rounding");
                self.formula(8, (Kind::Rounding, "output"), words, move |f, _| {
                    f.output().offset = offset;
                });
            }
        }
        for narrow in Narrow::FLOATS {
            let words = format!("the result passes through {}", narrow.name());
            self.formula(9, (Kind::Format, "output"), words, move |f, _| {
                f.output().through = Some(narrow);
            });
        }
    }

    /// A buffer that is added to, and held another tensor of the block.
    fn added_to_buffers(&mut self) {
        let Some(scene) = self.scene else { return };
        for (point, tensor) in scene.seen {
            let held = tensor.to_real();
            if *point >= self.row.point || held.ncols() != self.width || point.is_state() {
                continue;
            }
            let words = format!("it is added to {}", point.name());
            self.result(6, (Kind::NotReset, "output"), words, move |made| {
                if made.out.dim() == held.dim() {
                    made.out += &held;
                }
            });
        }
    }

    /// Another order, another place.
    pub(super) fn of_result(&mut self) {
        let codes = self.row.format.dtype() == "i8";
        let tokens = !self.row.point.is_state();
        if tokens {
            for by in moves([1, -1, 2, -2, 3, 4]) {
                let words = format!("each token has the output {}", by.words());
                self.result(5, (Kind::Shifted, "tokens"), words, move |made| {
                    whole(made, |v| by.of(v));
                });
            }
        }
        let width = self.width;
        for by in [1isize, -1, 2, -2] {
            let words = format!("each channel has the output of channel {:+}", -by);
            self.result(5, (Kind::Shifted, "channels"), words, move |made| {
                whole(made, |v| turned(v, by));
            });
        }
        self.result(
            5,
            (Kind::Order, "channels"),
            "channels are in reverse",
            |made| {
                whole(made, reversed);
            },
        );
        if width.is_multiple_of(2) {
            let words = "the halves of the channels are swapped";
            self.result(5, (Kind::Order, "channels"), words, |made| {
                whole(made, halves)
            });
            let words = "channels 2i and 2i+1 are swapped";
            self.result(5, (Kind::Order, "channels"), words, |made| {
                whole(made, |v| {
                    Array2::from_shape_fn(v.dim(), |(t, c)| v[(t, (c ^ 1).min(v.ncols() - 1))])
                });
            });
            for order in [ChannelOrder::Interleaved, ChannelOrder::Sorted] {
                let words = order.words();
                self.result(6, (Kind::Order, "channels"), words, move |made| {
                    whole(made, |v| order.of(v));
                });
            }
        }
        let config = self.scene.map(|scene| scene.path.config());
        for (part, config) in self.row.point.parts().iter().zip(config) {
            let range = part.range(config, width);
            let words = format!("the channels of {} are in reverse", part.name());
            self.result(6, (Kind::Order, part.name()), words, move |made| {
                let own = made.out.slice(s![.., range.clone()]).to_owned();
                made.out
                    .slice_mut(s![.., range.clone()])
                    .assign(&reversed(&own));
            });
        }
        if tokens {
            let words = "tokens are in reverse";
            self.result(6, (Kind::Order, "tokens"), words, |made| {
                whole(made, |v| v.slice(s![..;-1, ..]).to_owned());
            });
        }
        if !codes {
            for narrow in [Narrow::Bf16, Narrow::Bf16Cut, Narrow::E4m3, Narrow::E5m2] {
                let words = format!("what is stored passes through {}", narrow.name());
                self.result(9, (Kind::Format, "output"), words, move |made| {
                    each(made, |v| narrow.of(v))
                });
            }
        }
        // Of a dump these are buffers, which steps may misread too.
        if self.scene.is_none() {
            let words = "it is written column by column";
            self.result(3, (Kind::Transposed, "output"), words, |made| {
                whole(made, |v| poured(v.dim(), v.t().iter()));
            });
            let words = "it is read as if its rows were columns";
            self.result(3, (Kind::Transposed, "output"), words, |made| {
                let turned = |v: &Array2<f32>| poured((v.ncols(), v.nrows()), v.iter());
                whole(made, |v| {
                    turned(v).reversed_axes().as_standard_layout().into_owned()
                });
            });
        }
        if !codes {
            self.added_to_buffers();
            for power in -2..=6 {
                let top = f32::from(power as i8).exp2();
                let words = format!("values beyond ±{top} wrap");
                self.result(7, (Kind::Overflow, "output"), words, move |made| {
                    each(made, |v| v - 2.0 * top * (v / (2.0 * top)).round());
                });
            }
        }
        let words = "all are zero";
        self.result(1, (Kind::LeftOut, "output"), words, |made| {
            each(made, |_| 0.0)
        });
        if codes {
            for bit in 0..8u8 {
                for set in [true, false] {
                    let words = format!("bit {bit} of the codes is stuck at {}", u8::from(set));
                    self.result(7, (Kind::StuckBit, "output"), words, move |made| {
                        each(made, |v| stuck(v, 1 << bit, set));
                    });
                }
            }
            for bits in [4u8, 5, 6, 7] {
                let words = format!("codes wrap at {bits} bits");
                let unused = 8 - bits;
                self.result(7, (Kind::Overflow, "output"), words, move |made| {
                    each(made, |v| f32::from(((v as i8) << unused) >> unused));
                });
            }
            for mask in [1u8, 3, 7, 15] {
                let words = format!("the low {} bits are 0", mask.count_ones());
                self.result(8, (Kind::Width, "output"), words, move |made| {
                    each(made, |v| stuck(v, mask, false));
                });
            }
        }
    }
}

/// Reals that lie on a grid of codes.
pub fn on_grid<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    (step, bits): (f32, u8),
) -> Vec<Edit> {
    let mut edits = Edits::new(scene, row, 0);
    for rounding in [
        Rounding::NearestTiesToEven,
        Rounding::Floor,
        Rounding::TowardZero,
    ] {
        let narrow = Narrow::Codes(bits, step, rounding);
        let words = format!(
            "the result passes through {} with the step {step:e}",
            narrow.name()
        );
        edits.formula(8, (Kind::Width, "output"), words, move |f, _| {
            f.output().through = Some(narrow);
        });
    }
    edits.all
}

/// The step and the bits of a grid of codes on which reals lie, if they do.
pub fn grid_of(values: &Array2<f32>) -> Option<(f32, u8)> {
    let least = values
        .iter()
        .map(|v| v.abs())
        .filter(|v| *v > 0.0)
        .fold(f32::MAX, f32::min);
    let (mut cross, mut size, mut top) = (0.0f64, 0.0f64, 0.0f32);
    for v in values {
        let code = (v / least).round();
        // Reals of 16 bits know a large code less well.
        if !code.is_finite() || (v / least - code).abs() > 0.1 || code.abs() > 128.0 {
            return None;
        }
        cross += f64::from(*v) * f64::from(code);
        size += f64::from(code) * f64::from(code);
        top = top.max(code.abs());
    }
    (values.len() >= 512 && size > 0.0).then(|| {
        let bits = if top <= 8.0 { 4 } else { 8 };
        ((cross / size) as f32, bits)
    })
}

/// The edit of a result that a pattern gives away, restricted to it.
pub fn of_pattern<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    pattern: &Pattern,
) -> Vec<Edit> {
    let mut edits = Edits::new(scene, row, 0);
    match pattern.how {
        How::Sign => edits.result(4, (Kind::Sign, "output"), "the sign is flipped", |made| {
            each(made, |v| -v);
        }),
        How::Bits { mask, set } => {
            let bits: Vec<String> = (0..8)
                .filter(|bit| mask >> bit & 1 == 1)
                .map(|bit| bit.to_string())
                .collect();
            let value = if set { 1 } else { 0 };
            let words = format!(
                "bit {} of the codes is stuck at {value}",
                bits.join(" and ")
            );
            edits.result(4, (Kind::StuckBit, "output"), words, move |made| {
                each(made, |v| stuck(v, mask, set));
            });
        }
        How::Flipped { mask } => {
            let words = format!("bits {mask:#010b} of the codes are flipped");
            edits.result(6, (Kind::FlippedBit, "output"), words, move |made| {
                each(made, |v| f32::from((v as i8 as u8 ^ mask) as i8));
            });
        }
        How::Clamped { low, high } => {
            let words = match (low.is_finite(), high.is_finite()) {
                (true, false) => format!("values end at {low}"),
                (false, true) => format!("values end at {high}"),
                _ => format!("values end at {low} and {high}"),
            };
            edits.result(5, (Kind::Overflow, "output"), words, move |made| {
                each(made, |v| v.clamp(low, high));
            });
        }
        How::Constant { value } => {
            let words = format!("all are {value}");
            edits.result(5, (Kind::Constant, "output"), words, move |made| {
                each(made, |_| value);
            });
        }
        How::Offset { by } => {
            let words = match pattern.values {
                Values::Negative => format!("{by:+} is added to negative values"),
                Values::Positive => format!("{by:+} is added to positive values"),
                Values::Any | Values::Saturated | Values::Zero | Values::Large => {
                    format!("{by:+} is added")
                }
            };
            let codes = row.format.dtype() == "i8";
            let here = match pattern.values {
                Values::Negative => |v: f32| v < 0.0,
                Values::Positive => |v: f32| v > 0.0,
                Values::Any | Values::Saturated | Values::Zero | Values::Large => |_: f32| true,
            };
            edits.result(5, (Kind::ZeroPoint, "output"), words, move |made| {
                each(made, |v| match (here(v), codes) {
                    (false, _) => v,
                    (true, true) => (v + by).clamp(-128.0, 127.0),
                    (true, false) => v + by,
                });
            });
        }
        How::Factor { factor } if row.format.dtype() != "i8" => {
            let words = format!("the result is multiplied by {factor:.6}");
            edits.result(7, (Kind::Factor, "output"), words, move |made| {
                each(made, |v| v * factor);
            });
        }
        _ => {}
    }
    edits.all
}

/// Outputs that stand where others belong: `channels` tells whether whole channels or whole tokens do. Of each one
/// that is another's, whose it is.
pub fn moved<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    from: &[(usize, usize)],
    channels: bool,
) -> Option<Edit> {
    let mut edits = Edits::new(scene, row, 0);
    let (&(to, of), name) = (from.first()?, if channels { "channel" } else { "token" });
    let by = of as isize - to as isize;
    let same = from
        .iter()
        .all(|(to, of)| *of as isize - *to as isize == by);
    let site = if channels { "channels" } else { "tokens" };
    let (kind, words) = match same {
        true => {
            let words = format!("{name}s have the output of {name} {by:+}");
            (Kind::Shifted, words)
        }
        false => {
            let some = from.iter().take(4);
            let some: Vec<String> = some
                .map(|(to, of)| format!("{to} has that of {of}"))
                .collect();
            let more = if from.len() > 4 { ", …" } else { "" };
            let words = format!("{name}s are swapped: {}{more}", some.join(", "));
            (Kind::Order, words)
        }
    };
    let from = from.to_vec();
    edits.result(if same { 5 } else { 6 }, (kind, site), words, move |made| {
        whole(made, |v| {
            let mut out = v.clone();
            for (to, of) in from.iter().copied() {
                let length = if channels { v.ncols() } else { v.nrows() };
                if to >= length || of >= length {
                    continue;
                }
                match channels {
                    true => out.column_mut(to).assign(&v.column(of)),
                    false => out.row_mut(to).assign(&v.row(of)),
                }
            }
            out
        });
    });
    edits.all.pop()
}
