//! What does not fit is named by its key.

use super::*;

#[test]
fn missing_and_surplus_keys_are_named() {
    for key in [
        "norm.output_scale",
        "mixer.in_proj.weight",
        "mixer.x_proj.a",
        "mixer.dt_proj.b",
        "mixer.out_proj.alpha",
        "mixer.conv1d.bias_scale",
        "mixer.selective_scan.C_scale",
        "mixer.selective_scan.A_log",
        "mixer.had.x_H_scale",
    ] {
        let key = format!("{LAYER}{key}");
        let dir = edited(Ends::F16, |all| all.retain(|(name, _)| *name != key));
        says(
            load(dir.path()),
            &["pytorch_model.bin", &key, "no tensor of that name"],
        );
        let info = info(dir.path()).unwrap();
        assert_eq!(info.missing, std::slice::from_ref(&key));
        assert!(info.refusal.unwrap().contains(&key));
    }
    for key in [
        "backbone.embedding.weight",
        "backbone.norm_f.weight",
        "lm_head.weight",
    ] {
        let dir = edited(Ends::F16, |all| all.retain(|(name, _)| name != key));
        says(
            load(dir.path()),
            &["pytorch_model.bin", key, "no tensor of that name"],
        );
    }
    for key in [
        "backbone.embedding.scales",
        "backbone.norm_f.output_scale",
        "lm_head.a",
    ] {
        let dir = edited(int8_ends(), |all| all.retain(|(name, _)| name != key));
        says(
            load(dir.path()),
            &["pytorch_model.bin", key, "no tensor of that name"],
        );
    }
    let more = edited(Ends::F16, |all| rename(all, "layers.1.", "layers.2."));
    says(
        load(more.path()),
        &["layers.2.", "only keys of a W8A8 model of 2 layers"],
    );
    let bias = format!("{LAYER}mixer.in_proj.bias");
    let surplus = edited(Ends::F16, |all| {
        all.push((bias.clone(), Value::Number(0.0)))
    });
    says(load(surplus.path()), &[&bias, "unexpected"]);
}

#[test]
fn wrong_shapes_types_and_padding_are_named() {
    let key = format!("{LAYER}mixer.x_proj.weight");
    // 36 outputs fill 48 columns.
    let dir = edited(Ends::F16, |all| {
        let codes = Elements::I8(vec![1; 128 * 36].into());
        *get(all, &key) = Value::columns([128, 36], codes);
    });
    says(load(dir.path()), &[&key, "[128, 48]", "[128, 36]"]);
    let dir = edited(Ends::F16, |all| {
        let Value::Tensor { elements, .. } = get(all, &key) else {
            panic!("a tensor")
        };
        let Elements::I8(codes) = elements else {
            panic!("codes")
        };
        codes.to_mut()[128 * 36] = 1;
    });
    says(
        load(dir.path()),
        &[&key, "zeros in the columns after 36", "other codes"],
    );
    // Row-major where the kernels want columns: the same shape, so it is read by its strides.
    let dir = edited(Ends::F16, |all| {
        let Value::Tensor {
            strides, elements, ..
        } = get(all, &key)
        else {
            panic!("a tensor")
        };
        let Elements::I8(codes) = &*elements else {
            panic!("codes")
        };
        let turned = (0..128 * 48).map(|at| codes[at % 48 * 128 + at / 48]);
        *elements = Elements::I8(turned.collect::<Vec<i8>>().into());
        *strides = vec![48, 1];
    });
    assert!(loads_as(dir.path(), tiny(Ends::F16)));
    let norm = format!("{LAYER}norm.weight");
    let dir = edited(Ends::F16, |all| {
        *get(all, &norm) = Value::tensor(&[64], Elements::F32(vec![1.0; 64].into()));
    });
    says(load(dir.path()), &[&norm, "F16", "F32"]);
    let dir = edited(Ends::F16, |all| {
        let rows = Elements::F16(vec![f16::ONE; 64 * 250].into());
        *get(all, "backbone.embedding.weight") = Value::tensor(&[250, 64], rows);
    });
    says(
        load(dir.path()),
        &["embedding.weight", "[256, 64]", "[250, 64]"],
    );
}

#[test]
fn scales_that_are_none_or_disagree_are_named() {
    for (key, value) in [
        ("norm.output_scale", 0.0),
        ("mixer.in_proj.b", f32::INFINITY),
        ("mixer.conv1d.weight_scale", f32::NAN),
        ("mixer.selective_scan.dt_scale", -0.1),
        ("mixer.selective_scan.D_scale", 1e-40),
        ("mixer.had.x_H_scale", f32::NAN),
    ] {
        let key = format!("{LAYER}{key}");
        let dir = edited(Ends::F16, |all| put(all, &key, value));
        let message = says(load(dir.path()), &["pytorch_model.bin", &key]);
        assert!(
            message.contains("positive, finite") || message.contains("f32"),
            "{message}"
        );
    }
    for (key, other) in [
        ("mixer.selective_scan.C_scale", "B_scale"),
        ("mixer.selective_scan.u_scale", "conv1d.output_scale"),
        ("mixer.selective_scan.z_scale", "conv1d.input_scale"),
    ] {
        let key = format!("{LAYER}{key}");
        let dir = edited(Ends::F16, |all| put(all, &key, 0.5));
        says(load(dir.path()), &[&key, other, "5e-1"]);
    }
    for part in ["a", "alpha"] {
        let key = format!("{LAYER}mixer.in_proj.{part}");
        let dir = edited(Ends::F16, |all| put(all, &key, 0.5));
        says(
            load(dir.path()),
            &[&key, "scales of its input, output and weight", "5e-1"],
        );
    }
    // No exact f32.
    let key = format!("{LAYER}norm.output_scale");
    let dir = edited(Ends::F16, |all| *get(all, &key) = Value::Number(0.1));
    says(load(dir.path()), &[&key, "exact f32", "0.1"]);
    // An INT8 norm before a binary16 head.
    let key = "backbone.norm_f.output_scale";
    let dir = edited(Ends::F16, |all| all.push((key.into(), Value::Number(0.5))));
    says(load(dir.path()), &[key, "a quantized head", "binary16"]);
}

#[test]
fn other_kinds_are_told_apart_by_their_keys() {
    let kinds: [(&str, &str, &str); 3] = [
        // Then with keys of its own missing, and others too many.
        (".in_proj.alpha", ".in_proj.s_channel", "W4A8"),
        (".in_proj.alpha", ".in_proj.scale", "W4A16"),
        ("dt_proj", "dt", "Mamba-2"),
    ];
    for (from, to, kind) in kinds {
        let dir = edited(Ends::F16, |all| {
            rename(all, from, to);
            if kind == "Mamba-2" {
                all.retain(|(name, _)| !name.contains("x_proj"));
            }
        });
        let name = dir.path().to_str().unwrap();
        let expected = match kind {
            "W4A8" => "only keys of a W4A8 model",
            _ => "W8A8",
        };
        says(load(dir.path()), &[name, expected, kind]);
        says(hf::read(dir.path()), &[name, "a float checkpoint", kind]);
        assert!(info(dir.path()).unwrap().kind.contains(kind));
    }
    // Quantized models are no float checkpoints.
    let dir = folder(&tiny(Ends::F16));
    says(
        hf::read(dir.path()),
        &["a float checkpoint", "W8A8", "quantized already"],
    );
    // A configuration of Mamba-2, whatever the keys.
    let path = dir.path().join("config.json");
    let config = fs::read_to_string(&path).unwrap();
    fs::write(&path, config.replace("W8A8QMamba", "W8A8QMamba2")).unwrap();
    says(
        load(dir.path()),
        &["config.json", "ssm_cfg.layer", "Mamba-2"],
    );
    // A weight file alone.
    let bin = dir.path().join("pytorch_model.bin");
    says(load(&bin), &["pytorch_model.bin", "config.json", "alone"]);
    assert_eq!(info(&bin).unwrap().entries.len(), 37 * 2 + 3);
}

#[test]
fn where_the_configuration_says_otherwise_the_weights_win() {
    let dir = folder(&tiny(Ends::F16));
    let (_, notes) = load_with_notes(dir.path()).unwrap();
    // As Quamba writes it: the norm of the blocks, said of all.
    assert_eq!(notes.len(), 1, "{notes:?}");
    assert!(notes[0].contains("norm_cfg.norm is QRMSNorm, the weights are binary16"));
    let path = dir.path().join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["ssm_cfg"]["layer"] = "W4A8QMamba".into();
    config["embedding_cfg"]["layer"] = "W8O16Embedding".into();
    fs::write(&path, config.to_string()).unwrap();
    let (loaded, notes) = load_with_notes(dir.path()).unwrap();
    let Loaded::Quantized(model) = loaded else {
        panic!("a quantized model")
    };
    let mut weights = tiny(Ends::F16);
    for layer in &mut weights.layers {
        layer.scales = layer.scales.with_max(None);
    }
    assert!(model.layers == weights.layers && model.embedding == weights.embedding);
    assert_eq!(notes.len(), 3, "{notes:?}");
    config["n_layer"] = 3.into();
    fs::write(&path, config.to_string()).unwrap();
    says(
        load(dir.path()),
        &["backbone.layers.2.", "no tensor of that name"],
    );
}

#[test]
fn shapes_the_format_cannot_say_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut model = tiny(Ends::F16);
    model.config.eps = 1e-6;
    says(quamba::write(dir.path(), &model), &["epsilon", "1e-5"]);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}
