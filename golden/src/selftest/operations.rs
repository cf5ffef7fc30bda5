//! Flips in the vectors of operations: expected outputs, and scales.

use super::{Fate, Kind, OPERATIONS, broken, embedded_vectors};
use crate::check_op::scales;
use crate::check_op::{Case, Named, check_op};
use crate::compare::Summary;
use crate::npz::Array;
use scalescope_sim::error::Result;
use scalescope_sim::profile::{Arithmetic, CUDA_FAST};
use scalescope_sim::random::Congruential;

/// Flips of each output of each case.
const FLIPS: usize = 12;

pub(super) fn kinds(random: &mut Congruential) -> Result<Vec<Kind>> {
    let mut values = Kind::new("golden values of operations");
    let mut scales = Kind::new("scales of operations");
    let rules = CUDA_FAST;
    for (op, _) in &OPERATIONS {
        let vectors = embedded_vectors(*op)?;
        let summary = check_op(&vectors, &rules)?;
        if summary.mismatched() > 0 || summary.compared() == 0 || !summary.missing.is_empty() {
            return Err(broken(op.name(), summary));
        }
        for case in &vectors.cases {
            flip_values(case, &rules, random, &mut values)?;
        }
        let size = |case: &&Case| case.expected.iter().map(|(_, a)| a.len()).sum::<usize>();
        let has_scales = |case: &&Case| !scales::bits(&case.inputs).is_empty();
        if let Some(case) = vectors.cases.iter().filter(has_scales).max_by_key(|case| {
            // The largest that is quick: few elements see little of a scale.
            (size(case) < 20_000, size(case))
        }) {
            flip_scales(case, &rules, &mut scales)?;
        }
    }
    Ok(vec![values, scales])
}

/// Flips a bit of an element.
fn flip(array: &mut Array, at: usize, bit: usize) {
    match array {
        Array::I8(a) => a.as_slice_mut().expect("row-major")[at] ^= (1u8 << (bit % 8)) as i8,
        Array::F16(a) => {
            let v = &mut a.as_slice_mut().expect("row-major")[at];
            *v = half::f16::from_bits(v.to_bits() ^ 1 << (bit % 16));
        }
        Array::F32(a) => {
            let v = &mut a.as_slice_mut().expect("row-major")[at];
            *v = f32::from_bits(v.to_bits() ^ 1 << (bit % 32));
        }
        other => unreachable!("outputs are i8, f16 or f32, not {}", other.describe()),
    }
}

fn flip_values(
    case: &Case,
    rules: &Arithmetic,
    random: &mut Congruential,
    kind: &mut Kind,
) -> Result<()> {
    let found = case.compute(rules)?;
    let mut case = case.clone();
    for output in 0..case.expected.len() {
        let count = case.expected[output].1.len();
        for bit in 0..FLIPS {
            let (at, bit) = (random.below(count), bit + random.below(32));
            flip(&mut case.expected[output].1, at, bit);
            let mut summary = Summary::default();
            case.compare(&found, &mut summary)?;
            flip(&mut case.expected[output].1, at, bit);
            let fate = Fate::of(summary.mismatched() == 1, true);
            kind.add(fate, || {
                let key = case.key(&case.expected[output].0);
                format!("{key}[{at}] bit {bit}")
            });
        }
    }
    Ok(())
}

fn flip_scales(case: &Case, rules: &Arithmetic, kind: &mut Kind) -> Result<()> {
    let before = case.compute(rules)?;
    for (name, bits) in scales::bits(&case.inputs) {
        for bit in 0..32 {
            let mut flipped = case.clone();
            let fate = match scales::set_bits(&mut flipped.inputs, name, bits ^ 1 << bit) {
                // Refused as no scale at all.
                Err(_) => Fate::Detected,
                Ok(()) => {
                    let after = flipped.compute(rules)?;
                    let mut summary = Summary::default();
                    flipped.compare(&after, &mut summary)?;
                    Fate::of(summary.mismatched() > 0, !same(&before, &after))
                }
            };
            kind.add(fate, || format!("{} bit {bit}", case.key(name)));
        }
    }
    Ok(())
}

/// Equality of bytes.
fn same(before: &[Named], after: &[Named]) -> bool {
    let bytes = |array: &Array| -> Vec<u32> {
        match array {
            Array::I8(a) => a.iter().map(|v| u32::from(*v as u8)).collect(),
            Array::F16(a) => a.iter().map(|v| u32::from(v.to_bits())).collect(),
            Array::F32(a) => a.iter().map(|v| v.to_bits()).collect(),
            other => unreachable!("outputs are i8, f16 or f32, not {}", other.describe()),
        }
    };
    before.len() == after.len()
        && before
            .iter()
            .zip(after)
            .all(|((a, x), (b, y))| a == b && x.shape() == y.shape() && bytes(x) == bytes(y))
}
