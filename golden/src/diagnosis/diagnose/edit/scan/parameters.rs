//! Edits of a scan's parameters: those of other blocks and channels, A in other forms.

use super::on;
use crate::diagnosis::diagnose::edit::{ChannelOrder, Edits, reversed};
use crate::diagnosis::diagnose::formula::{Operand, Scan, Stride, dequantized};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::Array2;

impl Edits<'_, '_> {
    pub(super) fn other_parameters(&mut self, own: &Scan) {
        let m = own.math;
        for (layer, scene) in self.other_layers() {
            let (a, d, bias) = scene.path.scan_weight(layer).tensors();
            let a = Operand::new(a.codes.mapv(f32::from), a.scale.get());
            let (d_scale, bias_scale) = (d.scale.get(), bias.scale.get());
            let (d, bias) = (dequantized(m, &d), dequantized(m, &bias));
            let (a_scale, of_d, of_bias) = (a.scale, own.d_scale, own.dt_bias_scale);
            let words = format!("the scale of A_log is that of block {layer}");
            let change = on(move |s| s.a_log.scale = a_scale);
            self.formula(3, (Kind::Neighbour, "A scale"), words, change);
            let words = format!("the scale of D is that of block {layer}");
            let change = on(move |s| s.d.iter_mut().for_each(|v| *v *= d_scale / of_d));
            self.formula(3, (Kind::Neighbour, "D scale"), words, change);
            let words = format!("the scale of the bias of dt is that of block {layer}");
            let by = bias_scale / of_bias;
            let change = on(move |s| s.dt_bias.iter_mut().for_each(|v| *v *= by));
            self.formula(3, (Kind::Neighbour, "dt_bias scale"), words, change);
            let words = format!("A is that of block {layer}");
            self.formula(
                2,
                (Kind::Neighbour, "A"),
                words,
                on(move |s| s.a_log = a.clone()),
            );
            let words = format!("D is that of block {layer}");
            self.formula(
                2,
                (Kind::Neighbour, "D"),
                words,
                on(move |s| s.d = d.clone()),
            );
            let words = format!("the bias of dt is that of block {layer}");
            self.formula(
                2,
                (Kind::Neighbour, "dt_bias"),
                words,
                on(move |s| s.dt_bias = bias.clone()),
            );
        }
        self.formula(
            3,
            (Kind::Neighbour, "D"),
            "each channel has D of the next one",
            on(|s| s.d.rotate_left(1)),
        );
        self.formula(
            3,
            (Kind::Neighbour, "D"),
            "each channel has D of the one before",
            on(|s| s.d.rotate_right(1)),
        );
        self.formula(
            3,
            (Kind::Neighbour, "dt_bias"),
            "each channel has the bias of dt of the one before",
            on(|s| s.dt_bias.rotate_right(1)),
        );
        self.formula(
            3,
            (Kind::Neighbour, "D"),
            "D is read by the token's number and not by the channel's",
            on(|s| s.d_by_token = true),
        );
        self.formula(
            3,
            (Kind::Neighbour, "dt_bias"),
            "each channel has the bias of dt of the next one",
            on(|s| s.dt_bias.rotate_left(1)),
        );
        self.formula(
            3,
            (Kind::Order, "A"),
            "the states of A are in reverse",
            on(|s| {
                s.a_log.values = reversed(&s.a_log.values);
            }),
        );
        self.orders(own);
        type OfA = (Kind, &'static str, fn(f32) -> f32);
        let alphas: [OfA; 4] = [
            (Kind::Format, "A is rounded to powers of two", |a| {
                a.exp().log2().round().exp2()
            }),
            (Kind::Function, "A is 2 to the power of A_log", f32::exp2),
            (Kind::Twice, "A is exp(exp(A_log))", |a| a.exp().exp()),
            (Kind::Function, "A is softplus(A_log)", |a| a.exp().ln_1p()),
        ];
        for (kind, words, of) in alphas {
            let change = on(move |s| {
                let m = s.math;
                let logs = &s.a_log;
                let alpha = Array2::from_shape_fn(logs.values.dim(), |at| of(logs.real(m, at)));
                s.a_log = Operand::new(alpha, 1.0);
                s.a_is_log = false;
            });
            self.formula(3, (kind, "A"), words, change);
        }
        let change = on(|s| {
            let initial = |(_, n): (usize, usize)| (n + 1) as f32;
            s.a_log = Operand::new(Array2::from_shape_fn(s.a_log.values.dim(), initial), 1.0);
            s.a_is_log = false;
        });
        let words = "A has its initial values, −1 to −N";
        self.formula(3, (Kind::Constant, "A"), words, change);
        for (by, scale) in self.other_scales() {
            let of = format!("the scale of {by}");
            if scale != own.a_log.scale {
                let words = format!("A_log has {of}");
                let change = on(move |s| s.a_log.scale = scale);
                self.formula(4, (Kind::Neighbour, "A scale"), words, change);
            }
            if scale != own.d_scale {
                let words = format!("D has {of}");
                let change = on(move |s| {
                    let by = scale / s.d_scale;
                    s.d.iter_mut().for_each(|v| *v *= by);
                });
                self.formula(4, (Kind::Neighbour, "D scale"), words, change);
            }
            if scale != own.dt_bias_scale {
                let words = format!("the bias of dt has {of}");
                let change = on(move |s| {
                    let by = scale / s.dt_bias_scale;
                    s.dt_bias.iter_mut().for_each(|v| *v *= by);
                });
                self.formula(4, (Kind::Neighbour, "dt_bias scale"), words, change);
            }
        }
        let (d, bias) = (own.d_scale, own.dt_bias_scale);
        type Vector = (
            &'static str,
            &'static str,
            f32,
            fn(&mut Scan) -> &mut Vec<f32>,
        );
        let vectors: [Vector; 2] = [
            ("D", "D", d, |s| &mut s.d),
            ("dt_bias", "the bias of dt", bias, |s| &mut s.dt_bias),
        ];
        type Cast = (&'static str, fn(f32) -> f32);
        let casts: [Cast; 2] = [("cut to", f32::trunc), ("rounded to", f32::round_ties_even)];
        for (how, cast) in casts {
            for (site, name, scale, of) in vectors {
                let words = format!("the codes of {name} are its reals {how} integers");
                let change = on(move |s| of(s).iter_mut().for_each(|v| *v = scale * cast(*v)));
                self.formula(4, (Kind::Format, site), words, change);
            }
            let words = format!("the codes of A_log are its reals {how} integers");
            let change = on(move |s| {
                let scale = s.a_log.scale;
                s.a_log.values.mapv_inplace(|v| cast(scale * v));
            });
            self.formula(4, (Kind::Format, "A"), words, change);
        }
        self.formula(
            3,
            (Kind::LeftOut, "D scale"),
            "the scale of D is left out",
            on(move |s| {
                s.d.iter_mut().for_each(|v| *v /= d);
            }),
        );
        self.formula(
            3,
            (Kind::LeftOut, "dt_bias scale"),
            "the scale of the bias of dt is left out",
            on(move |s| {
                s.dt_bias.iter_mut().for_each(|v| *v /= bias);
            }),
        );
    }

    /// Parameters of other channels, by a rule of their number or by another stride of their buffer.
    fn orders(&mut self, own: &Scan) {
        let (e, n) = own.a_log.values.dim();
        for stride in Stride::all(n, n) {
            let words = stride.words("A");
            let change = on(move |s| s.a_log.values = stride.of_all(&s.a_log.values));
            self.formula(3, (Kind::Order, "A"), words, change);
        }
        for order in ChannelOrder::heads(n) {
            let words = format!("of the states of A, {}", order.words());
            let change = on(move |s| s.a_log.values = order.of(&s.a_log.values));
            self.formula(4, (order.kind(), "A"), words, change);
        }
        for order in ChannelOrder::heads(e) {
            let words = format!("A's {}", order.words());
            let change = on(move |s| {
                let turned = order.of(&s.a_log.values.t().to_owned());
                s.a_log.values = turned.reversed_axes().as_standard_layout().into_owned();
            });
            self.formula(4, (order.kind(), "A"), words, change);
            let words = format!("D's {}", order.words());
            let change = on(move |s| s.d = order.of_vector(&s.d));
            self.formula(4, (order.kind(), "D"), words, change);
            let words = format!("the bias of dt's {}", order.words());
            let change = on(move |s| s.dt_bias = order.of_vector(&s.dt_bias));
            self.formula(4, (order.kind(), "dt_bias"), words, change);
        }
    }
}
