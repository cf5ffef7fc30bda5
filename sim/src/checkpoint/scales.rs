//! Activation scales on their own, as JSON. Source: datapath specification, section 3.
//!
//! ```json
//! {"layers":[{"in_proj_input":0.03,"in_proj_output":0.1, …}, …]}
//! ```
//!
//! Seven keys a layer, in model order. A number is printed with the fewest digits that read back
//! to the same f32.

use super::container::Container;
use super::input::{read_small, shown};
use super::load::{Loaded, load};
use super::quantized;
use crate::atomic;
use crate::error::{Result, SimError};
use crate::model::{ActivationScales, ScaleKey};
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
    layers: Vec<BTreeMap<String, f32>>,
}

/// Reads scales: from the folder of a quantized model, from a safetensors file in the quantized format, or
/// else from JSON.
///
/// # Errors
///
/// One line with file, layer and key, expected and found.
pub fn read(path: &Path) -> Result<Vec<ActivationScales>> {
    if path.is_dir() {
        return match load(path)? {
            Loaded::Quantized(model) => Ok(model.layers.iter().map(|l| l.scales).collect()),
            Loaded::Float(_) => Err(SimError::file(
                path,
                "activation scales",
                "a quantized model, which has them",
                "a float model",
            )),
        };
    }
    let named = path
        .extension()
        .is_some_and(|e| e.eq_ignore_ascii_case("safetensors"));
    if Container::is_one(path, named)? {
        quantized::scales_from_container(&Container::open(path)?)
    } else {
        from_json(&read_small(path, MAX_JSON)?).map_err(|e| e.in_file(path))
    }
}

/// Reads scales from JSON in memory.
///
/// # Errors
///
/// One line with layer and key, expected and found.
pub fn from_json(json: &[u8]) -> Result<Vec<ActivationScales>> {
    let parsed: In = text::from_json(json).map_err(|found| {
        let expected = "{\"layers\":[{\"in_proj_input\":…},…]}";
        SimError::value("file", expected, shown(&found))
    })?;
    let layer = |(i, layer): (usize, BTreeMap<String, f32>)| {
        if let Some(key) = layer
            .keys()
            .find(|k| ScaleKey::ALL.iter().all(|key| key.name() != *k))
        {
            let item = format!("layers[{i}].{}", shown(key));
            return Err(SimError::value(
                item,
                "one of the seven scale keys",
                "an unknown key",
            ));
        }
        ActivationScales::from_fn(|key| {
            let item = || format!("layers[{i}].{}", key.name());
            let expected = "a positive, finite, normal f32";
            match layer.get(key.name()) {
                None => Err(SimError::value(item(), expected, "nothing")),
                Some(value) => Scale::new(*value)
                    .map_err(|_| SimError::value(item(), expected, format_args!("{value:e}"))),
            }
        })
    };
    parsed.layers.into_iter().enumerate().map(layer).collect()
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
    #[ignore = "half a minute: every f32 from 2^-40 to 2^10"]
    fn every_number_reads_back_to_the_same_bits() {
        use rayon::prelude::*;
        let bits = |power: i32| 2f32.powi(power).to_bits();
        (bits(-40)..bits(10)).into_par_iter().for_each(survives);
    }

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
