//! Four-bit weights as words: code k of a row is bits 4·(k mod 8) and up of its word k/8, two's
//! complement.

use ndarray::Array2;

/// Codes of a word.
const CODES: usize = 8;

/// Words `[out, in/8]` of codes −8 to 7, `[out, in]`.
pub(super) fn pack(codes: &Array2<i8>) -> Array2<u32> {
    let (rows, columns) = codes.dim();
    Array2::from_shape_fn((rows, columns / CODES), |(r, word)| {
        (0..CODES).fold(0, |bits, i| {
            let nibble = u32::from(codes[(r, CODES * word + i)] as u8 & 15);
            bits | nibble << (4 * i)
        })
    })
}

/// The codes of words.
pub(super) fn unpack(words: &Array2<u32>) -> Array2<i8> {
    let (rows, columns) = words.dim();
    Array2::from_shape_fn((rows, columns * CODES), |(r, k)| {
        let nibble = words[(r, k / CODES)] >> (4 * (k % CODES)) & 15;
        (nibble as i8) << 4 >> 4
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_hold_codes_in_twos_complement() {
        let codes = Array2::from_shape_fn((3, 16), |(r, k)| ((5 * r + 3 * k) % 16) as i8 - 8);
        assert_eq!(unpack(&pack(&codes)), codes);
        let words = pack(&Array2::from_shape_fn((1, 8), |(_, k)| k as i8 - 4));
        assert_eq!(words[(0, 0)], 0x3210_fedc);
    }
}
