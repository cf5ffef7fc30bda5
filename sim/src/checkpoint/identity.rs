//! Whether a quantized model and a float model are one model: their shapes field by field, their weights
//! by a digest that the quantized file remembers.

use super::input::shown;
use crate::error::{Result, SimError};
use crate::model::{Config, FloatLayer, FloatModel, QuantizedModel};
use half::f16;
use ndarray::Array2;
use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// How far apart two embeddings of one model may be, relative to their size: other programs fold in other
/// precisions. Two models of random weights are apart by 1.4.
const ONE_EMBEDDING: f64 = 0.05;

/// What a pair was compared by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ComparedBy {
    /// Every weight, through the digest in the quantized file.
    Digest,
    /// The embedding alone: the quantized file remembers no digest.
    Embedding,
}

/// SHA-256 of the weights of a folded model, in hexadecimal: of every tensor's values as f32, in the order
/// of the model, then of these digests. The same for a checkpoint saved again with other harmless keys,
/// in another order or in another type that holds its values.
pub fn digest(model: &FloatModel) -> String {
    let ends = [
        Values::F16(slice(&model.embedding)),
        Values::F16(&model.norm_f),
        Values::F16(slice(&model.head)),
    ];
    let tensors: Vec<Values> = (model.layers.iter().flat_map(tensors))
        .chain(ends)
        .collect();
    let digests: Vec<_> = tensors.into_par_iter().map(digest_of).collect();
    hex(Sha256::digest(digests.concat()))
}

/// The values of a tensor, in the type a model holds them in.
#[derive(Clone, Copy)]
enum Values<'a> {
    F16(&'a [f16]),
    F32(&'a [f32]),
}

fn tensors(layer: &FloatLayer) -> [Values<'_>; 10] {
    use Values::{F16, F32};
    [
        F16(&layer.norm),
        F16(slice(&layer.in_proj)),
        F16(slice(&layer.conv_weight)),
        F16(&layer.conv_bias),
        F16(slice(&layer.x_proj)),
        F16(slice(&layer.dt_proj)),
        F16(&layer.dt_bias),
        F32(slice(&layer.a_log)),
        F32(&layer.d),
        F16(slice(&layer.out_proj)),
    ]
}

fn slice<T>(values: &Array2<T>) -> &[T] {
    values.as_slice().expect("weights are row-major")
}

fn digest_of(values: Values) -> Vec<u8> {
    fn of<T: Copy + Into<f32>>(values: &[T]) -> Vec<u8> {
        let mut hash = Sha256::new();
        let mut bytes = Vec::new();
        for chunk in values.chunks(1 << 14) {
            bytes.clear();
            bytes.extend(chunk.iter().flat_map(|v| (*v).into().to_le_bytes()));
            hash.update(&bytes);
        }
        hash.finalize().to_vec()
    }
    match values {
        Values::F16(values) => of(values),
        Values::F32(values) => of(values),
    }
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Checks that a quantized model was made of a float model, which is folded.
///
/// # Errors
///
/// The first field of their shapes that differs; other weights.
pub fn check_pair(quantized: &QuantizedModel, float: &FloatModel) -> Result<ComparedBy> {
    check_shapes(&quantized.config, &float.config)?;
    if let Some(expected) = &quantized.float_digest {
        same_digest("the one it was quantized from", expected, &digest(float))?;
        return Ok(ComparedBy::Digest);
    }
    let (mut apart, mut size) = (0.0f64, 0.0f64);
    for (row, own) in float.embedding.rows().into_iter().enumerate() {
        for (a, b) in quantized.embedding.row(row).into_iter().zip(own) {
            let (a, b) = (f64::from(a), f64::from(*b));
            apart += (a - b).powi(2);
            size += a.powi(2);
        }
    }
    let apart = (apart / size.max(f64::MIN_POSITIVE)).sqrt();
    match apart <= ONE_EMBEDDING {
        true => Ok(ComparedBy::Embedding),
        false => Err(SimError::value(
            "float model",
            "the one it was quantized from, whose embedding it has",
            format_args!("one whose embedding is {:.0} % away", 100.0 * apart),
        )),
    }
}

/// Refuses a float model of another digest; `which` says what it should be.
pub(super) fn same_digest(which: &str, expected: &str, found: &str) -> Result<()> {
    let start = |digest: &str| shown(&digest.chars().take(12).collect::<String>());
    match expected == found {
        true => Ok(()),
        false => Err(SimError::value(
            "float model",
            format_args!("{which}, of sha256 {}…", start(expected)),
            format_args!("another, {}…", start(found)),
        )),
    }
}

/// Shapes field by field; what else a configuration says does not matter.
fn check_shapes(quantized: &Config, float: &Config) -> Result<()> {
    let sizes = |c: &Config| {
        [
            ("vocab_size", c.vocab_size),
            ("hidden_size", c.d_model),
            ("intermediate_size", c.d_inner),
            ("state_size", c.d_state),
            ("time_step_rank", c.dt_rank),
            ("conv_kernel", c.d_conv),
            ("num_hidden_layers", c.n_layers),
        ]
    };
    for ((field, expected), (_, found)) in sizes(quantized).into_iter().zip(sizes(float)) {
        if expected != found {
            let item = format_args!("float model: {field}").to_string();
            return Err(SimError::value(item, expected, found));
        }
    }
    match quantized.eps == float.eps {
        true => Ok(()),
        false => Err(SimError::value(
            "float model: layer_norm_epsilon",
            quantized.eps,
            float.eps,
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::quantize::{Ends, quantize};
    use crate::checkpoint::recipe::Recipe;
    use crate::checkpoint::synthetic::{Shape, float_model, plausible_scales};
    use serde_json::json;

    fn pair() -> (QuantizedModel, FloatModel) {
        let float = float_model(Shape::named("tiny").unwrap());
        let mut quantized = quantize(
            &float,
            &plausible_scales(&float.config),
            &Recipe::GOLDEN,
            Ends::F16,
        )
        .unwrap();
        quantized.float_digest = Some(digest(&float));
        (quantized, float)
    }

    #[test]
    fn harmless_keys_are_harmless_and_every_field_of_the_shape_counts() {
        let (quantized, mut float) = pair();
        float.config.json = json!({ "transformers_version": "5", "dtype": "float32" });
        assert_eq!(check_pair(&quantized, &float).unwrap(), ComparedBy::Digest);
        type Edit = fn(&mut Config);
        let edits: [(&str, Edit); 8] = [
            ("vocab_size", |c| c.vocab_size += 1),
            ("hidden_size", |c| c.d_model += 1),
            ("intermediate_size", |c| c.d_inner += 1),
            ("state_size", |c| c.d_state += 1),
            ("time_step_rank", |c| c.dt_rank += 1),
            ("conv_kernel", |c| c.d_conv += 1),
            ("num_hidden_layers", |c| c.n_layers += 1),
            ("layer_norm_epsilon", |c| c.eps *= 2.0),
        ];
        for (field, edit) in edits {
            let mut other = float.clone();
            edit(&mut other.config);
            let error = check_pair(&quantized, &other).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    /// One bit of any tensor makes another digest; without one the embedding tells models apart.
    #[test]
    fn another_model_of_the_same_shape_is_refused() {
        let (mut quantized, float) = pair();
        let flip = |v: &mut f16| *v = f16::from_bits(v.to_bits() ^ 1);
        let turn = |v: &mut f32| *v = f32::from_bits(v.to_bits() ^ 1);
        let mut others = [float.clone(), float.clone()];
        turn(others[0].layers[0].a_log.last_mut().unwrap());
        turn(others[1].layers[0].d.last_mut().unwrap());
        assert!(
            others
                .iter()
                .all(|other| check_pair(&quantized, other).is_err())
        );
        type Edit = fn(&mut FloatModel) -> &mut f16;
        let edits: [Edit; 11] = [
            |m| m.embedding.last_mut().unwrap(),
            |m| m.norm_f.last_mut().unwrap(),
            |m| m.head.last_mut().unwrap(),
            |m| m.layers[1].norm.last_mut().unwrap(),
            |m| m.layers[0].in_proj.last_mut().unwrap(),
            |m| m.layers[0].conv_weight.last_mut().unwrap(),
            |m| m.layers[0].conv_bias.last_mut().unwrap(),
            |m| m.layers[0].x_proj.last_mut().unwrap(),
            |m| m.layers[0].dt_proj.last_mut().unwrap(),
            |m| m.layers[0].dt_bias.last_mut().unwrap(),
            |m| m.layers[0].out_proj.last_mut().unwrap(),
        ];
        for (i, edit) in edits.into_iter().enumerate() {
            let mut other = float.clone();
            flip(edit(&mut other));
            assert!(check_pair(&quantized, &other).is_err(), "tensor {i}");
        }
        let mut other = float.clone();
        other.embedding.invert_axis(ndarray::Axis(0));
        other.embedding = other.embedding.as_standard_layout().into_owned();
        quantized.float_digest = None;
        assert_eq!(
            check_pair(&quantized, &float).unwrap(),
            ComparedBy::Embedding
        );
        let error = check_pair(&quantized, &other).unwrap_err().to_string();
        assert!(error.contains("embedding is 1"), "{error}");
    }
}
