//! Activation scales on their own, as JSON.
//!
//! ```json
//! {"model":"3f0c…","layers":[{"in_proj_input":0.03,"in_proj_output":0.1, …}, …]}
//! ```
//!
//! `model` is the digest of the folded float model they were calibrated for ([`identity::digest`]), where it is known.
//! Seven keys a layer and, since there is one, `x_proj_input_max`; in model order. A number is printed with the fewest digits that read back
//! to the same f32.

use super::container::Container;
use super::identity;
use super::input::{read_small, shown};
use super::load::{Loaded, load};
use super::quantized;
use crate::atomic;
use crate::error::{Result, SimError};
use crate::model::{ActivationScales, FloatModel, ScaleKey};
use crate::quant::Scale;
use crate::text;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

/// A thousand layers take 300 kB.
const MAX_JSON: u64 = 16 << 20;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct In {
    #[serde(default)]
    model: Option<String>,
    layers: Vec<BTreeMap<String, f32>>,
}

/// Scales, and the model they are of.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// One set a layer.
    pub layers: Vec<ActivationScales>,
    /// The digest of the folded float model, [`identity::digest`], if the file remembers it.
    pub float_digest: Option<String>,
}

/// Whether scales were seen to be those of the model they are for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The file remembers this model.
    Compared,
    /// The file remembers none; this is the digest of the model.
    Unknown(String),
}

/// Reads scales for a folded float model.
///
/// # Errors
///
/// As [`read`], and scales that remember another model.
pub fn read_for(path: &Path, float: &FloatModel) -> Result<(Vec<ActivationScales>, Origin)> {
    let stored = read(path)?;
    let found = identity::digest(float);
    let origin = match &stored.float_digest {
        None => Origin::Unknown(found),
        Some(expected) => {
            let same = identity::same_digest("the one its scales are of", expected, &found);
            same.map_err(|e| e.in_file(path))?;
            Origin::Compared
        }
    };
    Ok((stored.layers, origin))
}

/// Reads scales: from the folder of a quantized model, from a `.safetensors` file in the quantized
/// format, or else from JSON.
///
/// # Errors
///
/// One line with file, layer and key, expected and found.
pub fn read(path: &Path) -> Result<Stored> {
    if path.is_dir() {
        return match load(path)? {
            Loaded::Quantized(model) => Ok(Stored {
                layers: model.layers.iter().map(|l| l.scales).collect(),
                float_digest: model.float_digest,
            }),
            Loaded::Float(_) => Err(SimError::file(
                path,
                "activation scales",
                "a quantized model, which has them",
                "a float model",
            )),
        };
    }
    if is_model(path)? {
        quantized::scales_from_container(&Container::open(path)?)
    } else {
        stored_from_json(&read_small(path, MAX_JSON)?).map_err(|e| e.in_file(path))
    }
}

/// Whether scales of this path are those of a quantized model: a folder, or a file in its format.
pub fn is_model(path: &Path) -> Result<bool> {
    let named = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("safetensors"));
    Ok(path.is_dir() || Container::is_one(path, named)?)
}

/// Reads scales from JSON in memory.
///
/// # Errors
///
/// One line with layer and key, expected and found.
pub fn from_json(json: &[u8]) -> Result<Vec<ActivationScales>> {
    stored_from_json(json).map(|stored| stored.layers)
}

fn stored_from_json(json: &[u8]) -> Result<Stored> {
    let parsed: In = text::from_json(json).map_err(|found| {
        let expected = "{\"layers\":[{\"in_proj_input\":…},…]}";
        SimError::value("file", expected, shown(&found))
    })?;
    let layer = |(i, layer): (usize, BTreeMap<String, f32>)| {
        if let Some(key) = layer
            .keys()
            .find(|k| ScaleKey::WITH_OPTIONAL.iter().all(|key| key.name() != *k))
        {
            let item = format!("layers[{i}].{}", shown(key));
            return Err(SimError::value(
                item,
                "one of the eight scale keys",
                "an unknown key",
            ));
        }
        let read = |key: ScaleKey| {
            let item = || format!("layers[{i}].{}", key.name());
            let expected = "a positive, finite, normal f32";
            match layer.get(key.name()) {
                None => Err(SimError::value(item(), expected, "nothing")),
                Some(value) => Scale::new(*value)
                    .map_err(|_| SimError::value(item(), expected, format_args!("{value:e}"))),
            }
        };
        let max = ScaleKey::XProjInputMax;
        let max = layer
            .contains_key(max.name())
            .then(|| read(max))
            .transpose()?;
        Ok(ActivationScales::from_fn(read)?.with_max(max))
    };
    let layers = parsed.layers.into_iter().enumerate().map(layer);
    Ok(Stored {
        layers: layers.collect::<Result<_>>()?,
        float_digest: parsed.model,
    })
}

/// Scales as JSON, one layer a line; equal scales give equal bytes.
pub fn to_json(scales: &[ActivationScales]) -> String {
    let line = |layer| serde_json::to_string(layer).expect("plain numbers");
    let layers: Vec<String> = scales.iter().map(line).collect();
    format!("{{\"layers\":[\n{}\n]}}\n", layers.join(",\n"))
}

/// Writes scales as JSON. The file appears whole or not at all.
///
/// # Errors
///
/// The system's, on the file or its directory.
pub fn write(path: &Path, scales: &[ActivationScales]) -> Result<()> {
    atomic::write(path, |out| out.write_all(to_json(scales).as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn survives(bits: u32) {
        let scale = Scale::new(f32::from_bits(bits)).unwrap();
        let json = serde_json::to_string(&scale).unwrap();
        let back: f32 = serde_json::from_str(&json).unwrap();
        assert_eq!(back.to_bits(), bits, "{json}");
    }

    #[test]
    fn numbers_read_back_to_the_same_bits() {
        let (least, most) = (f32::MIN_POSITIVE.to_bits(), f32::MAX.to_bits());
        for bits in (least..=most).step_by(6151) {
            survives(bits);
        }
        survives(least);
        survives(most);
    }

    #[test]
    #[ignore = "half a minute: every f32 from 2^-40 to 2^10; cargo test --release -p scalescope-sim --lib every_number_reads_back -- --ignored"]
    fn every_number_reads_back_to_the_same_bits() {
        use rayon::prelude::*;
        let bits = |power: i32| 2f32.powi(power).to_bits();
        (bits(-40)..bits(10)).into_par_iter().for_each(survives);
    }

    #[cfg(feature = "sample")]
    #[test]
    fn refusals_name_layer_and_key() {
        let good = to_json(&crate::sample::activation_scales());
        let refused = |from: &str, to: &str, names: &str| {
            let json = good.replacen(from, to, 1);
            assert_ne!(json, good);
            let error = from_json(json.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(names), "{error}");
            assert_eq!(error.lines().count(), 1);
        };
        refused("\"ssm_state\"", "\"state\"", "layers[0].state");
        refused(
            "\"ssm_state\":0.",
            "\"ssm_state\":-0.",
            "layers[0].ssm_state",
        );
        refused(":0.03549314", ":0", "layers[0].in_proj_input");
        refused(":0.03549314", ":1e-40", "layers[0].in_proj_input");
        refused(":0.03549314", ":1e40", "out of range");
        refused(":0.03549314", ":null", "null");
        refused(
            "\"in_proj_input\":0.03549314,",
            "",
            "layers[0].in_proj_input",
        );
        refused("\"layers\"", "\"layer\"", "layer");
        refused("]}", "]", "file");
        assert!(from_json(b"").is_err());
    }
}
