//! `config.json` of a Hugging Face Mamba-1 model.

use super::input::shown;
use crate::error::{Result, SimError};
use crate::model::Config;
use crate::text;
use serde_json::Value;
use std::path::Path;

/// A configuration in JSON, and what of it is not part of [`Config`].
#[derive(Debug)]
pub(crate) struct HfConfig {
    /// Shape.
    pub config: Config,
    /// `use_conv_bias`: whether the files hold conv biases; zeros otherwise.
    pub conv_bias: bool,
    /// `tie_word_embeddings`: whether the head is the embedding.
    pub tied: bool,
}

/// Reads a Hugging Face configuration. `path` names it in errors.
///
/// Required: `model_type` ("mamba"), `vocab_size`, `hidden_size`, `num_hidden_layers`. Defaults as
/// in `transformers`: `state_size` 16, `conv_kernel` 4, `expand` 2, `intermediate_size`
/// expand·hidden_size, `time_step_rank` ("auto") ⌈hidden_size/16⌉, `layer_norm_epsilon` 1e-5,
/// tied head, conv bias, no linear bias.
pub(crate) fn parse(path: &Path, json: &[u8]) -> Result<HfConfig> {
    let json: Value = text::from_json(json)
        .map_err(|found| SimError::file(path, "file", "JSON", shown(&found)))?;
    from_json(json).map_err(|e| e.in_file(path))
}

fn from_json(json: Value) -> Result<HfConfig> {
    if !json.is_object() {
        return Err(SimError::value("file", "a JSON object", found(&json)));
    }
    let keys = Keys(&json);
    keys.must_be("model_type", Value::Null, &[Value::from("mamba")])?;
    keys.must_be(
        "hidden_act",
        "silu".into(),
        &["silu".into(), "swish".into()],
    )?;
    keys.must_be("use_bias", false.into(), &[false.into()])?;
    keys.must_be("rms_norm", true.into(), &[true.into()])?;
    keys.must_be("residual_in_fp32", true.into(), &[true.into()])?;

    let d_model = keys.size("hidden_size", None)?;
    let expanded = (keys.number("expand", 2.0)? * d_model as f64) as usize;
    let dt_rank = match keys.get("time_step_rank") {
        Some(Value::String(s)) if s == "auto" => d_model.div_ceil(16),
        _ => keys.size("time_step_rank", Some(d_model.div_ceil(16)))?,
    };
    let config = Config {
        vocab_size: keys.size("vocab_size", None)?,
        d_model,
        d_inner: keys.size("intermediate_size", Some(expanded))?,
        d_state: keys.size("state_size", Some(16))?,
        dt_rank,
        d_conv: keys.size("conv_kernel", Some(4))?,
        n_layers: keys.size("num_hidden_layers", None)?,
        eps: keys.number("layer_norm_epsilon", 1e-5)? as f32,
        json: Value::Null,
    };
    config.validate()?;
    let conv_bias = keys.flag("use_conv_bias", true)?;
    let tied = keys.flag("tie_word_embeddings", true)?;
    Ok(HfConfig {
        config: Config { json, ..config },
        conv_bias,
        tied,
    })
}

struct Keys<'a>(&'a Value);

impl Keys<'_> {
    /// The value, unless absent or null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn must_be(&self, key: &str, default: Value, allowed: &[Value]) -> Result<()> {
        let value = self.get(key).unwrap_or(&default);
        if allowed.contains(value) {
            Ok(())
        } else {
            let found = match value {
                Value::Null => "nothing".to_owned(),
                _ => found(value),
            };
            Err(SimError::value(key, &allowed[0], found))
        }
    }

    fn size(&self, key: &str, default: Option<usize>) -> Result<usize> {
        let expected = "a positive integer";
        match (self.get(key), default) {
            (Some(v), _) => v
                .as_u64()
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| SimError::value(key, expected, found(v))),
            (None, Some(default)) => Ok(default),
            (None, None) => Err(SimError::value(key, expected, "nothing")),
        }
    }

    fn number(&self, key: &str, default: f64) -> Result<f64> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v
                .as_f64()
                .ok_or_else(|| SimError::value(key, "a number", found(v))),
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(v) => v
                .as_bool()
                .ok_or_else(|| SimError::value(key, "true or false", found(v))),
        }
    }
}

fn found(value: &Value) -> String {
    shown(&value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn minimal() -> Value {
        json!({"model_type": "mamba", "vocab_size": 256, "hidden_size": 64, "num_hidden_layers": 2})
    }

    #[test]
    fn defaults_are_those_of_transformers() {
        let hf = from_json(minimal()).unwrap();
        let c = hf.config;
        assert_eq!((c.d_inner, c.d_state, c.dt_rank, c.d_conv), (128, 16, 4, 4));
        assert_eq!(c.eps, 1e-5);
        assert!(hf.conv_bias && hf.tied);
        assert_eq!(c.json, minimal());
    }

    #[test]
    fn explicit_values_win() {
        let mut json = minimal();
        json["intermediate_size"] = 96.into();
        json["time_step_rank"] = 7.into();
        json["state_size"] = 8.into();
        json["layer_norm_epsilon"] = 1e-6.into();
        json["tie_word_embeddings"] = false.into();
        let hf = from_json(json).unwrap();
        let c = hf.config;
        assert_eq!((c.d_inner, c.dt_rank, c.d_state, c.eps), (96, 7, 8, 1e-6));
        assert!(!hf.tied);
    }

    #[test]
    fn rank_rounds_up() {
        let mut json = minimal();
        json["hidden_size"] = 40.into();
        json["time_step_rank"] = "auto".into();
        assert_eq!(from_json(json).unwrap().config.dt_rank, 3);
    }

    #[test]
    fn refusals_name_the_key() {
        let cases = [
            ("model_type", json!("mamba2")),
            ("model_type", Value::Null),
            ("vocab_size", Value::Null),
            ("vocab_size", json!(-1)),
            ("vocab_size", json!(0)),
            ("vocab_size", json!(1u64 << 60)),
            ("hidden_size", json!("64")),
            ("intermediate_size", json!(1u64 << 40)),
            ("expand", json!("2")),
            ("num_hidden_layers", json!(2.5)),
            ("conv_kernel", json!(5)),
            ("state_size", json!(1000)),
            ("time_step_rank", json!("automatic")),
            ("use_bias", json!(true)),
            ("use_conv_bias", json!("yes")),
            ("rms_norm", json!(false)),
            ("hidden_act", json!("gelu")),
            ("layer_norm_epsilon", json!(-1.0)),
        ];
        for (key, value) in cases {
            let mut json = minimal();
            json[key] = value.clone();
            let message = from_json(json).unwrap_err().to_string();
            assert!(message.contains(key), "{key} = {value}: {message}");
            assert_eq!(message.lines().count(), 1);
        }
        assert!(from_json(json!([1])).is_err());
        // No Hadamard matrix of this size.
        let mut json = minimal();
        json["hidden_size"] = 100.into();
        assert!(
            from_json(json)
                .unwrap_err()
                .to_string()
                .contains("Hadamard")
        );
    }
}
