//! Edits of what a step makes, whatever the step; and those that a pattern gives away.

use super::codes::stuck;
use super::{Edit, Edits};
use crate::diagnosis::diagnose::formula::{
    Activation, BlockInputs, Dynamic, Formula, Found, Made, Measured, Narrow,
};
use crate::diagnosis::diagnose::kind::Kind;
use crate::diagnosis::diagnose::pattern::{How, Pattern, Values};
use crate::diagnosis::diagnose::rule::QuantizerPart;
use ndarray::Array2;
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::arith::saturate::Overflow;
use scalescope_sim::dataflow::{Quantizer, Row};
use std::sync::Arc;

mod places;

pub use places::moved;

fn each(made: &mut Made, of: impl Fn(f32) -> f32) {
    made.out.mapv_inplace(&of);
    if let Some(state) = &mut made.state {
        state.mapv_inplace(&of);
    }
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
            for (dynamic, whose) in [
                (
                    Dynamic::TorchToken,
                    "each token has a scale of its own, found",
                ),
                (
                    Dynamic::Tensor,
                    "the sequence has a scale of its own, found",
                ),
            ] {
                let words = format!("{whose} at run time by its largest value");
                self.formula(4, (Kind::Factor, "output"), words, move |f, _| {
                    if let Some(q) = &mut f.output().quantizer {
                        q.dynamic = Some(dynamic);
                    }
                });
            }
            let found = |q: &Quantizer| matches!(q, Quantizer::Tensor(_) | Quantizer::Token(_));
            if self.row.quantizer.as_ref().is_some_and(found) {
                self.largest_of_parts();
                for other in Found::OTHERS {
                    let words = format!("the scale is found from {}", other.words());
                    self.formula(4, (Kind::Function, "output"), words, move |f, _| {
                        if let Some(q) = &mut f.output().quantizer {
                            q.found = other;
                        }
                    });
                }
            }
            let words = "½ is added, to negative values too, and the rest cut off";
            self.formula(4, (Kind::Rounding, "output"), words, |f, _| {
                let output = f.output();
                if let Some(q) = &mut output.quantizer {
                    q.rule.rounding = Rounding::TowardZero;
                    output.offset = 0.5;
                }
            });
            for parts in [2u8, 4, 8, 16] {
                for by in [
                    Rounding::NearestTiesToEven,
                    Rounding::NearestTiesAway,
                    Rounding::NearestTiesUp,
                    Rounding::Floor,
                    Rounding::TowardZero,
                ] {
                    let words = format!(
                        "results are rounded to 1/{parts} of a step first ({})",
                        QuantizerPart::Rounding(by)
                    );
                    self.formula(6, (Kind::Rounding, "output"), words, move |f, _| {
                        f.output().first_rounded = Some((parts, by));
                    });
                }
            }
            for offset in [0.5f32, -0.5] {
                let words = format!("{offset:+} is added before the rounding");
                self.formula(8, (Kind::Rounding, "output"), words, move |f, _| {
                    f.output().offset = offset;
                });
            }
        }
        for function in Activation::OTHERS.into_iter().chain([Activation::Silu]) {
            if function != Activation::Identity {
                let words = format!("the result passes through {}", function.name());
                self.formula(5, (Kind::Function, "output"), words, move |f, _| {
                    f.output().function = Some(function);
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

    /// A scale found at run time by a part of the channels.
    fn largest_of_parts(&mut self) {
        let width = self.width;
        let mut parts = vec![
            32,
            64,
            96,
            128,
            192,
            256,
            512,
            width / 2,
            width / 3,
            width / 4,
        ];
        parts.push(width - width / 4);
        parts.retain(|part| (1..width).contains(part));
        parts.sort_unstable();
        parts.dedup();
        for part in parts {
            for (end, range) in [("first", (0, part)), ("last", (width - part, width))] {
                let words = format!("the largest value is that of the {end} {part} channels");
                self.formula(5, (Kind::PartMissing, "output"), words, move |f, _| {
                    if let Some(q) = &mut f.output().quantizer {
                        q.part = Some(range);
                    }
                });
            }
        }
    }

    /// A buffer that held another tensor of the block, and is added to or not written.
    fn added_to_buffers(&mut self) {
        let Some(scene) = self.scene else { return };
        for (point, tensor) in scene.seen {
            let held = tensor.to_real();
            if *point >= self.row.point || held.ncols() != self.width || point.is_state() {
                continue;
            }
            let stale = held.clone();
            let words = format!("it is not stored: the buffer still holds {}", point.name());
            self.result(6, (Kind::NotReset, "output"), words, move |made| {
                if made.out.dim() == stale.dim() {
                    made.out.assign(&stale);
                }
            });
            let words = format!("it is added to {}", point.name());
            self.result(6, (Kind::NotReset, "output"), words, move |made| {
                if made.out.dim() == held.dim() {
                    made.out += &held;
                }
            });
        }
    }

    /// Other values in other places, whatever the formula.
    pub(super) fn of_result(&mut self) {
        let codes = self.row.format.dtype() == "i8";
        self.places();
        if !codes {
            for narrow in [
                Narrow::F16Flushed,
                Narrow::Bf16,
                Narrow::Bf16Cut,
                Narrow::E4m3,
                Narrow::E5m2,
            ] {
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

/// The function that a result passes through, read off what deviates; `step` is that of codes.
pub fn measured<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    found: Measured,
    step: Option<f32>,
) -> Edit {
    let mut edits = Edits::new(scene, row, 0);
    let (kind, what) = match step.is_some_and(|step| found.rounds(step)) {
        true => (Kind::Rounding, "results are rounded by another rule"),
        false => (
            Kind::Function,
            "what is stored is another function of the result",
        ),
    };
    let words = format!("{what}: {}", found.words());
    let found = Arc::new(found);
    edits.formula(9, (kind, "output"), words, move |f, _| {
        if let Formula::Grids(grids) = f {
            grids.quantizer = None;
        }
        f.output().measured = Some(Arc::clone(&found));
    });
    edits.all.remove(0)
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
