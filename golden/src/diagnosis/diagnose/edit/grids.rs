//! Edits of the quantizers between steps: of one tensor in another form, of u with segments.

use super::{Around, Edits, moves, replace};
use crate::diagnosis::diagnose::formula::{Formula, Grids, numbers};
use crate::diagnosis::diagnose::kind::Kind;
use crate::diagnosis::diagnose::rule::QuantizerPart;
use scalescope_sim::arith::quantizer::{Beyond, Quantizer, Until};
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::mode::MODES;
use scalescope_sim::trace::Tensor;

fn on(
    change: impl Fn(&mut Quantizer) + Send + Sync,
) -> impl Fn(&mut Formula, Around) + Send + Sync {
    move |formula, _| {
        if let Formula::Grids(Grids {
            quantizer: Some(quantizer),
            ..
        }) = formula
        {
            change(quantizer);
        }
    }
}

impl Edits<'_, '_> {
    pub(super) fn of_grids(&mut self, own: &Grids) {
        let Some(quantizer) = &own.quantizer else {
            return;
        };
        let words = "u is not quantized";
        self.formula(1, (Kind::LeftOut, "quantizer"), words, |f, _| {
            if let Formula::Grids(grids) = f {
                grids.quantizer = None;
            }
        });
        for rounding in Rounding::ALL {
            let words = QuantizerPart::Rounding(rounding).words();
            let change = on(move |q| q.rounding = rounding);
            self.formula(2, (Kind::Rounding, "quantizer"), words, change);
        }
        for (beyond, what) in [
            (Beyond::Clamp, "are clamped"),
            (Beyond::Keep, "stay as they are"),
            (Beyond::SecondScale, "are codes of the second scale"),
            (Beyond::FoundScale, "have a scale that is found"),
        ] {
            let words = format!("values beyond the segments {what}");
            let change = on(move |q| q.beyond = beyond);
            self.formula(2, (Kind::Overflow, "quantizer"), words, change);
        }
        for (i, segment) in quantizer.segments.iter().enumerate() {
            let name = format!("segment {i} of {}", quantizer.segments.len());
            if quantizer.segments.len() > 1 {
                let words = format!("{name} is missing");
                let change = on(move |q| {
                    q.segments.to_mut().remove(i);
                });
                self.formula(2, (Kind::PartMissing, "segments"), words, change);
            }
            for factor in [0.5, 2.0, 0.25, 4.0] {
                let words = format!("the step of {name} is multiplied by {factor}");
                let change = on(move |q| q.segments.to_mut()[i].step *= factor);
                self.formula(3, (Kind::Factor, "segments"), words, change);
                if let Until::Magnitude(edge) = segment.until {
                    let words = format!("the end of {name} is multiplied by {factor}");
                    let until = Until::Magnitude(edge * factor);
                    let change = on(move |q| q.segments.to_mut()[i].until = until);
                    self.formula(3, (Kind::Constant, "segments"), words, change);
                }
            }
            if let Until::Code(code) = segment.until {
                for other in [code - 1, code + 1, 127, 128] {
                    let words = format!("{name} ends at code {other}");
                    let change = on(move |q| q.segments.to_mut()[i].until = Until::Code(other));
                    self.formula(3, (Kind::Constant, "segments"), words, change);
                }
            }
            if segment.offset != 0.0 {
                let words = format!("the offset of {name} is missing");
                let change = on(move |q| q.segments.to_mut()[i].offset = 0.0);
                self.formula(2, (Kind::LeftOut, "segments"), words, change);
            }
        }
        for mode in MODES {
            let Some(other) = mode.u_quantizer.clone().filter(|q| q != quantizer) else {
                continue;
            };
            let words = format!("u has the quantizer of mode {}", mode.name);
            let change = on(move |q| q.clone_from(&other));
            self.formula(3, (Kind::Neighbour, "quantizer"), words, change);
        }
    }

    pub(super) fn of_requantize(&mut self) {
        for by in moves([1, -1]) {
            let words = format!("the input is that {}", by.words());
            self.formula(3, (Kind::Neighbour, "input"), words, move |f, _| {
                if let Formula::Requantize(from, _) = f {
                    from.values = by.of(&from.values);
                }
            });
        }
        self.formula(
            4,
            (Kind::LeftOut, "input scale"),
            "the input's scale is left out",
            |f, _| {
                if let Formula::Requantize(from, _) = f {
                    from.scale = 1.0;
                }
            },
        );
        let Some(scene) = self.scene else { return };
        let e = scene.path.config().d_inner;
        for (point, tensor) in scene.seen {
            let own = self
                .row
                .reads
                .iter()
                .any(|read| read.point() == Some(*point));
            if own
                || *point >= self.row.point
                || point.is_state()
                || !matches!(tensor, Tensor::F32(_) | Tensor::F16(_))
            {
                continue;
            }
            let values = numbers(tensor);
            if values.ncols() == e && self.width == e {
                let words = format!("the input is {}", point.name());
                self.formula(3, (Kind::Neighbour, "input"), words, move |f, _| {
                    if let Formula::Requantize(from, _) = f {
                        replace(&mut from.values, &values);
                    }
                });
            }
        }
    }
}
