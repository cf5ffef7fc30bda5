//! Weights and embeddings of four bits in Quamba's files.

use super::*;

/// Rows of two groups of 128 and more.
const SHAPE: Shape = Shape {
    name: "four bits",
    n_layers: 1,
    d_model: 256,
    vocab_size: 1024,
};

/// A model of one block whose rows are two groups of 128 and more, in four bits with its ends.
fn four_bits() -> QuantizedModel {
    let float = synthetic::float_model(SHAPE);
    let scales = synthetic::plausible_scales(&float.config);
    let head_input = Scale::new(HEAD_SCALE).unwrap();
    let ends = Ends::Int4 { head_input };
    let mut model = quantize(&float, &scales, &Recipe::QUAMBA, ends).unwrap();
    to_int4(&mut model, &float, &"w4a8".parse().unwrap()).unwrap();
    model
}

/// By the rule of docs/models.md, computed here again; a quantized file keeps them.
#[test]
fn ends_of_four_bits_are_those_of_the_float_model() {
    let model = four_bits();
    let Embedding::Rows(rows) = &model.embedding else {
        panic!("rows")
    };
    let float = synthetic::float_model(SHAPE);
    for (r, row) in float.embedding.rows().into_iter().enumerate() {
        let largest = row.iter().map(|w| w.to_f32()).fold(f32::MIN, f32::max);
        let scale = f16::from_f32(largest / 8.0);
        assert_eq!(rows.scales[r], scale);
        for (w, code) in row.iter().zip(rows.codes.row(r)) {
            let quotient = f16::from_f32(w.to_f32() / scale.to_f32()).to_f32();
            let shifted = f16::from_f32(quotient + 8.0).to_f32();
            let expected = shifted.round_ties_even().clamp(0.0, 15.0) - 8.0;
            assert_eq!(expected, f32::from(*code));
        }
    }
    // The largest of a row is code 8, which there is none of.
    assert!(rows.codes.iter().any(|code| *code == 7) && rows.codes.iter().any(|code| *code == -8));
    // The head is the float model's own in four bits, as in_proj's weight would be.
    let Head::Quantized {
        weight: QWeight::Int4(head),
        ..
    } = &model.head
    else {
        panic!("a head of four bits")
    };
    let widest = head.codes().iter().map(|code| code.abs()).max();
    assert_eq!((head.dim(), widest), ((1024, 256), Some(8)));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("q.safetensors");
    quantized::write(&path, &model).unwrap();
    let Loaded::Quantized(read) = load(&path).unwrap() else {
        panic!("a quantized model")
    };
    assert!(read == model);
}

/// Its folder with other entries.
fn edited_four_bits(edit: impl FnOnce(&mut Entries)) -> TempDir {
    let dir = folder(&four_bits());
    let path = dir.path().join("pytorch_model.bin");
    let mut all = entries(&path);
    edit(&mut all);
    write_to(File::create(&path).unwrap(), "pytorch_model", &all).unwrap();
    dir
}

#[test]
fn four_bit_weights_are_written_and_read() {
    let model = four_bits();
    let dir = folder(&model);
    let keys = lines(dir.path());
    for (name, shape) in [
        ("mixer.in_proj.weight I32", "[16, 2048]"),
        ("mixer.in_proj.s_group F16", "[2, 1024]"),
        ("mixer.in_proj.s_channel F32", "[1, 1024]"),
        ("mixer.in_proj.workspace I32", "[256]"),
        // 48 outputs, filled up.
        ("mixer.x_proj.weight I32", "[32, 128]"),
        ("mixer.x_proj.s_group F16", "[4, 64]"),
        ("mixer.x_proj.s_channel F32", "[1, 64]"),
        ("mixer.out_proj.input_scale F32", "[]"),
        ("lm_head.weight I32", "[16, 2048]"),
        ("embedding.weight I32", "[1024, 32]"),
        ("embedding.scales F16", "[1024]"),
    ] {
        let found = keys
            .iter()
            .any(|line| line.contains(&format!("{name} {shape} ")));
        assert!(found, "{name} {shape}");
    }
    assert!(info(dir.path()).unwrap().kind.contains("W4A8"));
    let (_, notes) = load_with_notes(dir.path()).unwrap();
    assert!(notes.is_empty(), "{notes:?}");
    assert!(loads_as(dir.path(), model.clone()));
    // The same in the other format.
    let file = dir.path().join("q.safetensors");
    quantized::write(&file, &model).unwrap();
    assert!(quantized::read(&file).unwrap() == model);
    // Eight bits beside four.
    let mut mixed = model;
    mixed.head = tiny(int8_ends()).head;
    says(quamba::write(dir.path(), &mixed), &["eight bits", "both"]);
}

#[test]
fn four_bit_weights_that_do_not_fit_are_named() {
    let key = |part: &str| format!("backbone.layers.0.mixer.{part}");
    let edit_halves = |name: &str, at: usize, value: f16| {
        edited_four_bits(|all| match get(all, name) {
            Value::Tensor {
                elements: Elements::F16(values),
                ..
            } => values.to_mut()[at] = value,
            other => panic!("{other:?}"),
        })
    };
    let groups = key("out_proj.s_group");
    for value in [f16::NAN, f16::INFINITY] {
        let dir = edit_halves(&groups, 3, value);
        says(load(dir.path()), &[&groups, "finite"]);
    }
    // Output 63 of 48.
    let groups = key("x_proj.s_group");
    let dir = edit_halves(&groups, 63, f16::ONE);
    says(load(dir.path()), &[&groups, "zeros", "48"]);
    let channels = key("in_proj.s_channel");
    for value in [0.0, f32::NAN, -1.0] {
        let dir = edited_four_bits(|all| match get(all, &channels) {
            Value::Tensor {
                elements: Elements::F32(values),
                ..
            } => values.to_mut()[7] = value,
            other => panic!("{other:?}"),
        });
        says(load(dir.path()), &[&channels, "positive, finite, normal"]);
    }
    let scale = key("in_proj.input_scale");
    let dir = edited_four_bits(|all| put(all, &scale, 0.5));
    says(
        load(dir.path()),
        &[&scale, "as the step before writes", "5e-1"],
    );
    let weight = key("out_proj.weight");
    let dir = edited_four_bits(|all| match get(all, &weight) {
        Value::Tensor { shape, strides, .. } => {
            (*shape, *strides) = (vec![64, 256], vec![256, 1]);
        }
        other => panic!("{other:?}"),
    });
    says(load(dir.path()), &[&weight, "[32, 512]", "[64, 256]"]);
    for part in ["weight", "s_group", "s_channel", "input_scale"] {
        let key = key(&format!("x_proj.{part}"));
        let dir = edited_four_bits(|all| all.retain(|(name, _)| *name != key));
        says(load(dir.path()), &[&key, "no tensor of that name"]);
        assert_eq!(info(dir.path()).unwrap().missing, [key]);
    }
    let key = key("x_proj.workspace");
    let dir = edited_four_bits(|all| all.retain(|(name, _)| *name != key));
    assert!(loads_as(dir.path(), four_bits()));
}

#[test]
fn an_embedding_of_four_bits_has_its_nibbles_in_quambas_order() {
    // Nibble p of a word is element 0, 2, 4, 6, 1, 3, 5, 7, each code plus 8.
    let dir = edited(int8_ends(), |all| {
        let words = Elements::I32(vec![0x7654_3210; 256 * 8].into());
        *get(all, "backbone.embedding.weight") = Value::tensor(&[256, 8], words);
    });
    let Loaded::Quantized(model) = load(dir.path()).unwrap() else {
        panic!("a quantized model")
    };
    let Embedding::Rows(rows) = model.embedding else {
        panic!("rows")
    };
    assert_eq!(
        rows.codes.row(3).to_vec()[..8],
        [-8, -4, -7, -3, -6, -2, -5, -1]
    );
}
