//! Linear weights in four bits, as a model stores them.

use super::Scale;
use crate::arith::int4::{Dequantize, GROUP, LOWEST, table_without_groups};
use crate::error::{Result, SimError};
use crate::kernels::matmul_i8::Nibbles;
use half::f16;
use ndarray::{Array2, ArrayView2};
use std::borrow::Cow;
use std::ops::Range;
use std::sync::OnceLock;

/// A weight `[out, in]` of four-bit codes. Groups of 128 codes in a row have a scale each, in steps of
/// the row's: `real ≈ rne(code · s_group) · s_channel`. Rows of 128 codes have no groups, a code is
/// then worth 16 steps.
#[derive(Clone, Debug, PartialEq)]
pub struct Int4Tensor {
    /// `[out, in/2]`. Byte 64·g + j of a row holds two codes, each plus 8: code 128·g + j in its low
    /// half, code 128·g + 64 + j in its high one.
    pub nibbles: Array2<u8>,
    /// `[out, in/128]`, finite; `None` for rows without groups.
    pub groups: Option<Array2<f16>>,
    /// The scale of each row.
    pub channels: Vec<Scale>,
}

impl Int4Tensor {
    /// A weight of codes −8 to 7, `[out, in]`.
    ///
    /// # Errors
    ///
    /// Rows that are not whole groups; as many scales as it takes, not there; group scales that are
    /// missing where a row has more than 128 codes, there where it has not, or not finite.
    pub fn new(
        codes: ArrayView2<i8>,
        groups: Option<Array2<f16>>,
        channels: Vec<Scale>,
    ) -> Result<Self> {
        check_columns(codes.ncols())?;
        let nibbles = Array2::from_shape_fn((codes.nrows(), codes.ncols() / 2), |(r, byte)| {
            let (low, high) = columns_of(byte);
            let nibble = |column| (codes[(r, column)] - LOWEST) as u8 & 15;
            nibble(low) | nibble(high) << 4
        });
        Self::of_nibbles(nibbles, groups, channels)
    }

    /// A weight whose codes are packed as [`Int4Tensor::nibbles`] says.
    ///
    /// # Errors
    ///
    /// Those of [`Int4Tensor::new`].
    pub fn of_nibbles(
        nibbles: Array2<u8>,
        groups: Option<Array2<f16>>,
        channels: Vec<Scale>,
    ) -> Result<Self> {
        let (rows, columns) = (nibbles.nrows(), 2 * nibbles.ncols());
        check_columns(columns)?;
        if channels.len() != rows {
            let expected = format!("{rows}, one for each output");
            return Err(SimError::value("channel scales", expected, channels.len()));
        }
        let expected = (columns > GROUP).then_some((rows, columns / GROUP));
        let found = groups.as_ref().map(Array2::dim);
        if found != expected {
            let words = |dim: Option<(usize, usize)>| match dim {
                Some((rows, groups)) => format!("[{rows}, {groups}]"),
                None => "none".to_owned(),
            };
            return Err(SimError::value(
                "group scales",
                words(expected),
                words(found),
            ));
        }
        if let Some(groups) = &groups
            && let Some(((row, group), scale)) =
                groups.indexed_iter().find(|(_, scale)| !scale.is_finite())
        {
            return Err(SimError::value(
                format_args!("scale of group {group} of output {row}"),
                "a finite number",
                format_args!("{scale}, of which the kernel makes weights of 127 and -128"),
            ));
        }
        Ok(Self {
            nibbles,
            groups,
            channels,
        })
    }

    /// Outputs and inputs.
    pub fn dim(&self) -> (usize, usize) {
        (self.nibbles.nrows(), 2 * self.nibbles.ncols())
    }

    /// Bits of codes and scales.
    pub fn bits(&self) -> usize {
        let groups = self.groups.as_ref().map_or(0, |groups| groups.len());
        8 * self.nibbles.len() + 32 * self.channels.len() + 16 * groups
    }

    /// Codes −8 to 7, `[out, in]`.
    pub fn codes(&self) -> Array2<i8> {
        let mut codes = Array2::zeros(self.dim());
        for ((r, byte), pair) in self.nibbles.indexed_iter() {
            let (low, high) = columns_of(byte);
            codes[(r, low)] = (pair & 15) as i8 + LOWEST;
            codes[(r, high)] = (pair >> 4) as i8 + LOWEST;
        }
        codes
    }

    /// Weights that are not `rne(code · s_group)` in INT8: a rule saturates or wraps them.
    pub fn overflows(&self, rule: Dequantize) -> u64 {
        let Some(groups) = &self.groups else {
            return 0;
        };
        let groups = groups.as_slice().expect("weights are row-major");
        let bytes = self.nibbles.as_slice().expect("weights are row-major");
        let of_group = |(scale, bytes): (&f16, &[u8; GROUP / 2])| {
            let over: [bool; 16] =
                std::array::from_fn(|i| rule.overflows(i as i8 + LOWEST, *scale));
            if over == [false; 16] {
                return 0;
            }
            let nibbles = bytes.iter().flat_map(|pair| [pair & 15, pair >> 4]);
            nibbles.filter(|n| over[usize::from(*n)]).count() as u64
        };
        groups.iter().zip(bytes.as_chunks().0).map(of_group).sum()
    }
}

fn check_columns(columns: usize) -> Result<()> {
    match columns > 0 && columns.is_multiple_of(GROUP) {
        true => Ok(()),
        false => Err(SimError::value(
            "four-bit weight",
            format_args!("a multiple of {GROUP} inputs"),
            columns,
        )),
    }
}

/// The columns of the two codes of a byte of a row: the low half's and the high half's.
fn columns_of(byte: usize) -> (usize, usize) {
    let half = GROUP / 2;
    let low = byte / half * GROUP + byte % half;
    (low, low + half)
}

/// Some rows of a four-bit weight as a product reads them.
#[derive(Clone, Debug)]
pub struct Int4Weight<'m> {
    source: Cow<'m, Int4Tensor>,
    rows: Range<usize>,
    rule: Dequantize,
    /// Zeros in the place of groups' scales, `[rows, in/128]`.
    without_groups: Vec<u16>,
    /// All of them in INT8, for those who cannot read codes.
    int8: OnceLock<Array2<i8>>,
}

impl<'m> Int4Weight<'m> {
    /// Rows of a weight under a rule.
    pub fn new(source: Cow<'m, Int4Tensor>, rows: Range<usize>, rule: Dequantize) -> Self {
        let without_groups = match source.groups {
            Some(_) => Vec::new(),
            None => vec![0; rows.len() * source.dim().1 / GROUP],
        };
        Self {
            source,
            rows,
            rule,
            without_groups,
            int8: OnceLock::new(),
        }
    }

    /// Some of its rows.
    pub fn rows(&self, rows: Range<usize>) -> Self {
        let first = self.rows.start;
        let rows = first + rows.start..first + rows.end;
        Self::new(self.source.clone(), rows, self.rule)
    }

    /// The same rows of the weight after a change.
    pub fn altered(&self, change: impl FnOnce(&mut Int4Tensor)) -> Self {
        let mut source = self.source.clone();
        change(source.to_mut());
        Self::new(source, self.rows.clone(), self.rule)
    }

    /// The weight they are rows of.
    pub fn source(&self) -> &Int4Tensor {
        &self.source
    }

    /// How its codes become INT8.
    pub fn rule(&self) -> Dequantize {
        self.rule
    }

    /// Outputs and inputs.
    pub fn dim(&self) -> (usize, usize) {
        (self.rows.len(), self.source.dim().1)
    }

    /// The scale of each row.
    pub fn channels(&self) -> &[Scale] {
        &self.source.channels[self.rows.clone()]
    }

    /// What kernels read.
    pub fn nibbles(&self) -> Nibbles<'_> {
        let bytes = self
            .source
            .nibbles
            .as_slice()
            .expect("weights are row-major");
        let row = self.source.nibbles.ncols();
        let groups = self.dim().1 / GROUP;
        let (tables, table_of) = match &self.source.groups {
            Some(scales) => {
                let scales = scales.as_slice().expect("scales are row-major");
                let scales = &scales[self.rows.start * groups..self.rows.end * groups];
                (self.rule.tables(), bytemuck::cast_slice(scales))
            }
            None => (&table_without_groups()[..], &self.without_groups[..]),
        };
        Nibbles {
            bytes: &bytes[self.rows.start * row..self.rows.end * row],
            tables,
            table_of,
            groups,
        }
    }

    /// The INT8 weights, `[rows, in]`.
    pub fn int8(&self) -> ArrayView2<'_, i8> {
        let codes = self.int8.get_or_init(|| {
            let mut codes = Array2::zeros(self.dim());
            let all = codes.as_slice_mut().expect("fresh arrays are row-major");
            self.nibbles().expand(0..self.rows.len(), all);
            codes
        });
        codes.view()
    }
}
