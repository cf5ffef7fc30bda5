//! Shows matrices of the device to a probe; what the probe puts in their place is written back.

use super::matrix::Matrix;
use super::rules::NO_QUANTIZER;
use super::step::convert;
use crate::datapath::{columns, join_columns};
use crate::error::Result;
use crate::trace::{Place, Probe, Tensor};

/// Shows a matrix to the probe if it wants the place; what the probe puts there takes its place.
pub fn show(probe: &mut dyn Probe, place: Place, value: &Matrix) -> Result<()> {
    show_as(probe, place, value, |tensor| tensor)
}

/// [`show`] of a matrix in another layout: `turn` leads there and back.
pub fn show_as(
    probe: &mut dyn Probe,
    place: Place,
    value: &Matrix,
    turn: impl Fn(Tensor) -> Tensor,
) -> Result<()> {
    if !probe.wants(place) {
        return Ok(());
    }
    let before = turn(value.to_tensor()?);
    let shown = crate::trace::show(probe, place, before.clone())?;
    match same_bits(&before, &shown) {
        true => Ok(()),
        false => put(&turn(shown), value),
    }
}

/// [`show`] of two matrices as one, side by side.
pub fn show_both(probe: &mut dyn Probe, place: Place, left: &Matrix, right: &Matrix) -> Result<()> {
    if !probe.wants(place) {
        return Ok(());
    }
    let before = join_columns(&left.to_tensor()?, &right.to_tensor()?);
    let shown = crate::trace::show(probe, place, before.clone())?;
    if same_bits(&before, &shown) {
        return Ok(());
    }
    let border = left.columns;
    put(&columns(&shown, &(0..border)), left)?;
    put(&columns(&shown, &(border..border + right.columns)), right)
}

/// Writes a tensor where a matrix lies.
fn put(tensor: &Tensor, to: &Matrix) -> Result<()> {
    let from = Matrix::of_tensor(to.device(), tensor)?;
    convert::convert(&from, None, to, NO_QUANTIZER)
}

/// Whether nothing was replaced.
fn same_bits(a: &Tensor, b: &Tensor) -> bool {
    match (a, b) {
        (Tensor::I8(a), Tensor::I8(b)) => a.codes == b.codes,
        (Tensor::Codes(a), Tensor::Codes(b)) => a == b,
        (Tensor::F16(a), Tensor::F16(b)) => {
            a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        (Tensor::F32(a), Tensor::F32(b)) => {
            a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits())
        }
        _ => false,
    }
}
