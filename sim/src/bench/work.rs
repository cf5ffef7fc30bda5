//! How much there is to do: multiplications of the linear steps, and the weights they read.

use crate::dataflow::Step;
use crate::datapath::Datapath;
use crate::mode::Precision;
use crate::step::linear::LinearWeight;

/// A linear step over all blocks, for one token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearWork {
    /// The step.
    pub step: Step,
    /// Multiplications, each with an addition.
    pub products: u64,
    /// Whether they are INT8 by INT8.
    pub integer: bool,
    /// Bytes of its weights.
    pub bytes: u64,
}

/// The linear steps of a model in a mode, the head last.
pub fn linear_work(path: &Datapath) -> [LinearWork; 5] {
    let mode = path.mode();
    let sum = |step, weights: &mut dyn Iterator<Item = &LinearWeight<'_>>, codes: bool| {
        let (mut products, mut bytes, mut integer) = (0, 0.0, codes);
        for weight in weights {
            let (outputs, inputs) = weight.dim();
            products += (outputs * inputs) as u64;
            bytes += (outputs * inputs) as f64 * weight.bits() / 8.0;
            integer &= !matches!(weight, LinearWeight::Float { .. } | LinearWeight::Wide(_));
        }
        LinearWork {
            step,
            products,
            integer,
            bytes: bytes as u64,
        }
    };
    let of_blocks = |step, input: Precision| {
        let layers = 0..path.config().n_layers;
        let mut weights = layers.flat_map(|layer| path.linear_weights(layer, step));
        sum(step, &mut weights, input == Precision::Int8)
    };
    let (head, codes) = path.head();
    [
        of_blocks(Step::InProj, mode.norm_out),
        of_blocks(Step::XProj, mode.x_proj_in),
        of_blocks(Step::DtProj, mode.x_proj_out),
        of_blocks(Step::OutProj, mode.had_out),
        sum(Step::Head, &mut std::iter::once(head), codes),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::quantize::{FourBits, to_int4};
    use crate::checkpoint::synthetic::{self, Shape};
    use crate::mode::ModeTable;
    use crate::model::Model;
    use crate::profile::Profile;
    use std::sync::Arc;

    #[test]
    fn work_is_that_of_the_weights() {
        let shape = Shape {
            name: "one block",
            n_layers: 1,
            d_model: 256,
            vocab_size: 256,
        };
        let float = synthetic::float_model(shape);
        let table = ModeTable::default();
        let work = |mode: &str, bits: Option<FourBits>, ends: bool| {
            let mut quantized = synthetic::quantized_model(shape);
            if let Some(bits) = bits {
                to_int4(&mut quantized, &float, &bits).unwrap();
            }
            if ends {
                synthetic::quantize_ends_of(&mut quantized).unwrap();
            }
            let model = Model {
                quantized: Some(Arc::new(quantized)),
                float: Some(Arc::new(float.clone())),
                ..Model::default()
            };
            let mode = table.get(mode).unwrap();
            linear_work(&Datapath::new(&model, mode, &Profile::get("exact").unwrap()).unwrap())
        };
        let products = [1024 * 256, 48 * 512, 512 * 16, 256 * 512, 256 * 256];
        let bits = |work: [LinearWork; 5]| work.map(|w| 8.0 * w.bytes as f64 / w.products as f64);
        let int8 = work("0", None, false);
        assert_eq!(int8.map(|w| w.products), products);
        assert_eq!(int8.map(|w| w.integer), [true, true, true, true, false]);
        assert_eq!(bits(int8), [8.0, 8.0, 8.0, 8.0, 16.0]);
        assert!(work("0", None, true).iter().all(|w| w.integer));
        assert_eq!(bits(work("0", None, true)), [8.0; 5]);
        let int4 = bits(work("0", Some("w4a8".parse().unwrap()), false));
        // A scale of 16 bits for 128 codes.
        assert_eq!([int4[0], int4[3]], [4.125; 2]);
        let int4 = bits(work("0", Some("w4a8".parse().unwrap()), true));
        assert_eq!([int4[0], int4[3], int4[4]], [4.125; 3]);
        let fp32 = work("1", None, false);
        assert!(fp32.iter().all(|w| !w.integer));
        assert_eq!(bits(fp32), [16.0; 5]);
    }
}
