//! The layout of four-bit weights in Quamba's files and in the memory of its kernels.
//!
//! | array | dtype | shape |
//! |---|---|---|
//! | `weight` | i32, eight codes a word | `[in/16, 2·out]`, `out` a multiple of 64 |
//! | `s_group`, where a row has more than 128 codes | f16 | `[in/128, out]` |
//! | `s_channel` | f32 | `[1, out]` |
//!
//! Codes of groups are stored plus 8, codes of rows without groups in two's complement.

use crate::arith::int4::{GROUP, LOWEST};
use crate::error::{Result, SimError};
use ndarray::{Array2, ArrayView2};

/// A tile: so many inputs by so many outputs.
const TILE: (usize, usize) = (16, 64);
/// Words of a tile.
const WORDS: usize = TILE.0 * TILE.1 / 8;
/// Outputs whose channel scales are permuted among themselves.
const CHANNELS: usize = 32;

/// Packed outputs are filled up to a multiple of this.
pub const OUTPUTS: usize = TILE.1;

/// Which of the eight codes that a word takes lies at each of its positions, lowest bits first.
fn word_order(grouped: bool) -> [usize; 8] {
    match grouped {
        true => [0, 2, 4, 6, 1, 3, 5, 7],
        false => [4, 0, 5, 1, 6, 2, 7, 3],
    }
}

/// Where the codes of a tile lie in it, for words in an order: the input and the output of nibble
/// 8·word + position.
fn places(order: [usize; 8]) -> [(usize, usize); 8 * WORDS] {
    std::array::from_fn(|nibble| {
        // The list runs over i, j, b and k; a word takes eight of it in the order above.
        let at = nibble / 8 * 8 + order[nibble % 8];
        let (i, j, b, k) = (at / 32, at / 8 % 4, at / 4 % 2, at % 4);
        (4 * (i % 4) + k, i / 4 + 8 * b + 16 * j)
    })
}

/// Codes −8 to 7, `[out, in]`, from words `[in/16, 2·out]`.
///
/// # Errors
///
/// A shape that no weight is packed to.
pub fn unpack(words: ArrayView2<i32>) -> Result<Array2<i8>> {
    let (rows, columns) = words.dim();
    if rows == 0 || columns == 0 || columns % WORDS != 0 || rows % (GROUP / TILE.0) != 0 {
        return Err(SimError::value(
            "packed four-bit weight",
            "[in/16, 2·out], in a multiple of 128 and out of 64",
            format_args!("[{rows}, {columns}]"),
        ));
    }
    Ok(unpack_in(word_order(rows * TILE.0 > GROUP), words))
}

/// What comes of a weight's codes `[out, in]` when the codes of a packed word are taken as they lie, not in
/// the order that they are packed in: a reader's defect.
pub fn misread_words(codes: ArrayView2<i8>) -> Array2<i8> {
    let taken = unpack_in(std::array::from_fn(|i| i), pack(codes).view());
    taken.slice_move(ndarray::s![..codes.nrows(), ..])
}

/// Codes from packed words of a right shape, whose codes lie in an order.
fn unpack_in(order: [usize; 8], words: ArrayView2<i32>) -> Array2<i8> {
    let (rows, columns) = words.dim();
    let (inputs, outputs) = (rows * TILE.0, columns / 2);
    let grouped = inputs > GROUP;
    let places = places(order);
    let mut codes = Array2::zeros((outputs, inputs));
    for ((row, column), word) in words.indexed_iter() {
        let (first, tile) = (row * TILE.0, column / WORDS);
        for position in 0..8 {
            let nibble = (word >> (4 * position)) as u8 & 15;
            let code = match grouped {
                true => nibble as i8 + LOWEST,
                false => (nibble << 4) as i8 >> 4,
            };
            let (k, n) = places[8 * (column % WORDS) + position];
            codes[(tile * TILE.1 + n, first + k)] = code;
        }
    }
    codes
}

/// Words `[in/16, 2·out]` from codes −8 to 7, `[out, in]`; `out` is filled up to whole tiles by words
/// of zero bits, as Quamba does.
pub fn pack(codes: ArrayView2<i8>) -> Array2<i32> {
    let (outputs, inputs) = codes.dim();
    let grouped = inputs > GROUP;
    let places = places(word_order(grouped));
    let columns = outputs.next_multiple_of(TILE.1) * 2;
    Array2::from_shape_fn((inputs / TILE.0, columns), |(row, column)| {
        (0..8).fold(0u32, |word, position| {
            let (k, n) = places[8 * (column % WORDS) + position];
            let at = (column / WORDS * TILE.1 + n, row * TILE.0 + k);
            let nibble = codes.get(at).map_or(0, |code| match grouped {
                true => (code - LOWEST) as u8,
                false => *code as u8 & 15,
            });
            word | u32::from(nibble) << (4 * position)
        }) as i32
    })
}

/// The output that lies at each place of a row of group scales.
pub fn group_order(outputs: usize) -> impl Fn(usize) -> usize {
    assert!(outputs.is_multiple_of(TILE.1));
    |place| {
        let p = place % TILE.1;
        place - p + p / 8 + 8 * (p % 8)
    }
}

/// The output that lies at each place of the row of channel scales.
pub fn channel_order(outputs: usize) -> impl Fn(usize) -> usize {
    assert!(outputs.is_multiple_of(CHANNELS));
    |place| {
        let p = place % CHANNELS;
        place - p + 2 * (p / 8) + [0, 1, 8, 9, 16, 17, 24, 25][p % 8]
    }
}

/// Scales as outputs have them from scales as they are stored, row by row.
pub fn in_order<T: Copy>(stored: ArrayView2<T>, order: impl Fn(usize) -> usize) -> Array2<T> {
    let mut scales = stored.to_owned();
    for ((row, place), scale) in stored.indexed_iter() {
        scales[(row, order(place))] = *scale;
    }
    scales
}

/// Scales as they are stored from scales as outputs have them, row by row.
pub fn stored<T: Copy>(scales: ArrayView2<T>, order: impl Fn(usize) -> usize) -> Array2<T> {
    Array2::from_shape_fn(scales.dim(), |(row, place)| scales[(row, order(place))])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_packed_comes_back() {
        for (outputs, inputs) in [(64, 128), (128, 256), (56, 384), (1, 128)] {
            let codes = Array2::from_shape_fn((outputs, inputs), |(n, k)| {
                ((n * 7 + k * 3 + n * k) % 16) as i8 + LOWEST
            });
            let words = pack(codes.view());
            let filled = outputs.next_multiple_of(64);
            assert_eq!(words.dim(), (inputs / 16, 2 * filled));
            let back = unpack(words.view()).unwrap();
            assert_eq!(back.dim(), (filled, inputs));
            assert_eq!(back.slice(ndarray::s![..outputs, ..]), codes);
            let fill = if inputs > GROUP { LOWEST } else { 0 };
            assert!((back.slice(ndarray::s![outputs.., ..]).iter()).all(|code| *code == fill));
        }
        for dim in [(0, 128), (8, 0), (7, 128), (8, 100)] {
            assert!(unpack(Array2::zeros(dim).view()).is_err(), "{dim:?}");
        }
    }

    #[test]
    fn orders_are_permutations_and_go_both_ways() {
        let row = Array2::from_shape_fn((2, 128), |(r, c)| 1000 * r + c);
        let turned = stored(row.view(), group_order(128));
        assert_eq!(
            turned.row(0).to_vec()[..9],
            [0, 8, 16, 24, 32, 40, 48, 56, 1]
        );
        assert_eq!(in_order(turned.view(), group_order(128)), row);
        let turned = stored(row.view(), channel_order(128));
        assert_eq!(turned.row(0).to_vec()[..9], [0, 1, 8, 9, 16, 17, 24, 25, 2]);
        assert_eq!(in_order(turned.view(), channel_order(128)), row);
    }
}
