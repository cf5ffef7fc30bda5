//! Hugging Face directories: every layout that is read, every refusal and its line.

use crate::checkpoint_files::*;
use half::{bf16, f16};
use safetensors::tensor::Dtype;
use scalescope_sim::checkpoint::load::{Loaded, load};
use scalescope_sim::checkpoint::synthetic::{self, Shape};
use scalescope_sim::checkpoint::{hf, quantized};
use scalescope_sim::model::{Checkpoint, FloatModel};
use serde_json::{Value, json};
use tempfile::TempDir;

const LAYER1: &str = "backbone.layers.1.mixer.in_proj.weight";

fn tiny() -> FloatModel {
    FloatModel {
        rotated: false,
        ..synthetic::float_model(Shape::named("tiny").unwrap())
    }
}

/// A directory of the tiny model, after `edit`.
fn dir(edit: impl FnOnce(&mut Value, &mut Tensors)) -> TempDir {
    let model = tiny();
    let (mut config, mut tensors) = (model.config.json.clone(), hf_tensors(&model));
    edit(&mut config, &mut tensors);
    let dir = tempfile::tempdir().unwrap();
    write_dir(dir.path(), &config, &tensors);
    dir
}

fn edited(edit: impl FnOnce(&mut Tensors)) -> Result<FloatModel, scalescope_sim::error::SimError> {
    hf::read(dir(|_, tensors| edit(tensors)).path())
}

#[test]
fn a_directory_is_read_and_recognised() {
    let dir = dir(|_, _| {});
    assert!(hf::read(dir.path()).unwrap() == tiny());
    assert!(load(dir.path()).unwrap() == Loaded::Float(Checkpoint::F16(tiny())));
}

#[test]
fn shards_are_read_as_one() {
    let dir = tempfile::tempdir().unwrap();
    let model = tiny();
    write_shards(dir.path(), &model.config.json, &hf_tensors(&model), LAYER1);
    assert!(hf::read(dir.path()).unwrap() == model);
}

#[test]
fn original_names_and_separate_heads_are_read() {
    let mut want = tiny();
    let head: Vec<f16> = want.head.iter().map(|v| -*v).collect();
    want.head.as_slice_mut().unwrap().copy_from_slice(&head);
    want.config.json["tie_word_embeddings"] = false.into();
    let dir = dir(|config, tensors| {
        config["tie_word_embeddings"] = false.into();
        let embedding = tensors.remove("backbone.embeddings.weight").unwrap();
        tensors.insert("lm_head.weight".into(), Raw::f16(&embedding.shape, &head));
        tensors.insert("backbone.embedding.weight".into(), embedding);
    });
    assert!(hf::read(dir.path()).unwrap() == want);
}

/// A base model that was saved by itself, whole and in shards; a name of neither kind is refused still.
#[test]
fn a_base_model_has_no_prefix() {
    let bare = |tensors: &mut Tensors| {
        let names: Vec<String> = tensors.keys().cloned().collect();
        for name in names {
            let tensor = tensors.remove(&name).unwrap();
            tensors.insert(name.trim_start_matches("backbone.").to_owned(), tensor);
        }
    };
    assert!(edited(bare).unwrap() == tiny());
    let model = tiny();
    let (folder, mut tensors) = (tempfile::tempdir().unwrap(), hf_tensors(&model));
    bare(&mut tensors);
    let moved = LAYER1.trim_start_matches("backbone.");
    write_shards(folder.path(), &model.config.json, &tensors, moved);
    assert!(hf::read(folder.path()).unwrap() == model);
    let mixed = edited(|tensors| {
        bare(tensors);
        let norm = tensors.remove("norm_f.weight").unwrap();
        tensors.insert("backbone.norm_f.weight".into(), norm);
    });
    says(mixed, &["unexpected tensor"]);
    says(
        edited(|tensors| {
            bare(tensors);
            tensors.remove("norm_f.weight");
        }),
        &[": norm_f.weight: expected", "no tensor of that name"],
    );
}

/// A configuration is the same in every encoding, whatever Python wrote into keys that are not read; and
/// it is written out again as it was.
#[test]
fn a_configuration_is_read_as_python_wrote_it() {
    let folder = dir(|_, _| {});
    let path = folder.path().join("config.json");
    let plain = std::fs::read_to_string(&path).unwrap();
    let with = plain.replacen(
        '{',
        "{\"time_step_limit\": [0.0, Infinity], \"score\": NaN,",
        1,
    );
    let utf16 = |text: &str| -> Vec<u8> {
        let units = text.encode_utf16();
        [0xfeff]
            .into_iter()
            .chain(units)
            .flat_map(u16::to_le_bytes)
            .collect()
    };
    for bytes in [
        format!("\u{feff}{plain}").into_bytes(),
        utf16(&plain),
        plain.replace('\n', "\r\n").into_bytes(),
    ] {
        std::fs::write(&path, bytes).unwrap();
        assert!(hf::read(folder.path()).unwrap() == tiny());
    }
    std::fs::write(&path, &with).unwrap();
    let read = hf::read(folder.path()).unwrap();
    assert_eq!(read.layers, tiny().layers);
    let again = scalescope_sim::text::python_json(&read.config.json);
    assert!(
        again.contains("\"time_step_limit\":[0.0,Infinity],\"score\":NaN"),
        "{again}"
    );
    // A field that is read is refused by what it has.
    let key = "layer_norm_epsilon";
    assert!(plain.contains(key));
    let mut json: Value = serde_json::from_str(&plain).unwrap();
    json[key] = "EPS".into();
    std::fs::write(&path, json.to_string().replace("\"EPS\"", "NaN")).unwrap();
    says(hf::read(folder.path()), &[key, "expected a number", "NaN"]);
}

#[test]
fn a_tied_head_may_be_stored_twice_but_not_differ() {
    let copy = |t: &mut Tensors| {
        let head = t["backbone.embeddings.weight"].clone();
        t.insert("lm_head.weight".into(), head);
    };
    assert!(edited(copy).unwrap() == tiny());
    let differs = |t: &mut Tensors| {
        copy(t);
        t.get_mut("lm_head.weight").unwrap().data[1] ^= 0x80;
    };
    says(edited(differs), &["lm_head.weight", "tie_word_embeddings"]);
}

#[test]
fn f32_and_bf16_become_f16_by_nearest_even() {
    let dir = dir(|_, tensors| {
        for raw in tensors.values_mut() {
            // Half an f16 step up, a tie, where nothing overflows.
            let values: Vec<f32> = raw.values().iter().map(|v| f32::from(*v)).collect();
            *raw = Raw::f32(&raw.shape, &values);
        }
        // A_log and D stay as they are, in FP32.
        let d = tensors.get_mut("backbone.layers.0.mixer.D").unwrap();
        *d = Raw::f32(&d.shape, &vec![1.0 + 2f32.powi(-20); d.shape[0]]);
        let bias = "backbone.layers.0.mixer.dt_proj.bias";
        let bias = tensors.get_mut(bias).unwrap();
        let mut values = vec![1.0f32; bias.shape[0]];
        values[0] = 1.0 + 2f32.powi(-11); // a tie, to even: 1
        values[1] = 1.0 + 3.0 * 2f32.powi(-11); // a tie, to even: 1 + 2^-9
        values[2] = 2f32.powi(-24); // the least subnormal
        values[3] = 65519.0; // just below the overflow
        *bias = Raw::f32(&bias.shape, &values);
        let norm = tensors.get_mut("backbone.norm_f.weight").unwrap();
        let value = bf16::from_f32(0.7).to_le_bytes();
        norm.dtype = Dtype::BF16;
        norm.data = value.repeat(norm.shape[0]);
    });
    let mut want = tiny();
    want.layers[0].d.fill(1.0 + 2f32.powi(-20));
    let bias = &mut want.layers[0].dt_bias;
    bias.fill(f16::ONE);
    bias[1] = f16::from_f32(1.0 + 2f32.powi(-9));
    bias[2] = f16::from_bits(1);
    bias[3] = f16::MAX;
    want.norm_f.fill(f16::from_f32(bf16::from_f32(0.7).into()));
    assert!(hf::read(dir.path()).unwrap() == want);
    // As it is, nothing is rounded.
    let exact = hf::read_exact(dir.path()).unwrap();
    let Checkpoint::F32(wide) = &exact else {
        panic!("an f32 checkpoint")
    };
    let bias = &wide.layers[0].dt_bias;
    assert_eq!(
        bias[..2],
        [1.0 + 2f32.powi(-11), 1.0 + 3.0 * 2f32.powi(-11)]
    );
    assert_eq!(bias[3], 65519.0);
    assert_eq!(wide.norm_f[5], f32::from(bf16::from_f32(0.7)));
    assert!(exact.into_f16().unwrap() == want);
}

#[test]
fn weights_beyond_binary16_are_read_as_they_are_and_named_when_narrowed() {
    let dir = dir(|_, tensors| {
        let raw = tensors.get_mut(LAYER1).unwrap();
        let mut values: Vec<f32> = raw.values().iter().map(|v| f32::from(*v)).collect();
        values[7] = 7e4;
        *raw = Raw::f32(&raw.shape, &values);
    });
    says(
        hf::read(dir.path()),
        &["model.safetensors", LAYER1, "binary16", "70000"],
    );
    let exact = hf::read_exact(dir.path()).unwrap();
    says(
        exact.into_f16(),
        &["layers.1.in_proj.weight, element 7", "binary16", "70000"],
    );
}

#[test]
fn without_conv_bias_it_is_zero() {
    let dir = dir(|config, tensors| {
        config["use_conv_bias"] = false.into();
        tensors.retain(|name, _| !name.ends_with("conv1d.bias"));
    });
    let model = hf::read(dir.path()).unwrap();
    assert!(
        model
            .layers
            .iter()
            .all(|l| l.conv_bias == vec![f16::ZERO; 128])
    );
}

#[test]
fn every_missing_tensor_is_named() {
    for name in hf_tensors(&tiny()).into_keys() {
        let words = ["model.safetensors", name.as_str(), "no tensor of that name"];
        says(edited(|t| drop(t.remove(&name))), &words);
    }
    let untied = dir(|config, _| config["tie_word_embeddings"] = false.into());
    says(hf::read(untied.path()), &["lm_head.weight", "no tensor"]);
}

#[test]
fn every_wrong_shape_is_named() {
    for name in hf_tensors(&tiny()).into_keys() {
        let result = edited(|t| {
            let raw = t.get_mut(&name).unwrap();
            raw.shape.insert(0, 1);
        });
        says(result, &[&name, "shape [", "found [1, "]);
    }
    // As many values, the other way round.
    let transposed = edited(|t| t.get_mut(LAYER1).unwrap().shape.reverse());
    says(transposed, &[LAYER1, "[256, 64]", "[64, 256]"]);
}

#[test]
fn wrong_types_are_named() {
    let result = edited(|t| {
        let raw = t.get_mut(LAYER1).unwrap();
        raw.dtype = Dtype::I16;
    });
    says(result, &[LAYER1, "F16, BF16 or F32", "I16"]);
}

#[test]
fn values_that_are_not_finite_are_placed() {
    for (value, found) in [(f16::NAN, "NaN"), (f16::NEG_INFINITY, "-inf")] {
        let result = edited(|t| {
            let at = 2 * (3 * 64 + 17);
            t.get_mut(LAYER1).unwrap().data[at..at + 2].copy_from_slice(&value.to_le_bytes());
        });
        let item = format!("{LAYER1}[3, 17]");
        says(result, &["model.safetensors", &item, "finite", found]);
    }
    for value in [65520.0, 1e30] {
        let result = edited(|t| {
            let raw = t.get_mut("backbone.norm_f.weight").unwrap();
            let mut values = vec![1.0; 64];
            values[63] = value;
            *raw = Raw::f32(&raw.shape, &values);
        });
        says(result, &["backbone.norm_f.weight[63]", "binary16"]);
    }
}

#[test]
fn tensors_that_would_be_ignored_are_refused() {
    for name in [
        "backbone.layers.0.mixer.in_proj.bias",
        "backbone.layers.2.mixer.D",
        "two\nlines",
    ] {
        let result = edited(|t| {
            t.insert(name.into(), Raw::f16(&[1], &[f16::ONE]));
        });
        let shown = name.replace('\n', "\\n");
        says(result, &[&shown, "unexpected"]);
    }
    let few = dir(|config, _| config["num_hidden_layers"] = 1.into());
    says(hf::read(few.path()), &["backbone.layers.1.", "1 layers"]);
}

#[test]
fn configurations_are_checked() {
    let bias = dir(|config, _| config["use_bias"] = true.into());
    says(
        hf::read(bias.path()),
        &["config.json", "use_bias", "false", "true"],
    );
    let other = dir(|config, _| config["model_type"] = "mamba2".into());
    says(
        hf::read(other.path()),
        &["config.json", "model_type", "mamba2"],
    );

    let broken = dir(|_, _| {});
    let path = broken.path().join("config.json");
    for text in ["", "{", "[]", "{\"model_type\": \"mamba\"}", "\u{0}"] {
        std::fs::write(&path, text).unwrap();
        says(hf::read(broken.path()), &["config.json"]);
    }
    std::fs::write(&path, "[".repeat(1 << 20)).unwrap();
    says(hf::read(broken.path()), &["config.json", "JSON"]);
    std::fs::write(&path, " ".repeat((16 << 20) + 1)).unwrap();
    says(hf::read(broken.path()), &["config.json", "at most"]);
    std::fs::remove_file(&path).unwrap();
    says(hf::read(broken.path()), &["config.json"]);
}

#[test]
fn shards_stay_inside_the_directory() {
    let model = tiny();
    let outer = tempfile::tempdir().unwrap();
    let dir = outer.path().join("model");
    std::fs::create_dir(&dir).unwrap();
    let index = write_shards(&dir, &model.config.json, &hf_tensors(&model), LAYER1);
    // The file is there, so only the name can be what is refused.
    std::fs::copy(
        dir.join(shard_name(1)),
        outer.path().join("out.safetensors"),
    )
    .unwrap();
    let absolute = outer.path().join("out.safetensors");
    for name in [
        "../out.safetensors",
        absolute.to_str().unwrap(),
        "./../out.safetensors",
        "sub/x.safetensors",
        "model-00002-of-00002.safetensors/",
        "..",
        ".",
        "",
    ] {
        let mut index = index.clone();
        index["weight_map"][LAYER1] = name.into();
        write_index(&dir, &index);
        let words = ["index.json", LAYER1, "same directory", name];
        says(hf::read(&dir), &words);
    }
    let mut index = index.clone();
    index["weight_map"][LAYER1] = "a\nb\u{0}".into();
    write_index(&dir, &index);
    says(hf::read(&dir), &["index.json", LAYER1, "a\\nb"]);
}

#[test]
fn indices_are_checked() {
    let model = tiny();
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path();
    let index = write_shards(dir, &model.config.json, &hf_tensors(&model), LAYER1);
    let with = |edit: &dyn Fn(&mut Value)| {
        let mut index = index.clone();
        edit(&mut index);
        write_index(dir, &index);
        hf::read(dir)
    };
    says(
        with(&|i| i["weight_map"][LAYER1] = "none.safetensors".into()),
        &["none.safetensors"],
    );
    says(
        with(&|i| i["weight_map"][LAYER1] = shard_name(0).into()),
        &[&shard_name(0), LAYER1],
    );
    let missing = with(&|i| {
        i["weight_map"].as_object_mut().unwrap().remove(LAYER1);
    });
    says(missing, &["index.json", LAYER1, "no tensor"]);
    says(
        with(&|i| i["weight_map"] = 7.into()),
        &["index.json", "weight_map"],
    );
    says(with(&|i| *i = json!({})), &["index.json", "weight_map"]);
}

#[test]
fn other_paths_are_refused_by_kind() {
    let dir = dir(|_, _| {});
    let at = |name: &str| dir.path().join(name);
    says(load(&at("nothing")), &["nothing"]);
    says(
        load(&at("config.json")),
        &["config.json", "quantized .safetensors file"],
    );
    says(
        load(&at("model.safetensors")),
        &["model.safetensors", "directory"],
    );
    std::fs::write(at("empty.safetensors"), "").unwrap();
    says(
        load(&at("empty.safetensors")),
        &["empty.safetensors", "an empty file"],
    );
    std::fs::remove_file(at("model.safetensors")).unwrap();
    says(
        hf::read(dir.path()),
        &["model.safetensors.index.json", "none of these"],
    );
    std::fs::create_dir(at("model.safetensors")).unwrap();
    says(hf::read(dir.path()), &["model.safetensors", "a directory"]);
    says(quantized::read(dir.path()), &["a directory"]);
}
