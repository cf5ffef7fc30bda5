//! The sample checkpoint against the quantized file that the reference implementation made of it.
//!
//! That file is 9 MB and the sample model reproduces every byte of its tensors, so only a digest of
//! each tensor is kept: `golden/data/trace/quantized.digests`, lines of name, type, shape, sha256.

use safetensors::SafeTensors;
use scalescope_sim::arith::int4::Dequantize;
use scalescope_sim::checkpoint::quantize::{self, FourBits};
use scalescope_sim::checkpoint::{quantized, scales};
use scalescope_sim::dataflow::Step;
use scalescope_sim::model::QuantizedModel;
use scalescope_sim::quant::{Int4Weight, QWeight};
use scalescope_sim::sample;
use sha2::{Digest, Sha256};
use std::borrow::Cow;
use std::collections::BTreeMap;

fn reference() -> BTreeMap<String, String> {
    include_str!("../../golden/data/trace/quantized.digests")
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, rest)| (name.to_owned(), rest.to_owned()))
        .collect()
}

fn digests(file: &[u8]) -> BTreeMap<String, String> {
    let tensors = SafeTensors::deserialize(file).unwrap();
    let line = |view: safetensors::tensor::TensorView<'_>| {
        let digest = Sha256::digest(view.data());
        let hex: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{:?} {:?} {hex}", view.dtype(), view.shape())
    };
    let all = tensors.tensors().into_iter();
    all.map(|(name, view)| (name, line(view))).collect()
}

fn written() -> Vec<u8> {
    let mut bytes = Vec::new();
    quantized::write_to(&mut bytes, &sample::model().quantized.unwrap()).unwrap();
    bytes
}

#[test]
fn the_sample_model_is_the_reference_file_to_the_last_bit() {
    let (want, bytes) = (reference(), written());
    let got = digests(&bytes);
    assert_eq!(want.len(), 315);
    assert!(want.keys().eq(got.keys()));
    for (name, want) in &want {
        assert_eq!(&got[name], want, "{name}");
    }
    // One bit of the last tensor.
    let mut broken = bytes;
    *broken.last_mut().unwrap() ^= 1;
    assert_ne!(digests(&broken), got);
}

#[test]
fn the_file_survives_a_round_trip() {
    let bytes = written();
    let model = quantized::read_bytes("written", &bytes).unwrap();
    assert_eq!(model.layers.len(), 12);
    assert_eq!(model, *sample::model().quantized.unwrap());
    let mut again = Vec::new();
    quantized::write_to(&mut again, &model).unwrap();
    assert!(bytes == again);
}

/// The sample model with four bits wherever its rows are groups of 128: all but in_proj's.
fn in_four_bits() -> QuantizedModel {
    let sample = sample::model();
    let mut model = sample.quantized.as_deref().unwrap().clone();
    let float = sample.float.as_deref().unwrap();
    quantize::to_int4(&mut model, float, &"w4a8:x_proj,out_proj".parse().unwrap()).unwrap();
    model
}

#[test]
fn four_bit_weights_survive_a_round_trip() {
    let model = in_four_bits();
    let mut bytes = Vec::new();
    quantized::write_to(&mut bytes, &model).unwrap();
    assert!(bytes.len() + 400_000 < written().len());
    assert!(quantized::read_bytes("written", &bytes).unwrap() == model);
    // What they are worth is near what they came from.
    let sample = sample::model();
    let float = &sample.float.as_deref().unwrap().layers[3].out_proj;
    let QWeight::Int4(weight) = &model.layers[3].out_proj else {
        panic!("not four bits")
    };
    let int8 = Int4Weight::new(Cow::Borrowed(weight), 0..192, Dequantize::Saturate);
    let (mut error, mut size) = (0.0, 0.0);
    for ((r, k), w) in float.indexed_iter() {
        let real = f64::from(int8.int8()[(r, k)]) * f64::from(weight.channels[r].get());
        error += (real - f64::from(*w)).powi(2);
        size += f64::from(*w).powi(2);
    }
    assert!((0.005..0.02).contains(&(error / size)), "{}", error / size);
    assert_eq!(weight.overflows(Dequantize::WrappingFma), 0);
}

#[test]
fn in_four_bits_rows_are_groups_of_128() {
    let sample = sample::model();
    let mut model = sample.quantized.as_deref().unwrap().clone();
    let float = sample.float.as_deref().unwrap();
    let mut refused = |which: &str| {
        let refused = quantize::to_int4(&mut model, float, &which.parse().unwrap());
        refused.unwrap_err().to_string()
    };
    let line = "layers.0.in_proj.weight in four bits: expected inputs in groups of 128, two or more, found 192 inputs";
    assert_eq!(refused("w4a8"), line);
    let line = "four-bit weights: expected blocks below 12, found 12";
    assert_eq!(refused("w4a8:x_proj@3,out_proj@12"), line);
    for text in [
        "w4",
        "w4a8:",
        "w4a8:dt_proj",
        "w4a8:x_proj@",
        "w4a8:x_proj,",
    ] {
        assert!(text.parse::<FourBits>().is_err(), "{text}");
    }
    let one: FourBits = "w4a8:x_proj@3,out_proj".parse().unwrap();
    assert!(one.has(3, Step::XProj) && !one.has(2, Step::XProj));
    assert!(one.has(0, Step::OutProj) && !one.has(3, Step::InProj));
    assert!(model == *sample.quantized.unwrap());
}

#[test]
fn the_embedded_scales_survive_a_round_trip() {
    // Their values are tensors of the reference file, compared above.
    let embedded = sample::activation_scales();
    assert_eq!(embedded.len(), 12);
    let json = scales::to_json(&embedded);
    assert_eq!(scales::from_json(json.as_bytes()).unwrap(), embedded);
}
