//! `config.json` of a Mamba-1 model, as `transformers` or as `mamba_ssm` (and with it Quamba) writes it.

use super::input::shown;
use crate::error::{Result, SimError};
use crate::model::Config;
use crate::text;
use serde_json::{Value, json};
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

/// Reads a configuration. `path` names it in errors. One with `model_type` is of `transformers`, one with
/// `n_layer` and no `model_type` of `mamba_ssm`.
///
/// `transformers`, required: `model_type` ("mamba"), `vocab_size`, `hidden_size`, `num_hidden_layers`. Defaults as
/// in `transformers`: `state_size` 16, `conv_kernel` 4, `expand` 2, `intermediate_size`
/// expand·hidden_size, `time_step_rank` ("auto") ⌈hidden_size/16⌉, `layer_norm_epsilon` 1e-5,
/// tied head, conv bias, no linear bias.
///
/// `mamba_ssm`, required: `d_model`, `n_layer`, `vocab_size`, which is rounded up to
/// `pad_vocab_size_multiple` (8). In `ssm_cfg`: `d_state` 16, `d_conv` 4, `expand` 2, `dt_rank` ("auto").
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
    if keys.get("model_type").is_none() && keys.get("n_layer").is_some() {
        return mamba_ssm(json);
    }
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

fn mamba_ssm(json: Value) -> Result<HfConfig> {
    let keys = Keys(&json);
    let no_keys = json!({});
    let ssm = Keys(keys.get("ssm_cfg").unwrap_or(&no_keys));
    if let Some(layer) = ssm.get("layer").and_then(Value::as_str)
        && layer.contains("Mamba2")
    {
        return Err(SimError::value(
            "ssm_cfg.layer",
            "a layer of Mamba-1",
            shown(&format!("{layer} (Mamba-2)")),
        ));
    }
    keys.must_be("rms_norm", true.into(), &[true.into()])?;
    keys.must_be("residual_in_fp32", true.into(), &[true.into()])?;
    keys.must_be("d_intermediate", 0.into(), &[0.into()])?;
    keys.must_be("attn_layer_idx", json!([]), &[json!([])])?;
    ssm.must_be("bias", false.into(), &[false.into()])?;
    let d_model = keys.size("d_model", None)?;
    let vocab_size = keys.size("vocab_size", None)?;
    let multiple = keys.size("pad_vocab_size_multiple", Some(8))?;
    let dt_rank = match ssm.get("dt_rank") {
        Some(Value::String(s)) if s == "auto" => d_model.div_ceil(16),
        _ => ssm.size("dt_rank", Some(d_model.div_ceil(16)))?,
    };
    let padded = vocab_size.checked_next_multiple_of(multiple.max(1));
    let config = Config {
        vocab_size: padded.unwrap_or(usize::MAX),
        d_model,
        d_inner: (ssm.number("expand", 2.0)? * d_model as f64) as usize,
        d_state: ssm.size("d_state", Some(16))?,
        dt_rank,
        d_conv: ssm.size("d_conv", Some(4))?,
        n_layers: keys.size("n_layer", None)?,
        eps: keys.number("norm_epsilon", 1e-5)? as f32,
        json: Value::Null,
    };
    config.validate()?;
    let conv_bias = ssm.flag("conv_bias", true)?;
    let tied = keys.flag("tie_embeddings", true)?;
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

    fn of_mamba_ssm() -> Value {
        json!({"d_model": 768, "n_layer": 24, "vocab_size": 50277, "ssm_cfg": {}, "rms_norm": true,
            "residual_in_fp32": true, "fused_add_norm": true, "pad_vocab_size_multiple": 8})
    }

    #[test]
    fn the_other_library_says_the_same_in_other_words() {
        let hf = from_json(of_mamba_ssm()).unwrap();
        let c = hf.config;
        assert_eq!((c.vocab_size, c.d_model, c.n_layers), (50_280, 768, 24));
        assert_eq!(
            (c.d_inner, c.d_state, c.dt_rank, c.d_conv),
            (1536, 16, 48, 4)
        );
        assert!(hf.conv_bias && hf.tied);
        for (key, value, names) in [
            ("ssm_cfg", json!({"layer": "W8A8QMamba2"}), "Mamba-2"),
            ("ssm_cfg", json!({"d_state": 0}), "state_size"),
            ("d_intermediate", json!(64), "d_intermediate"),
            ("attn_layer_idx", json!([3]), "attn_layer_idx"),
            ("vocab_size", json!(usize::MAX), "vocab_size"),
            ("pad_vocab_size_multiple", json!(-1), "pad_vocab"),
            ("d_model", Value::Null, "d_model"),
            ("rms_norm", json!(false), "rms_norm"),
        ] {
            let mut json = of_mamba_ssm();
            json[key] = value;
            let message = from_json(json).unwrap_err().to_string();
            assert!(message.contains(names), "{key}: {message}");
        }
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
