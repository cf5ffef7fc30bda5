//! Writes checkpoints for tests with the `safetensors` crate, an implementation that is not ours.

use half::f16;
use ndarray::Array2;
use safetensors::tensor::{Dtype, View};
use scalescope_sim::model::FloatModel;
use serde_json::{Value, json};
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct Raw {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl View for &Raw {
    fn dtype(&self) -> Dtype {
        self.dtype
    }
    fn shape(&self) -> &[usize] {
        &self.shape
    }
    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.data)
    }
    fn data_len(&self) -> usize {
        self.data.len()
    }
}

impl Raw {
    pub fn f16(shape: &[usize], values: &[f16]) -> Self {
        Self {
            dtype: Dtype::F16,
            shape: shape.to_vec(),
            data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    pub fn f32(shape: &[usize], values: &[f32]) -> Self {
        Self {
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }

    /// The values of an F16 tensor.
    pub fn values(&self) -> Vec<f16> {
        assert_eq!(self.dtype, Dtype::F16);
        let pairs = self.data.chunks(2);
        pairs.map(|b| f16::from_le_bytes([b[0], b[1]])).collect()
    }
}

pub type Tensors = BTreeMap<String, Raw>;

pub fn bytes(tensors: &Tensors, metadata: &[(&str, &str)]) -> Vec<u8> {
    let metadata: HashMap<String, String> = metadata
        .iter()
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .collect();
    safetensors::serialize(tensors, Some(metadata)).unwrap()
}

/// What a file of the `safetensors` format holds, and its metadata.
pub fn parse(bytes: &[u8]) -> (Tensors, HashMap<String, String>) {
    let (_, header) = safetensors::SafeTensors::read_metadata(bytes).unwrap();
    let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
    let tensors = file
        .tensors()
        .into_iter()
        .map(|(name, view)| {
            let raw = Raw {
                dtype: view.dtype(),
                shape: view.shape().to_vec(),
                data: view.data().to_vec(),
            };
            (name, raw)
        })
        .collect();
    (tensors, header.metadata().clone().unwrap_or_default())
}

/// A model under the names of `MambaForCausalLM`, tied: no head.
pub fn hf_tensors(model: &FloatModel) -> Tensors {
    let mut tensors = Tensors::new();
    let mut matrix = |name: String, m: &Array2<f16>| {
        tensors.insert(name, Raw::f16(m.shape(), m.as_slice().unwrap()));
    };
    matrix("backbone.embeddings.weight".into(), &model.embedding);
    for (i, l) in model.layers.iter().enumerate() {
        let name = |n| format!("backbone.layers.{i}.mixer.{n}");
        matrix(name("in_proj.weight"), &l.in_proj);
        matrix(name("conv1d.weight"), &l.conv_weight);
        matrix(name("x_proj.weight"), &l.x_proj);
        matrix(name("dt_proj.weight"), &l.dt_proj);
        matrix(name("A_log"), &l.a_log.mapv(f16::from_f32));
        matrix(name("out_proj.weight"), &l.out_proj);
    }
    let mut vector = |name: String, v: &[f16]| {
        tensors.insert(name, Raw::f16(&[v.len()], v));
    };
    vector("backbone.norm_f.weight".into(), &model.norm_f);
    for (i, l) in model.layers.iter().enumerate() {
        let name = |n| format!("backbone.layers.{i}.{n}");
        vector(name("norm.weight"), &l.norm);
        vector(name("mixer.conv1d.bias"), &l.conv_bias);
        vector(name("mixer.dt_proj.bias"), &l.dt_bias);
        let d: Vec<f16> = l.d.iter().map(|v| f16::from_f32(*v)).collect();
        vector(name("mixer.D"), &d);
    }
    for (name, raw) in &mut tensors {
        if name.ends_with("conv1d.weight") {
            raw.shape.insert(1, 1);
        }
    }
    tensors
}

/// Writes a directory with one weight file.
pub fn write_dir(dir: &Path, config: &Value, tensors: &Tensors) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let file = bytes(tensors, &[("format", "pt")]);
    std::fs::write(dir.join("model.safetensors"), file).unwrap();
}

/// Writes a directory with two shards and their index; names below `split` go to the first.
pub fn write_shards(dir: &Path, config: &Value, tensors: &Tensors, split: &str) -> Value {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut map = serde_json::Map::new();
    let mut shards = [Tensors::new(), Tensors::new()];
    for (name, raw) in tensors {
        let shard = usize::from(name.as_str() >= split);
        shards[shard].insert(name.clone(), raw.clone());
        map.insert(name.clone(), shard_name(shard).into());
    }
    for (i, shard) in shards.iter().enumerate() {
        std::fs::write(dir.join(shard_name(i)), bytes(shard, &[])).unwrap();
    }
    let index = json!({"metadata": {"total_size": 0}, "weight_map": map});
    write_index(dir, &index);
    index
}

pub fn write_index(dir: &Path, index: &Value) {
    std::fs::write(dir.join("model.safetensors.index.json"), index.to_string()).unwrap();
}

pub fn shard_name(i: usize) -> String {
    format!("model-{:05}-of-00002.safetensors", i + 1)
}

/// The message of an error: one line that contains every word given.
#[track_caller]
pub fn says<T: std::fmt::Debug>(
    result: Result<T, scalescope_sim::error::SimError>,
    words: &[&str],
) -> String {
    let message = result.expect_err("an error").to_string();
    assert_eq!(message.lines().count(), 1, "{message}");
    assert!(message.len() < 1000, "{message}");
    for word in words {
        assert!(message.contains(word), "{word:?} is not in: {message}");
    }
    message
}
