//! Edits of a product's operands and sums: types of fewer bits, other codes.

use super::on;
use crate::diagnosis::diagnose::edit::Edits;
use crate::diagnosis::diagnose::edit::codes::Narrowed;
use crate::diagnosis::diagnose::formula::{Linear, Meet, Narrow};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::ArrayViewMut1;

/// Codes stretched so that the largest is 127.
fn to_largest(mut codes: ArrayViewMut1<f32>) {
    let most = codes.iter().fold(1.0f32, |most, v| most.max(v.abs()));
    codes.mapv_inplace(|v| (127.0 * v / most).round_ties_even());
}

impl Edits<'_, '_> {
    /// Operands, and sums of reals, in a type of fewer bits.
    pub(super) fn formats(&mut self, own: &Linear) {
        let real = own.meet == Meet::Real;
        for narrow in Narrow::FLOATS.into_iter().filter(|_| real) {
            let words = format!("each sum passes through {}", narrow.name());
            let change = on(move |l| l.running = Some(narrow));
            self.formula(5, (Kind::Format, "sum"), words, change);
        }
        for narrow in [Narrow::F16, Narrow::Bf16].into_iter().filter(|_| !real) {
            let name = narrow.name();
            let words = format!("input and weight are dequantized to {name} and multiplied so");
            let change = on(move |l| l.dequantize(narrow));
            self.formula(5, (Kind::Format, "input"), words, change);
        }
        for narrow in Narrow::FLOATS {
            // Codes are exact in 16 bits.
            if !real && !matches!(narrow, Narrow::E4m3 | Narrow::E5m2) {
                continue;
            }
            let words = |what: &str| format!("{what} through {}", narrow.name());
            let input = move |l: &mut Linear| {
                l.operands(|x, _, _| x.values.mapv_inplace(|v| narrow.of(v)));
            };
            // A weight of reals passes with its scale.
            let weight = move |l: &mut Linear| {
                let scales = match l.meet {
                    Meet::Real => std::mem::replace(&mut l.w_scales, vec![1.0]),
                    _ => vec![1.0],
                };
                l.operands(|_, w, _| {
                    w.indexed_iter_mut().for_each(|((r, _), v)| {
                        *v = narrow.of(*v * scales[r.min(scales.len() - 1)]);
                    });
                });
            };
            self.formula(
                5,
                (Kind::Format, "input"),
                words("the input passes"),
                on(input),
            );
            self.formula(
                5,
                (Kind::Format, "weight"),
                words("the weight passes"),
                on(weight),
            );
            let both = on(move |l| {
                input(l);
                weight(l);
            });
            self.formula(
                5,
                (Kind::Format, "input"),
                words("input and weight pass"),
                both,
            );
        }
    }

    /// Codes of inputs and weights that lack bits.
    pub(super) fn narrow_codes(&mut self) {
        type Codes = (
            &'static str,
            &'static str,
            fn(&mut Linear, &dyn Fn(f32) -> f32),
        );
        let operands: [Codes; 2] = [
            ("input", "the input codes", |l, of| {
                l.operands(|x, _, _| x.values.mapv_inplace(of));
            }),
            ("weight", "the weight's codes", |l, of| {
                l.operands(|_, w, _| w.mapv_inplace(of));
            }),
        ];
        for (site, name, each) in operands {
            for narrowed in Narrowed::all().into_iter().filter(|n| n.is_of_codes()) {
                let words = narrowed.words(name);
                let change = on(move |l| each(l, &|v| narrowed.of(v)));
                self.formula(narrowed.rank(), (narrowed.kind(), site), words, change);
            }
        }
    }

    /// Codes that were made with the scales of rows or columns and are read with one for all.
    pub(super) fn own_scales(&mut self) {
        let words = "the weight's rows are quantized each to its own largest code";
        let change = on(|l| l.operands(|_, w, _| w.rows_mut().into_iter().for_each(to_largest)));
        self.formula(4, (Kind::Factor, "weight"), words, change);
        let words = "the weight's columns are quantized each to its own largest code";
        let change = on(|l| l.operands(|_, w, _| w.columns_mut().into_iter().for_each(to_largest)));
        self.formula(4, (Kind::Factor, "weight"), words, change);
        let words = "the input's tokens are quantized each to its own largest code";
        let change = on(|l| {
            l.operands(|x, _, _| x.values.rows_mut().into_iter().for_each(to_largest));
        });
        self.formula(4, (Kind::Factor, "input"), words, change);
    }
}
