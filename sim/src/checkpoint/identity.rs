//! Whether a quantized model and a float model are one model: their shapes field by field, their weights
//! by a digest that the quantized file remembers.

use super::input::shown;
use crate::error::{Result, SimError};
use crate::model::{Config, Embedding, FloatLayer, FloatModel, QuantizedModel};
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
    /// The shape alone: neither a digest nor a float embedding is in the file.
    Shape,
}

/// SHA-256 of the binary16 weights of a checkpoint before it is folded, in hexadecimal: of every tensor's values as f32, in the
/// order of the model, then of these digests. The same for a checkpoint saved again with other harmless
/// keys, in another order or in another type that holds its values.
pub fn digest(model: &FloatModel) -> String {
    let mut parts: Vec<Vec<u8>> = (model.layers.par_iter())
        .flat_map_iter(|layer: &FloatLayer| {
            [
                of(&layer.norm),
                of(&layer.in_proj),
                of(&layer.conv_weight),
                of(&layer.conv_bias),
                of(&layer.x_proj),
                of(&layer.dt_proj),
                of(&layer.dt_bias),
                of(&layer.a_log),
                of(&layer.d),
                of(&layer.out_proj),
            ]
        })
        .collect();
    parts.extend([of(&model.embedding), of(&model.norm_f), of(&model.head)]);
    hex(Sha256::digest(parts.concat()))
}

/// The digest of a tensor's values.
fn of<'a, T: Copy + Into<f32> + 'a>(values: impl IntoIterator<Item = &'a T>) -> Vec<u8> {
    let mut hash = Sha256::new();
    let mut bytes = Vec::new();
    for value in values {
        let value: f32 = (*value).into();
        bytes.extend(value.to_le_bytes());
        if bytes.len() == 1 << 16 {
            hash.update(&bytes);
            bytes.clear();
        }
    }
    hash.update(&bytes);
    hash.finalize().to_vec()
}

fn hex(bytes: impl AsRef<[u8]>) -> String {
    bytes.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

/// Checks that a quantized model was made of a float model: `folded`, from a checkpoint of this digest.
///
/// # Errors
///
/// The first field of their shapes that differs; other weights.
pub fn check_pair(
    quantized: &QuantizedModel,
    folded: &FloatModel,
    found: &str,
) -> Result<ComparedBy> {
    check_shapes(&quantized.config, &folded.config)?;
    if let Some(expected) = &quantized.float_digest {
        let start = |digest: &str| shown(&digest.chars().take(12).collect::<String>());
        return match *expected == found {
            true => Ok(ComparedBy::Digest),
            false => Err(SimError::value(
                "float model",
                format_args!(
                    "the one it was quantized from, of sha256 {}…",
                    start(expected)
                ),
                format_args!("another of the same shape, {}…", start(found)),
            )),
        };
    }
    let Embedding::F16(embedding) = &quantized.embedding else {
        return Ok(ComparedBy::Shape);
    };
    let (mut apart, mut size) = (0.0f64, 0.0f64);
    for (a, b) in embedding.iter().zip(&folded.embedding) {
        let (a, b) = (f64::from(*a), f64::from(*b));
        apart += (a - b).powi(2);
        size += a.powi(2);
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
    use half::f16;
    use serde_json::json;

    fn check(quantized: &QuantizedModel, float: &FloatModel) -> Result<ComparedBy> {
        check_pair(quantized, float, &digest(float))
    }

    fn pair() -> (QuantizedModel, FloatModel) {
        let float = float_model(Shape::named("tiny").unwrap());
        let mut quantized = quantize(
            &float,
            &plausible_scales(&float.config),
            &Recipe::QUAMBA,
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
        assert_eq!(check(&quantized, &float).unwrap(), ComparedBy::Digest);
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
            let error = check(&quantized, &other).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    /// One bit of any tensor makes another digest; without one the embedding tells models apart.
    #[test]
    fn another_model_of_the_same_shape_is_refused() {
        let (mut quantized, float) = pair();
        let flip = |v: &mut f16| *v = f16::from_bits(v.to_bits() ^ 1);
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
            assert!(check(&quantized, &other).is_err(), "tensor {i}");
        }
        let mut other = float.clone();
        other.embedding.invert_axis(ndarray::Axis(0));
        other.embedding = other.embedding.as_standard_layout().into_owned();
        quantized.float_digest = None;
        assert_eq!(check(&quantized, &float).unwrap(), ComparedBy::Embedding);
        let error = check(&quantized, &other).unwrap_err().to_string();
        assert!(error.contains("embedding is 1"), "{error}");
    }
}
