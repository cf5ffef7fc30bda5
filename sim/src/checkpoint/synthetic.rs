//! Random models of published shapes, for speed and memory measurements and for tests. They say
//! nothing about accuracy.
//!
//! Weights are a fixed function of tensor and position, in integer arithmetic up to one f32
//! multiplication and one rounding to f16, so that the same bits come out on every machine, with any
//! number of threads, in every version.

use super::config;
use super::quantize::{Ends, quantize_ends, quantize_layer};
use super::recipe::Recipe;
use crate::error::{Result, SimError};
use crate::model::{ActivationScales, Config, Embedding, FloatLayer, FloatModel, Head};
use crate::model::{QuantizedLayer, QuantizedModel, ScaleKey};
use crate::quant::{QWeight, Scale};
use crate::random::Stream;
use half::f16;
use ndarray::Array2;
use rayon::prelude::*;
use serde_json::json;
use std::path::Path;

/// A shape by its name. N = 16, K = 4, E = 2M, R = ⌈M/16⌉ throughout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// The parameter count that the published model is known by.
    pub name: &'static str,
    /// Blocks.
    pub n_layers: usize,
    /// M.
    pub d_model: usize,
    /// V.
    pub vocab_size: usize,
}

impl Shape {
    const fn published(name: &'static str, n_layers: usize, d_model: usize) -> Self {
        Self {
            name,
            n_layers,
            d_model,
            vocab_size: 50_280,
        }
    }

    /// Every shape, smallest first: `tiny` for tests, then the Mamba-1 models of Gu and Dao (2023).
    pub const ALL: [Shape; 6] = [
        Shape {
            name: "tiny",
            n_layers: 2,
            d_model: 64,
            vocab_size: 256,
        },
        Shape::published("130m", 24, 768),
        Shape::published("370m", 48, 1024),
        Shape::published("790m", 48, 1536),
        Shape::published("1.4b", 48, 2048),
        Shape::published("2.8b", 64, 2560),
    ];

    /// The shape of that name.
    ///
    /// # Errors
    ///
    /// An unknown name; the line lists the known ones.
    pub fn named(name: &str) -> Result<Shape> {
        let found = Shape::ALL.into_iter().find(|s| s.name == name);
        found.ok_or_else(|| {
            let names = Shape::ALL.map(|s| s.name).join(", ");
            SimError::value("synthetic model", names, super::input::shown(name))
        })
    }

    /// The configuration, with a Hugging Face one to be written out.
    pub fn config(&self) -> Config {
        let json = json!({
            "architectures": ["MambaForCausalLM"],
            "model_type": "mamba",
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "state_size": 16,
            "num_hidden_layers": self.n_layers,
            "conv_kernel": 4,
            "expand": 2,
            "intermediate_size": 2 * self.d_model,
            "time_step_rank": self.d_model.div_ceil(16),
            "use_bias": false,
            "use_conv_bias": true,
            "hidden_act": "silu",
            "layer_norm_epsilon": 1e-5,
            "tie_word_embeddings": true,
        });
        config::parse(Path::new(self.name), json.to_string().as_bytes())
            .expect("a published shape is valid")
            .config
    }
}

/// The float model of a shape. It counts as folded already (`rotated` is set, norms are 1): a
/// rotation of independent, nearly normal weights has the same distribution, so there is nothing
/// that folding would change.
pub fn float_model(shape: Shape) -> FloatModel {
    let config = shape.config();
    let embedding = embedding(&config);
    FloatModel {
        head: embedding.clone(),
        embedding,
        layers: (0..config.n_layers).map(|i| layer(&config, i)).collect(),
        norm_f: vec![f16::ONE; config.d_model],
        rotated: true,
        config,
    }
}

/// The quantized model of a shape, with [`plausible_scales`]. Equal to the quantized
/// [`float_model`], but no more than one float layer exists at a time.
pub fn quantized_model(shape: Shape) -> QuantizedModel {
    let config = shape.config();
    let embedding = embedding(&config);
    let quantized = |(i, scales)| -> QuantizedLayer {
        quantize_layer(&layer(&config, i), scales, &Recipe::GOLDEN)
    };
    QuantizedModel {
        float_digest: None,
        head: Head::F16(embedding.clone()),
        embedding: Embedding::F16(embedding),
        layers: plausible_scales(&config)
            .into_iter()
            .enumerate()
            .map(quantized)
            .collect(),
        norm_f: vec![f16::ONE; config.d_model],
        config,
    }
}

/// Quantizes embedding, final norm and head of a [`quantized_model`]: to four bits where in_proj has four, to INT8
/// elsewhere.
///
/// # Errors
///
/// A head that four bits do not fit.
pub fn quantize_ends_of(model: &mut QuantizedModel) -> Result<()> {
    let (Embedding::F16(embedding), Head::F16(head)) = (&model.embedding, &model.head) else {
        return Ok(());
    };
    // The final norm gives what the norms of blocks give.
    let head_input = model.layers[0].scales.get(ScaleKey::InProjInput);
    let ends = match model.layers[0].in_proj {
        QWeight::Int4(_) => Ends::Int4 { head_input },
        QWeight::Int8(_) => Ends::Int8 { head_input },
    };
    (model.embedding, model.head) = quantize_ends(embedding, head, &Recipe::GOLDEN, ends)?;
    Ok(())
}

/// Activation scales that fit the weights here, one set a layer: about five standard deviations of
/// each tensor on code 127, so that hardly anything saturates and the codes are well used.
/// Calibration gives better ones for any particular input.
pub fn plausible_scales(config: &Config) -> Vec<ActivationScales> {
    let absmax = |key| match key {
        ScaleKey::InProjInput => 5.0,  // normed: variance 1
        ScaleKey::InProjOutput => 5.0, // in_proj keeps the variance
        ScaleKey::XProjInput => 4.5,   // SiLU of it
        ScaleKey::XProjOutput => 3.0,  // second moment of that is about 0.36
        ScaleKey::DtProjOutput => 3.0, // dt_proj keeps it
        ScaleKey::SsmState => 0.6,     // √(δ/2) · B · u with the largest δ
        ScaleKey::OutProjInput => 1.8, // u · SiLU(z), normal after the rotation
        ScaleKey::XProjInputMax => 9.0,
    };
    let scale = |key| Scale::from_absmax(absmax(key), 1e-6);
    let max = scale(ScaleKey::XProjInputMax).expect("a constant in range");
    let set = ActivationScales::from_fn(scale).expect("constants in range");
    vec![set.with_max(Some(max)); config.n_layers]
}

/// Index of a tensor within its layer; part of its seed, so never to be renumbered.
#[derive(Clone, Copy)]
enum WeightIndex {
    Embedding = 0,
    InProj = 1,
    ConvWeight = 2,
    ConvBias = 3,
    XProj = 4,
    DtProj = 5,
    DtBias = 6,
    OutProj = 7,
}

fn embedding(c: &Config) -> Array2<f16> {
    let deviation = 1.0 / (c.d_model as f64).sqrt();
    matrix(
        stream(0, WeightIndex::Embedding),
        c.vocab_size,
        c.d_model,
        deviation,
    )
}

fn layer(c: &Config, i: usize) -> FloatLayer {
    let (m, e, n) = (c.d_model, c.d_inner, c.d_state);
    // Variance 1 in gives variance 1 out.
    let weights = |tensor, rows: usize, columns: usize| {
        let deviation = 1.0 / (columns as f64).sqrt();
        matrix(stream(i, tensor), rows, columns, deviation)
    };
    let vector = |tensor, f: fn(u64) -> f32| -> Vec<f16> {
        let stream = stream(i, tensor);
        (0..e).map(|at| f16::from_f32(f(stream.at(at)))).collect()
    };
    let a_log = |state| f32::from(f16::from_f32(((state + 1) as f64).ln() as f32));
    FloatLayer {
        norm: vec![f16::ONE; m],
        in_proj: weights(WeightIndex::InProj, 2 * e, m),
        conv_weight: weights(WeightIndex::ConvWeight, e, c.d_conv),
        conv_bias: vector(WeightIndex::ConvBias, |bits| normal(bits) * 0.1),
        x_proj: weights(WeightIndex::XProj, c.x_proj_width(), e),
        dt_proj: weights(WeightIndex::DtProj, e, c.dt_rank),
        dt_bias: vector(WeightIndex::DtBias, |bits| {
            // softplus of the ends is 1e-3 and 1e-1; between them softplus is nearly exp, so the
            // time steps are nearly log-uniform, as Mamba initializes them.
            const ENDS: [f32; 2] = [-6.907_255, -2.252_168_5];
            ENDS[0] + (ENDS[1] - ENDS[0]) * ((bits >> 40) as f32 / (1u32 << 24) as f32)
        }),
        a_log: Array2::from_shape_fn((e, n), |(_, state)| a_log(state)),
        d: vec![1.0; e],
        out_proj: weights(WeightIndex::OutProj, m, e),
    }
}

fn matrix(stream: Stream, rows: usize, columns: usize, deviation: f64) -> Array2<f16> {
    let deviation = deviation as f32;
    let mut values = vec![f16::ZERO; rows * columns];
    const TASK: usize = 1 << 14;
    values
        .par_chunks_mut(TASK)
        .enumerate()
        .for_each(|(task, values)| {
            for (at, value) in values.iter_mut().enumerate() {
                *value = f16::from_f32(normal(stream.at(task * TASK + at)) * deviation);
            }
        });
    Array2::from_shape_vec((rows, columns), values).expect("as many values as the shape says")
}

/// A nearly normal variable of variance 1 from 64 uniform bits: the centred sum of four 16-bit
/// numbers, exact in f32, over its standard deviation 2^16/√3. It stays within ±3.47.
fn normal(bits: u64) -> f32 {
    let sum: u32 = (0..4).map(|i| (bits >> (16 * i)) as u32 & 0xffff).sum();
    (sum as i32 - 2 * 0xffff) as f32 * (1.732_050_8 / 65_536.0)
}

/// A tensor's own random numbers; their seed is itself an output of SplitMix64.
fn stream(layer: usize, tensor: WeightIndex) -> Stream {
    const SEED: u64 = 0x5ca1_e5c0_9e00_0001;
    Stream(Stream(SEED).at(layer << 4 | tensor as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::quantize::{Ends, quantize};

    #[test]
    fn nearly_normal() {
        let stream = stream(3, WeightIndex::XProj);
        let values: Vec<f64> = (0..100_000).map(|i| normal(stream.at(i)).into()).collect();
        let mean = values.iter().sum::<f64>() / 1e5;
        let variance = values.iter().map(|v| v * v).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02, "{mean}");
        assert!((variance - 1.0).abs() < 0.02, "{variance}");
        assert!(values.iter().all(|v| v.abs() < 3.47));
        assert_eq!(normal(0), -normal(u64::MAX));
    }

    #[test]
    fn shapes_are_valid_and_named() {
        for shape in Shape::ALL {
            shape.config().validate().unwrap();
            assert_eq!(Shape::named(shape.name).unwrap(), shape);
        }
        let error = Shape::named("7b").unwrap_err().to_string();
        assert!(error.contains("2.8b") && error.contains("7b"), "{error}");
    }

    #[test]
    fn both_ways_to_the_quantized_model_agree() {
        let shape = Shape::named("tiny").unwrap();
        let float = float_model(shape);
        let scales = plausible_scales(&float.config);
        let quantized = quantize(&float, &scales, &Recipe::GOLDEN, Ends::F16).unwrap();
        assert!(quantized == quantized_model(shape));
    }

    #[test]
    fn the_bits_do_not_change() {
        // FNV-1a over the tiny model's weights: a change here changes every published timing.
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let mut add = |values: &[f16]| {
            for byte in values.iter().flat_map(|v| v.to_le_bytes()) {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        let model = float_model(Shape::named("tiny").unwrap());
        add(model.embedding.as_slice().unwrap());
        for l in &model.layers {
            for m in [
                &l.in_proj,
                &l.conv_weight,
                &l.x_proj,
                &l.dt_proj,
                &l.a_log.mapv(f16::from_f32),
                &l.out_proj,
            ] {
                add(m.as_slice().unwrap());
            }
            add(&l.conv_bias);
            add(&l.dt_bias);
            add(&l.d.iter().map(|v| f16::from_f32(*v)).collect::<Vec<f16>>());
        }
        assert_eq!(hash, 0x2351_d2d1_538d_c2a2, "{hash:#x}");
    }
}
