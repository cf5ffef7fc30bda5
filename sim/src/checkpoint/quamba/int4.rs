//! Four-bit linears of Quamba's files, keys `NAME.…`:
//!
//! | key | dtype | shape |
//! |---|---|---|
//! | `weight` | i32, in the layout of [`crate::checkpoint::w4a8`] | `[in/16, 2·out]`, out filled up to a multiple of 64 |
//! | `s_group` | f16, permuted | `[in/128, out]`; empty or missing if in is 128 |
//! | `s_channel` | f32, permuted; divided by the output's scale where that is INT8 | `[1, out]` |
//! | `input_scale` | f32 | `[]` |
//! | `workspace` | of the kernel, not read | |

use crate::arith::int4::GROUP;
use crate::checkpoint::torch::TorchFile;
use crate::checkpoint::torch::write::{Elements, Value};
use crate::checkpoint::w4a8::{self, OUTPUTS};
use crate::error::{Result, SimError};
use crate::quant::{Int4Tensor, Scale};
use half::f16;
use ndarray::{Array1, Array2, ArrayView2, Axis, s};
use std::borrow::Cow;

/// Keys of a four-bit linear.
pub(super) const INT4: [&str; 5] = ["weight", "s_group", "s_channel", "input_scale", "workspace"];
/// What outputs that are filled up have for a channel scale.
const FILLED: f32 = 1e-6;
/// Words of the kernel's workspace for each output, one in so many.
const WORKSPACE: usize = 4;

/// A linear `[out, in]` with INT8 output at `s_out`, or binary16.
///
/// # Errors
///
/// Keys missing, of a wrong shape or type; rows that are not groups of 128; an input scale that is not
/// `s_in`; scales of groups that are not finite; scales of channels that are not positive, finite and
/// normal, or that no f32 divided by `s_out` is; scales that are not zero in what is filled up.
pub(super) fn read(
    file: &TorchFile<'_>,
    name: &str,
    [out, inputs]: [usize; 2],
    s_in: Scale,
    s_out: Option<Scale>,
) -> Result<Int4Tensor> {
    let key = |part: &str| format!("{name}.{part}");
    let refuse = |part: &str, expected: &dyn std::fmt::Display, found: &dyn std::fmt::Display| {
        Err(SimError::file(file.path(), key(part), expected, found))
    };
    if !inputs.is_multiple_of(GROUP) {
        let expected = format_args!("a multiple of {GROUP} inputs");
        return refuse("weight", &expected, &inputs);
    }
    let padded = out.next_multiple_of(OUTPUTS);
    let input_scale = file.number(&key("input_scale"))?;
    if input_scale != s_in.get() {
        let expected = format_args!("{s_in:?}, as the step before writes");
        return refuse("input_scale", &expected, &format_args!("{input_scale:e}"));
    }
    let words = file.tensor(&key("weight"), &[inputs / 16, 2 * padded])?;
    let words = words.matrix(words.integers()?);
    let in_weight = |e: SimError| e.in_file(file.path());
    let codes = w4a8::unpack(words.view()).map_err(in_weight)?;
    let groups = match inputs > GROUP {
        false => None,
        true => {
            let stored = file.tensor(&key("s_group"), &[inputs / GROUP, padded])?;
            let values: Vec<f16> = stored.exact_f16()?;
            let groups = w4a8::in_order(stored.matrix(values).view(), w4a8::group_order(padded));
            if groups
                .slice(s![.., out..])
                .iter()
                .any(|scale| *scale != f16::ZERO)
            {
                let expected = format_args!("zeros for the outputs after {out}");
                return refuse("s_group", &expected, &"other scales");
            }
            Some(rows_of(groups.slice(s![.., ..out])))
        }
    };
    let stored = file.tensor(&key("s_channel"), &[1, padded])?;
    let stored = stored.matrix(stored.scales()?);
    let order = w4a8::channel_order(padded);
    let channels = w4a8::in_order(stored.view(), order)
        .row(0)
        .slice_move(s![..out])
        .to_vec();
    let channels = channels
        .into_iter()
        .enumerate()
        .map(|(output, stored)| match s_out {
            None => Ok(stored),
            Some(s_out) => undivided(stored, s_out).ok_or_else(|| {
                let expected = format!("an f32 divided by the output's scale {s_out:?}");
                let item = format!("{}, output {output}", key("s_channel"));
                SimError::file(file.path(), item, expected, format_args!("{stored:?}"))
            }),
        });
    let codes = codes.slice(s![..out, ..]);
    let tensor = Int4Tensor::new(codes, groups, channels.collect::<Result<_>>()?);
    tensor.map_err(in_weight)
}

/// The scale that `s_out` was divided into: of those that give `stored`, the one that binary16 holds,
/// as Quamba's are, or else the nearest.
fn undivided(stored: Scale, s_out: Scale) -> Option<Scale> {
    let near = stored.get() * s_out.get();
    let half = f32::from(f16::from_f32(near));
    let (up, down) = (near.next_up(), near.next_down());
    let candidates = [half, near, up, down, up.next_up(), down.next_down()];
    let found = candidates
        .into_iter()
        .find(|c| c / s_out.get() == stored.get());
    Scale::new(found?).ok()
}

/// The entries of a linear, as Quamba writes them.
pub(super) fn write<'a>(
    name: &str,
    weight: &Int4Tensor,
    s_in: Scale,
    s_out: Option<Scale>,
) -> Vec<(String, Value<'a>)> {
    let (out, inputs) = weight.dim();
    let padded = out.next_multiple_of(OUTPUTS);
    let key = |part: &str| format!("{name}.{part}");
    let words = w4a8::pack(weight.codes().view());
    let divided = |scale: &Scale| s_out.map_or(scale.get(), |s_out| scale.get() / s_out.get());
    let mut channels: Vec<f32> = weight.channels.iter().map(divided).collect();
    channels.resize(padded, FILLED);
    let channels = Array1::from_vec(channels).insert_axis(Axis(0));
    let channels = w4a8::stored(channels.view(), w4a8::channel_order(padded));
    let (group_shape, groups) = match &weight.groups {
        None => (vec![0], Vec::new()),
        Some(groups) => {
            let mut filled = Array2::from_elem((inputs / GROUP, padded), f16::ZERO);
            filled.slice_mut(s![.., ..out]).assign(&groups.t());
            let stored = w4a8::stored(filled.view(), w4a8::group_order(padded));
            (vec![inputs / GROUP, padded], values(stored))
        }
    };
    let workspace = padded / WORKSPACE;
    let tensor = |shape: &[usize], elements| Value::tensor(shape, elements);
    let i32s = |values: Vec<i32>| Elements::I32(Cow::Owned(values));
    let f32s = |values: Vec<f32>| Elements::F32(Cow::Owned(values));
    vec![
        (
            key("workspace"),
            tensor(&[workspace], i32s(vec![0; workspace])),
        ),
        (
            key("weight"),
            tensor(&[inputs / 16, 2 * padded], i32s(values(words))),
        ),
        (key("input_scale"), tensor(&[], f32s(vec![s_in.get()]))),
        (
            key("s_channel"),
            tensor(&[1, padded], f32s(values(channels))),
        ),
        (
            key("s_group"),
            tensor(&group_shape, Elements::F16(Cow::Owned(groups))),
        ),
    ]
}

/// A matrix with its axes changed, row-major.
fn rows_of<T: Copy>(columns: ArrayView2<T>) -> Array2<T> {
    columns.reversed_axes().as_standard_layout().into_owned()
}

fn values<T: Copy>(matrix: Array2<T>) -> Vec<T> {
    matrix.iter().copied().collect()
}
