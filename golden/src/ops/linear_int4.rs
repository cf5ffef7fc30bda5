//! Cases of the linear operation with four-bit weights: whole products, weights turned to INT8, and
//! sums chosen to hit ties.
//!
//! | key | what it is |
//! |---|---|
//! | `x` | INT8 `[L, I]`; without a weight `[L]`, the sums themselves |
//! | `codes` | INT8 `[I, O]`: 0 to 15 with groups, −8 to 7 without |
//! | `s_group` | f16 `[I/128, O]`; empty without groups |
//! | `s_channel` | f32 `[1, O]` or `[O]` |
//! | `s_act` | f32, the input's scale |
//! | `weight_packed`, `s_group_packed`, `s_channel_packed` | the same in the layout of the kernel's memory |
//! | `w8` | expected: the INT8 weights `[I, O]` |
//! | `out`, `out16` | expected: INT8 or f16 `[L, O]` |
//!
//! Where a packed array is there, it is the input, and the unpacked one an expected output.

use super::Output;
use super::group::Group;
use half::f16;
use ndarray::{Array1, Array2, ArrayD, Axis};
use scalescope_sim::arith::int4::{GROUP, LOWEST};
use scalescope_sim::checkpoint::w4a8;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::Acc;
use scalescope_sim::quant::Scale;

/// A four-bit weight as a case has it. Its scales may be anything: a kernel makes something of each.
#[derive(Clone, Debug, PartialEq)]
pub struct Int4Case {
    /// Codes −8 to 7, `[O, I]`.
    pub codes: Array2<i8>,
    /// `[O, I/128]`; `None` where a code is worth 16 steps.
    pub groups: Option<Array2<f16>>,
}

/// A product with a four-bit weight, or parts of one.
#[derive(Clone, Debug, PartialEq)]
pub struct Int4Linear {
    /// The case's name.
    pub name: String,
    /// The weight; `None` where `x` are the sums.
    pub weight: Option<Int4Case>,
    /// Input codes `[L, I]`, or sums `[L, 1]`; none where only the weight is turned to INT8.
    pub x: Option<Array2<i8>>,
    /// The input's scale.
    pub s_act: Scale,
    /// The outputs' scales; divided by the output's where that is INT8.
    pub channels: Vec<f32>,
    /// Expected outputs by their keys.
    pub expected: Vec<(&'static str, Expected)>,
}

/// An expected output.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)] // each is the type of that name
pub enum Expected {
    I8(ArrayD<i8>),
    F16(ArrayD<f16>),
    F32(ArrayD<f32>),
}

impl Int4Linear {
    /// Whether a case is one of these.
    pub(super) fn is_in(group: &Group) -> bool {
        ["codes", "weight_packed", "s_channel", "s_channel_packed"]
            .into_iter()
            .any(|key| group.has(key))
    }

    pub(super) fn parse(group: &mut Group) -> Result<Self> {
        let mut expected = Vec::new();
        let weight = weight(group, &mut expected)?;
        let channels = channels(group, &mut expected)?;
        let x: Option<Array2<i8>> = match (&weight, group.has("x")) {
            (_, false) => None,
            (Some(_), true) => Some(group.array("x", &["L", "I"])?),
            (None, true) => {
                let sums: Array1<i8> = group.array("x", &["L"])?;
                Some(sums.insert_axis(Axis(1)))
            }
        };
        if x.is_some() && channels.is_empty() {
            return Err(missing(group, "s_channel"));
        }
        if let Some(width) = x
            .as_ref()
            .map(Array2::ncols)
            .filter(|k| *k > Acc::MAX_LENGTH)
        {
            let most = format!("dot products of at most {}", Acc::MAX_LENGTH);
            return Err(SimError::value(group.key("x"), most, width));
        }
        if let Some(w8) = group.optional("w8", &["I", "O"])? {
            expected.push(("w8", Expected::I8(w8)));
        }
        for key in ["out", "out16"] {
            if !group.has(key) {
                continue;
            }
            expected.push((
                key,
                match group.is_f16(key) {
                    true => Expected::F16(group.array(key, &["L", "O"])?),
                    false => Expected::I8(group.array(key, &["L", "O"])?),
                },
            ));
        }
        Ok(Self {
            name: group.name(),
            weight,
            s_act: match x.is_some() {
                true => group.scale("s_act")?,
                false => Scale::new(1.0)?,
            },
            x,
            channels,
            expected,
        })
    }

    pub(super) fn expected(&self) -> Vec<Output<'_>> {
        let outputs = self.expected.iter().map(|(key, expected)| {
            const ROW_MAJOR: &str = "arrays of files are row-major";
            let (elements, shape) = match expected {
                Expected::I8(a) => (a.as_slice().expect(ROW_MAJOR).into(), a.shape()),
                Expected::F16(a) => (a.as_slice().expect(ROW_MAJOR).into(), a.shape()),
                Expected::F32(a) => (a.as_slice().expect(ROW_MAJOR).into(), a.shape()),
            };
            Output {
                key,
                elements,
                shape,
            }
        });
        outputs.collect()
    }
}

fn missing(group: &Group, key: &str) -> SimError {
    SimError::value(group.key(key), "an array", "no such key")
}

fn weight(
    group: &mut Group,
    expected: &mut Vec<(&'static str, Expected)>,
) -> Result<Option<Int4Case>> {
    if !group.has("weight_packed") && !group.has("codes") {
        return Ok(None);
    }
    let unpacked: Option<Array2<i8>> = group.optional("codes", &["I", "O"])?;
    let codes = match group.has("weight_packed") {
        true => {
            let words: Array2<i32> = group.array("weight_packed", &["I/16", "2·O"])?;
            let codes = w4a8::unpack(words.view());
            let codes = codes.map_err(|e| group.of_key("weight_packed", e))?;
            if let Some(unpacked) = unpacked {
                expected.push(("codes", Expected::I8(unpacked.into_dyn())));
            }
            codes
        }
        false => {
            let unpacked = unpacked.ok_or_else(|| missing(group, "codes"))?;
            let inputs = unpacked.nrows();
            let (offset, range) = match inputs > GROUP {
                true => (LOWEST, 0..=15),
                false => (0, LOWEST..=7),
            };
            if !inputs.is_multiple_of(GROUP) {
                let expected = format!("a multiple of {GROUP} inputs");
                return Err(SimError::value(group.key("codes"), expected, inputs));
            }
            if let Some(code) = unpacked.iter().find(|code| !range.contains(code)) {
                let expected = format!("codes {} to {}", range.start(), range.end());
                return Err(SimError::value(group.key("codes"), expected, code));
            }
            let codes = unpacked.mapv(|code| code + offset);
            codes.reversed_axes().as_standard_layout().into_owned()
        }
    };
    let (outputs, inputs) = codes.dim();
    group.expect_axis("I", inputs, "codes")?;
    group.expect_axis("O", outputs, "codes")?;
    group.expect_axis("I/128", inputs / GROUP, "codes")?;
    let groups = match inputs > GROUP {
        false => {
            // Empty arrays say that there are none.
            for key in ["s_group", "s_group_packed"] {
                group.take_empty(key)?;
            }
            None
        }
        true => {
            let unpacked: Option<Array2<f16>> = group.optional("s_group", &["I/128", "O"])?;
            let groups = match group.has("s_group_packed") {
                true => {
                    let packed: Array2<f16> = group.array("s_group_packed", &["I/128", "O"])?;
                    if let Some(unpacked) = unpacked {
                        expected.push(("s_group", Expected::F16(unpacked.into_dyn())));
                    }
                    w4a8::in_order(packed.view(), w4a8::group_order(outputs))
                }
                false => unpacked.ok_or_else(|| missing(group, "s_group"))?,
            };
            Some(groups.reversed_axes().as_standard_layout().into_owned())
        }
    };
    Ok(Some(Int4Case { codes, groups }))
}

fn channels(group: &mut Group, expected: &mut Vec<(&'static str, Expected)>) -> Result<Vec<f32>> {
    let row = |group: &mut Group, key: &str| -> Result<Option<ArrayD<f32>>> {
        match group.axes_of(key) {
            None => Ok(None),
            Some(1) => group.optional(key, &["O"]),
            Some(_) => group.optional(key, &["one", "O"]),
        }
    };
    let unpacked = row(group, "s_channel")?;
    let Some(packed) = row(group, "s_channel_packed")? else {
        return Ok(unpacked.map_or(Vec::new(), |row| row.into_iter().collect()));
    };
    if let Some(unpacked) = unpacked {
        expected.push(("s_channel", Expected::F32(unpacked)));
    }
    let packed = Array1::from_iter(packed);
    let order = w4a8::channel_order(w4a8::OUTPUTS);
    if !packed.len().is_multiple_of(w4a8::OUTPUTS) {
        let expected = format!("a multiple of {} outputs", w4a8::OUTPUTS);
        return Err(SimError::value(
            group.key("s_channel_packed"),
            expected,
            packed.len(),
        ));
    }
    let packed = packed.insert_axis(Axis(0));
    Ok(w4a8::in_order(packed.view(), order).into_iter().collect())
}
