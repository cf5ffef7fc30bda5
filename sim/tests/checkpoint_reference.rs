//! The sample checkpoint against the quantized file that the reference implementation made of it.
//!
//! That file is 9 MB and the sample model reproduces every byte of its tensors, so only a digest of
//! each tensor is kept: `golden/data/trace/quantized.digests`, lines of name, type, shape, sha256.

use safetensors::SafeTensors;
use scalescope_sim::checkpoint::{quantized, scales};
use scalescope_sim::sample;
use sha2::{Digest, Sha256};
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
    let mut got = digests(&bytes);
    let all = got.clone();
    // One scale a block is scalescope's own.
    got.retain(|name, _| !name.ends_with("scales.x_proj_input_max"));
    assert_eq!(all.len() - got.len(), 12);
    assert_eq!(want.len(), 315);
    assert!(want.keys().eq(got.keys()));
    for (name, want) in &want {
        assert_eq!(&got[name], want, "{name}");
    }
    // One bit of the last tensor.
    let mut broken = bytes;
    *broken.last_mut().unwrap() ^= 1;
    assert_ne!(digests(&broken), all);
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

#[test]
fn the_embedded_scales_survive_a_round_trip() {
    // Their values are tensors of the reference file, compared above.
    let embedded = sample::activation_scales();
    assert_eq!(embedded.len(), 12);
    let json = scales::to_json(&embedded);
    assert_eq!(scales::from_json(json.as_bytes()).unwrap(), embedded);
}
