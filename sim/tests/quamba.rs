//! Quamba's folders: that quantizing gives its bits and writing its layout, that reading gives both back,
//! and what is refused in which words.
//!
//! `data/quamba-w8a8.keys` lists what Quamba's own conversion made of the sample model with the sample
//! scales: key, type, shape, strides and SHA-256 of the storage, or the bits of a Python float.
//! `data/quamba-w8a8-ends.keys` has the keys outside blocks of the same with quantized ends.

mod four_bits;
mod refusals;

use crate::checkpoint_files::{says, write_dir};
use half::f16;
use scalescope_sim::checkpoint::fold::fold;
use scalescope_sim::checkpoint::info::info;
use scalescope_sim::checkpoint::load::{Loaded, load, load_with_notes};
use scalescope_sim::checkpoint::quantize::{Ends, quantize, to_int4};
use scalescope_sim::checkpoint::recipe::Recipe;
use scalescope_sim::checkpoint::synthetic::{self, Shape};
use scalescope_sim::checkpoint::tensor::Dtype;
use scalescope_sim::checkpoint::torch::write::{Elements, Value, write_to};
use scalescope_sim::checkpoint::torch::{Found, TorchFile};
use scalescope_sim::checkpoint::{hf, quamba, quantized, scales};
use scalescope_sim::datapath::{Datapath, LogitRows};
use scalescope_sim::mode::ModeTable;
use scalescope_sim::model::{Checkpoint, Embedding, Head, Model, QuantizedModel};
use scalescope_sim::profile::Profile;
use scalescope_sim::quant::{QWeight, Scale};
use scalescope_sim::sample;
use scalescope_sim::trace::{Place, Recorder, Selection, Tensor, TracePoint};
use serde_json::json;
use sha2::{Digest, Sha256};
use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;

const HEAD_SCALE: f32 = 0.0473;

/// The sample model as Quamba quantizes it.
fn sample_as_quamba(ends: Ends) -> QuantizedModel {
    let float = fold(sample::float_checkpoint(), &Recipe::QUAMBA).unwrap();
    quantize(&float, &sample::activation_scales(), &Recipe::QUAMBA, ends).unwrap()
}

fn int8_ends() -> Ends {
    let head_input = Scale::new(HEAD_SCALE).unwrap();
    Ends::Int8 { head_input }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line for each key, as the lists have it.
fn lines(dir: &Path) -> Vec<String> {
    let file = TorchFile::open(&dir.join("pytorch_model.bin")).unwrap();
    let line = |(name, found): (&str, &Found)| match found {
        Found::Number(value) => format!("{name} {}", hex(&value.to_le_bytes())),
        Found::Tensor(view) => {
            let tensor = file.any_tensor(name).unwrap();
            // Matrices stored by columns: the storage is the rows of the transposed.
            let tensor = match (view.shape(), view.strides()) {
                ([rows, _], [1, stride]) if stride == rows && *rows > 1 => tensor.transposed(),
                _ => tensor,
            };
            let digest = hex(&Sha256::digest(tensor.bytes()));
            let (shape, strides) = (view.shape(), view.strides());
            format!("{name} {} {shape:?} {strides:?} {digest}", view.dtype())
        }
        other => panic!("{name}: {other:?}"),
    };
    file.entries().map(line).collect()
}

fn folder(model: &QuantizedModel) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    quamba::write(dir.path(), model).unwrap();
    dir
}

#[test]
fn quantizing_gives_every_bit_of_quambas_own_files() {
    let model = sample_as_quamba(Ends::F16);
    let dir = folder(&model);
    let (written, listed) = (lines(dir.path()), include_str!("data/quamba-w8a8.keys"));
    assert_eq!(listed.lines().count(), 447);
    for (written, listed) in written.iter().zip(listed.lines()) {
        assert_eq!(written, listed);
    }
    assert_eq!(written.len(), 447);
    assert!(loads_as(dir.path(), model));
    // Scales of a folder alone.
    let seven = sample::activation_scales().into_iter();
    let seven: Vec<_> = seven.map(|scales| scales.with_max(None)).collect();
    assert_eq!(scales::read(dir.path()).unwrap().layers, seven);

    // The other recipe gives other bits, in these tensors and no more.
    let golden = folder(&sample::model().quantized.unwrap());
    let other = lines(golden.path());
    let differ = |key: &str| {
        let pairs = written.iter().zip(&other).filter(|(a, b)| a != b);
        pairs.filter(|(a, _)| a.contains(key)).count()
    };
    assert_eq!(
        differ(""),
        differ("A_") + differ(".D") + differ("_proj.weight") + 2
    );
    assert_eq!(differ(".A_log"), 12);
}

#[test]
fn quantized_ends_are_quambas_too() {
    let model = sample_as_quamba(int8_ends());
    let dir = folder(&model);
    let all = lines(dir.path());
    assert_eq!(all.len(), 452);
    let ends: Vec<String> = all.into_iter().filter(|l| !l.contains("layers.")).collect();
    let listed: Vec<&str> = include_str!("data/quamba-w8a8-ends.keys").lines().collect();
    assert_eq!(listed.len(), 8);
    assert_eq!(ends, listed);
    let (loaded, notes) = load_with_notes(dir.path()).unwrap();
    assert!(
        loaded.config().same_shape(&model.config) && notes.is_empty(),
        "{notes:?}"
    );
    assert!(loads_as(dir.path(), model.clone()));

    // The same in the other format.
    let file = dir.path().join("q.safetensors");
    quantized::write(&file, &model).unwrap();
    assert!(quantized::read(&file).unwrap() == model);
}

/// The tiny model, quantized, with ends of a kind.
fn tiny(ends: Ends) -> QuantizedModel {
    let shape = Shape::named("tiny").unwrap();
    let float = synthetic::float_model(shape);
    let scales = synthetic::plausible_scales(&float.config);
    quantize(&float, &scales, &Recipe::QUAMBA, ends).unwrap()
}

type Entries = Vec<(String, Value<'static>)>;

/// Everything a file holds, to be written again.
fn entries(path: &Path) -> Entries {
    let file = TorchFile::open(path).unwrap();
    let copy = |(name, found): (&str, &Found)| {
        let Found::Tensor(view) = found else {
            let Found::Number(value) = found else {
                panic!("{name}: {found:?}")
            };
            return (name.to_owned(), Value::Number(*value));
        };
        let by_columns = matches!(view.strides(), [1, stride] if *stride > 1);
        let tensor = file.any_tensor(name).unwrap();
        let tensor = if by_columns {
            tensor.transposed()
        } else {
            tensor
        };
        let elements = match view.dtype() {
            Dtype::F16 => Elements::F16(tensor.exact_f16().unwrap().into()),
            Dtype::F32 => Elements::F32(tensor.to_f32().unwrap().into()),
            Dtype::I8 => Elements::I8(tensor.codes().unwrap().into()),
            _ => Elements::I32(tensor.integers().unwrap().into()),
        };
        let (shape, strides) = (view.shape().to_vec(), view.strides().to_vec());
        let value = Value::Tensor {
            shape,
            strides,
            elements,
        };
        (name.to_owned(), value)
    };
    file.entries().map(copy).collect()
}

/// The tiny model's folder with other entries.
fn edited(ends: Ends, edit: impl FnOnce(&mut Entries)) -> TempDir {
    let dir = folder(&tiny(ends));
    let path = dir.path().join("pytorch_model.bin");
    let mut all = entries(&path);
    edit(&mut all);
    write_to(File::create(&path).unwrap(), "pytorch_model", &all).unwrap();
    dir
}

fn get<'a>(all: &'a mut Entries, name: &str) -> &'a mut Value<'static> {
    let found = all.iter_mut().find(|(key, _)| key == name);
    &mut found.unwrap_or_else(|| panic!("no {name}")).1
}

fn rename(all: &mut Entries, from: &str, to: &str) {
    for (name, _) in all {
        *name = name.replace(from, to);
    }
}

/// Puts a number into a tensor of one element, or in place of a Python float.
fn put(all: &mut Entries, name: &str, value: f32) {
    match get(all, name) {
        Value::Number(number) => *number = value.into(),
        Value::Tensor { elements, .. } => *elements = Elements::F32(vec![value].into()),
    }
}

/// Whether a folder holds a model; its configuration is written in its own way.
fn loads_as(dir: &Path, mut model: QuantizedModel) -> bool {
    let loaded = load(dir).unwrap();
    assert!(loaded.config().same_shape(&model.config));
    model.config.json = loaded.config().json.clone();
    // Quamba's folders have seven scales a block.
    for layer in &mut model.layers {
        layer.scales = layer.scales.with_max(None);
    }
    loaded == Loaded::Quantized(model)
}

const LAYER: &str = "backbone.layers.1.";

#[test]
fn unchanged_entries_are_the_same_model() {
    for ends in [Ends::F16, int8_ends()] {
        let dir = edited(ends, |_| {});
        assert!(loads_as(dir.path(), tiny(ends)));
    }
}

/// The folder of `mamba_ssm`: other names in the configuration, A_log and D in f32, a head beside the
/// embedding.
#[test]
fn a_folder_of_mamba_ssm_is_the_same_float_model() {
    let shape = Shape::named("tiny").unwrap();
    let mut model = synthetic::float_model(shape);
    model.rotated = false;
    model.layers[0].a_log[[3, 5]] = 0.1;
    model.layers[1].d[7] = 0.3;
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"d_model": 64, "n_layer": 2, "vocab_size": 253, "ssm_cfg": {},
        "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
        "pad_vocab_size_multiple": 8, "tie_embeddings": true});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let halves = |values: &[f16]| Elements::F16(values.to_vec().into());
    let matrix = |m: &ndarray::Array2<f16>| Value::tensor(m.shape(), halves(m.as_slice().unwrap()));
    let vector = |v: &[f16]| Value::tensor(&[v.len()], halves(v));
    let mut all: Entries = vec![
        ("backbone.embedding.weight".into(), matrix(&model.embedding)),
        ("backbone.norm_f.weight".into(), vector(&model.norm_f)),
        ("lm_head.weight".into(), matrix(&model.head)),
    ];
    for (i, l) in model.layers.iter().enumerate() {
        let name = |key: &str| format!("backbone.layers.{i}.{key}");
        let conv = halves(l.conv_weight.as_slice().unwrap());
        let a_log = Elements::F32(l.a_log.as_slice().unwrap().to_vec().into());
        all.extend([
            (name("norm.weight"), vector(&l.norm)),
            (name("mixer.in_proj.weight"), matrix(&l.in_proj)),
            (
                name("mixer.conv1d.weight"),
                Value::tensor(&[128, 1, 4], conv),
            ),
            (name("mixer.conv1d.bias"), vector(&l.conv_bias)),
            (name("mixer.x_proj.weight"), matrix(&l.x_proj)),
            (name("mixer.dt_proj.weight"), matrix(&l.dt_proj)),
            (name("mixer.dt_proj.bias"), vector(&l.dt_bias)),
            (name("mixer.A_log"), Value::tensor(&[128, 16], a_log)),
            (
                name("mixer.D"),
                Value::tensor(&[128], Elements::F32(l.d.clone().into())),
            ),
            (name("mixer.out_proj.weight"), matrix(&l.out_proj)),
        ]);
    }
    let path = dir.path().join("pytorch_model.bin");
    write_to(File::create(&path).unwrap(), "pytorch_model", &all).unwrap();
    model.config.json = config;
    assert!(hf::read(dir.path()).unwrap() == model);
    let Loaded::Float(Checkpoint::F16(read)) = load(dir.path()).unwrap() else {
        panic!("a float checkpoint in f16, whose A_log and D are not counted")
    };
    assert!(read == model);
    assert_eq!(
        info(dir.path()).unwrap().kind,
        "float checkpoint of Mamba-1"
    );

    // The same weights under the names of transformers, A_log and D narrowed.
    let other = tempfile::tempdir().unwrap();
    let tensors = crate::checkpoint_files::hf_tensors(&model);
    write_dir(other.path(), &shape.config().json, &tensors);
    let narrow = hf::read(other.path()).unwrap();
    assert!(narrow.config.same_shape(&model.config));
    assert_eq!(
        narrow.layers[0].a_log[[3, 5]],
        f32::from(f16::from_f32(0.1))
    );
    assert!(narrow.embedding == model.embedding);
}

/// The ends of a model with an INT8 head, step by step from their definition: no code of the steps.
#[test]
fn int8_ends_run_by_their_definition_in_both_phases() {
    let quantized = tiny(int8_ends());
    let (m, eps) = (quantized.config.d_model, quantized.config.eps);
    let (
        Embedding::Rows(rows),
        Head::Quantized {
            input,
            weight: QWeight::Int8(weight),
        },
    ) = (&quantized.embedding, &quantized.head)
    else {
        panic!("INT8 ends")
    };
    let model = Model {
        quantized: Some(Arc::new(quantized.clone())),
        ..Model::default()
    };
    let table = ModeTable::default();
    let tokens = [3, 250, 7, 7, 100];
    let mut different_orders = 0;
    for profile in ["exact", "deployed"] {
        let profile = Profile::get(profile).unwrap();
        for mode in ["0", "2-1", "3"] {
            let path = Datapath::new(&model, table.get(mode).unwrap(), &profile).unwrap();
            let mut prefill = Recorder::new(Selection::default());
            let (_, mut state) = path
                .prefill(&tokens[..4], LogitRows::All, &mut prefill)
                .unwrap();
            let mut batched = vec![state.clone(); 2];
            let mut decode = Recorder::new(Selection::default());
            let logits = path.decode(tokens[4], &mut state, &mut decode).unwrap();
            for (seen, ids, one_row) in [
                (&prefill, &tokens[..4], false),
                (&decode, &tokens[4..], true),
            ] {
                let at = |place| &seen.tensors[&place];
                let Tensor::F16(hidden) = at(Place::layer(0, TracePoint::HiddenIn)) else {
                    panic!("f16")
                };
                let value = |(t, c)| {
                    let token = ids[t] as usize;
                    let code = f64::from(rows.codes[(token, c)]);
                    f16::from_f64(code * f64::from(rows.scales[token]))
                };
                assert!(hidden.indexed_iter().all(|(at, v)| value(at) == *v));
                let Tensor::F32(residual) = at(Place::end(TracePoint::FinalResidual)) else {
                    panic!("f32")
                };
                let Tensor::I8(normed) = at(Place::end(TracePoint::NormFOut)) else {
                    panic!("codes")
                };
                assert_eq!(normed.scale, *input);
                let Tensor::F16(out) = at(Place::end(TracePoint::Logits)) else {
                    panic!("f16")
                };
                assert!(seen.counts.contains_key(&Place::end(TracePoint::NormFOut)));
                for t in 0..ids.len() {
                    let squares: f64 = residual.row(t).iter().map(|r| f64::from(*r).powi(2)).sum();
                    let rstd = (1.0 / (squares / m as f64 + f64::from(eps)).sqrt()) as f32;
                    for c in 0..m {
                        let y = residual[(t, c)] * rstd / input.get();
                        let code = y.round_ties_even().clamp(-128.0, 127.0) as i8;
                        assert_eq!(normed.codes[(t, c)], code, "{mode} [{t}, {c}]");
                    }
                    for (v, w) in weight.codes.rows().into_iter().enumerate() {
                        let products = normed.codes.row(t).into_iter().zip(w);
                        let sum: i32 = products.map(|(x, w)| i32::from(*x) * i32::from(*w)).sum();
                        let (a, b, sum) = (input.get(), weight.scale.get(), sum as f32);
                        let by_phase = [a * (b * sum), (b * a) * sum];
                        different_orders += usize::from(by_phase[0] != by_phase[1]);
                        let want = by_phase[usize::from(one_row)];
                        let got = out[(t, v)];
                        assert_eq!(
                            got,
                            f16::from_f32(want),
                            "{} {mode} [{t}, {v}]",
                            profile.name
                        );
                    }
                }
            }
            // Several sequences at once get the bits of one.
            let both = path.decode_batch(&[tokens[4]; 2], &mut batched).unwrap();
            assert_eq!(both.rows_from(1), logits);
            assert_eq!(batched[0], state);
        }
    }
    assert!(different_orders > 100, "the orders are told apart");
}

#[test]
fn the_head_and_the_embedding_say_what_they_are() {
    let model = tiny(int8_ends());
    let Head::Quantized { input, weight } = &model.head else {
        panic!("an INT8 head")
    };
    assert_eq!((input.get(), weight.dim()), (HEAD_SCALE, (256, 64)));
}

/// A checkpoint of 2.8 billion parameters, 5.5 GB in binary16, of one block's weights again and again: opened in
/// no more memory than its weights and a tenth, and in no more than twice the time of reading the file
/// into memory.
#[test]
#[ignore = "not run: writes 5.5 GB into the temporary folder, and is about time; \
            cargo test --release -p scalescope-sim --test all large -- --ignored --nocapture"]
#[cfg(target_os = "linux")]
fn a_large_file_is_opened_in_the_memory_of_its_weights() {
    use std::time::Instant;
    let (v, m, n) = (50_280, 2560, 64);
    let (e, r) = (2 * m, m / 16);
    let dir = tempfile::tempdir().unwrap();
    let config = json!({"d_model": m, "n_layer": n, "vocab_size": 50277, "ssm_cfg": {},
        "rms_norm": true, "residual_in_fp32": true, "fused_add_norm": true,
        "pad_vocab_size_multiple": 8, "tie_embeddings": true});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let path = dir.path().join("pytorch_model.bin");
    {
        let halves: Vec<f16> = (0..v * m)
            .map(|i| f16::from_bits((i % 15_000) as u16))
            .collect();
        let f16s = |shape: &[usize]| {
            let count = shape.iter().product();
            Value::tensor(shape, Elements::F16((&halves[..count]).into()))
        };
        let reals = vec![0.5f32; e * 16];
        let f32s = |shape: &[usize]| {
            let count = shape.iter().product();
            Value::tensor(shape, Elements::F32((&reals[..count]).into()))
        };
        let mut all = vec![
            ("backbone.embedding.weight".to_owned(), f16s(&[v, m])),
            ("backbone.norm_f.weight".to_owned(), f16s(&[m])),
        ];
        for i in 0..n {
            let name = |key: &str| format!("backbone.layers.{i}.{key}");
            all.extend([
                (name("norm.weight"), f16s(&[m])),
                (name("mixer.in_proj.weight"), f16s(&[2 * e, m])),
                (name("mixer.conv1d.weight"), f16s(&[e, 1, 4])),
                (name("mixer.conv1d.bias"), f16s(&[e])),
                (name("mixer.x_proj.weight"), f16s(&[r + 32, e])),
                (name("mixer.dt_proj.weight"), f16s(&[e, r])),
                (name("mixer.dt_proj.bias"), f16s(&[e])),
                (name("mixer.A_log"), f32s(&[e, 16])),
                (name("mixer.D"), f32s(&[e])),
                (name("mixer.out_proj.weight"), f16s(&[m, e])),
            ]);
        }
        write_to(File::create(&path).unwrap(), "pytorch_model", &all).unwrap();
    }
    // In turns, since a machine gives a program new memory at a speed that varies by several times. Reading
    // is into memory, as it has to be where weights are to stay.
    let mut times = Vec::new();
    for _ in 0..5 {
        let started = Instant::now();
        let bytes = fs::read(&path).unwrap();
        let reading = started.elapsed();
        drop(bytes);
        let started = Instant::now();
        let model = hf::read_exact(dir.path()).unwrap();
        let opening = started.elapsed();
        drop(model);
        println!("read in {reading:?}, opened in {opening:?}");
        times.push(opening.as_secs_f64() / reading.as_secs_f64());
    }
    times.sort_by(f64::total_cmp);

    fs::write("/proc/self/clear_refs", "5").unwrap();
    let peak = || -> f64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status
            .lines()
            .find_map(|l| l.strip_prefix("VmHWM:"))
            .unwrap();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() * 1024.0
    };
    let before = peak();
    let Checkpoint::F16(model) = hf::read_exact(dir.path()).unwrap() else {
        panic!("binary16")
    };
    let most = peak() - before;
    // The head is a copy of the embedding, as in the model that runs.
    let weights = fs::metadata(&path).unwrap().len() as f64 + (2 * v * m) as f64;
    let share = most / weights;
    println!("{most:.3e} bytes, {share:.3} of the weights; opening over reading {times:.2?}");
    assert_eq!(model.layers.len(), n);
    assert!(share < 1.1, "{share}");
    assert!(times[times.len() / 2] < 2.0, "{times:?}");
}
