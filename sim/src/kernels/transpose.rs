//! 16 × 16 words turned in registers, for packing: rows of a weight become lanes.

use std::arch::x86_64::*;

/// Turns 16 vectors of 16 words: lane j of result i is lane i of vector j.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn transpose_16x16(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Pairs of rows, then quadruples, inside each 128-bit lane …
    let mut pairs = rows;
    for i in 0..8 {
        pairs[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        pairs[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    // fours[4q + c]: column c of each 128-bit lane, rows 4q to 4q+3.
    let mut fours = pairs;
    for q in 0..4 {
        for half in 0..2 {
            let (a, b) = (pairs[4 * q + half], pairs[4 * q + 2 + half]);
            fours[4 * q + 2 * half] = _mm512_unpacklo_epi64(a, b);
            fours[4 * q + 2 * half + 1] = _mm512_unpackhi_epi64(a, b);
        }
    }
    // … then the 128-bit lanes themselves, a 4 × 4 of them for each c.
    let mut out = fours;
    for c in 0..4 {
        let [a, b, x, y] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let (ab_even, ab_odd) = (
            _mm512_shuffle_i32x4::<0b10_00_10_00>(a, b),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(a, b),
        );
        let (xy_even, xy_odd) = (
            _mm512_shuffle_i32x4::<0b10_00_10_00>(x, y),
            _mm512_shuffle_i32x4::<0b11_01_11_01>(x, y),
        );
        out[c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_even, xy_even);
        out[8 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_even, xy_even);
        out[4 + c] = _mm512_shuffle_i32x4::<0b10_00_10_00>(ab_odd, xy_odd);
        out[12 + c] = _mm512_shuffle_i32x4::<0b11_01_11_01>(ab_odd, xy_odd);
    }
    out
}

/// Words of 64 codes, from column `from` on, of up to 16 rows of `k` codes: word j of all rows side by side.
/// Codes and rows that are missing are zero.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
pub(crate) fn words_of_rows(rows: &[i8], k: usize, from: usize) -> [__m512i; 16] {
    match from + 64 <= k && rows.len() == 16 * k {
        true => turn_full(rows, k, from),
        false => transpose_16x16(rows_to_words(rows, k, from)),
    }
}

/// 64 codes from column `from` on of each of up to 16 rows of `k` codes, four to a word; codes and
/// rows that are missing are zero.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn rows_to_words(rows: &[i8], k: usize, from: usize) -> [__m512i; 16] {
    let mut words = [_mm512_setzero_si512(); 16];
    if from >= k {
        return words;
    }
    let present = (k - from).min(64);
    let mask = u64::MAX >> (64 - present);
    for (words, row) in words.iter_mut().zip(rows.chunks_exact(k)) {
        let codes = row[from..][..present].as_ptr();
        // SAFETY: the mask keeps the load inside those codes.
        *words = unsafe { _mm512_maskz_loadu_epi8(mask, codes) };
    }
    words
}

/// The transpose where nothing is missing.
#[target_feature(enable = "avx512f")]
#[inline]
fn turn_full(rows: &[i8], k: usize, from: usize) -> [__m512i; 16] {
    assert!(from + 64 <= k && rows.len() == 16 * k);
    let mut out = [_mm512_setzero_si512(); 16];
    for (c, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
        *out = turned_quarters(|row| {
            // SAFETY: 16 codes of a row that is there, by the assertion.
            unsafe { _mm_loadu_si128(rows.as_ptr().add(row * k + from + 16 * c).cast()) }
        });
    }
    out
}

/// Four words of each of 16 rows turned while loading: lane i of result j is word j of row i. Vectors are put
/// together from four rows, and only the words inside 128 bits are left to turn: half the shuffles, which one port
/// of the core does.
#[target_feature(enable = "avx512f")]
#[inline]
pub(crate) fn turned_quarters(quarter: impl Fn(usize) -> __m128i) -> [__m512i; 4] {
    // Row r of each four rows, one four in each 128 bits.
    let of_fours = |r: usize| {
        let v = _mm512_castsi128_si512(quarter(r));
        let v = _mm512_inserti32x4::<1>(v, quarter(4 + r));
        let v = _mm512_inserti32x4::<2>(v, quarter(8 + r));
        _mm512_inserti32x4::<3>(v, quarter(12 + r))
    };
    let [a, b, x, y] = [0, 1, 2, 3].map(of_fours);
    let (ab_low, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    let (xy_low, xy_high) = (_mm512_unpacklo_epi32(x, y), _mm512_unpackhi_epi32(x, y));
    [
        _mm512_unpacklo_epi64(ab_low, xy_low),
        _mm512_unpackhi_epi64(ab_low, xy_low),
        _mm512_unpacklo_epi64(ab_high, xy_high),
        _mm512_unpackhi_epi64(ab_high, xy_high),
    ]
}

/// `[16, N]` to `[N, 16]`, for N a multiple of 16.
///
/// # Safety
///
/// The machine has [`crate::isa::Isa::Avx512`].
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn to_lanes(rows: &[f32], lanes: &mut [[f32; 16]]) {
    let n = lanes.len();
    assert!(n.is_multiple_of(16) && rows.len() == 16 * n);
    for (block, lanes) in lanes.chunks_exact_mut(16).enumerate() {
        let mut words = [_mm512_setzero_si512(); 16];
        for (row, words) in words.iter_mut().enumerate() {
            let from = rows[row * n + 16 * block..][..16].as_ptr();
            // SAFETY: 16 words.
            *words = unsafe { _mm512_loadu_si512(from.cast()) };
        }
        for (to, words) in lanes.iter_mut().zip(transpose_16x16(words)) {
            // SAFETY: 16 words.
            unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), words) };
        }
    }
}

/// `[N, 16]` to `[16, N]`, for N a multiple of 16.
///
/// # Safety
///
/// The machine has [`crate::isa::Isa::Avx512`].
#[target_feature(enable = "avx512f")]
pub(crate) unsafe fn from_lanes(lanes: &[[f32; 16]], rows: &mut [f32]) {
    let n = lanes.len();
    assert!(n.is_multiple_of(16) && rows.len() == 16 * n);
    for (block, lanes) in lanes.chunks_exact(16).enumerate() {
        let mut words = [_mm512_setzero_si512(); 16];
        for (words, lane) in words.iter_mut().zip(lanes) {
            // SAFETY: 16 words.
            *words = unsafe { _mm512_loadu_si512(lane.as_ptr().cast()) };
        }
        for (row, words) in transpose_16x16(words).into_iter().enumerate() {
            let to = rows[row * n + 16 * block..][..16].as_mut_ptr();
            // SAFETY: 16 words.
            unsafe { _mm512_storeu_si512(to.cast(), words) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;

    #[test]
    fn rows_become_lanes() {
        if !Isa::available().contains(&Isa::Avx512) {
            eprintln!("not run: no AVX-512");
            return;
        }
        let words: [[i32; 16]; 16] =
            std::array::from_fn(|j| std::array::from_fn(|i| (16 * j + i) as i32));
        // SAFETY: the instruction set was found above; both types are 16 × 16 words.
        let turned: [[i32; 16]; 16] = unsafe {
            std::mem::transmute(transpose_16x16(std::mem::transmute::<
                [[i32; 16]; 16],
                [__m512i; 16],
            >(words)))
        };
        for i in 0..16 {
            for j in 0..16 {
                assert_eq!(turned[i][j], words[j][i], "{i} {j}");
            }
        }
    }

    #[test]
    fn words_of_whole_and_of_missing_rows() {
        if !Isa::available().contains(&Isa::Avx512) {
            eprintln!("not run: no AVX-512");
            return;
        }
        for k in [1, 63, 64, 65, 128, 200] {
            for rows in [1, 15, 16] {
                let codes: Vec<i8> = (0..rows * k).map(|i| (i * i + 3 * i) as i8).collect();
                for from in (0..k).step_by(64) {
                    // SAFETY: the instruction set was found above; both types are 16 × 16 words.
                    let words: [[i32; 16]; 16] =
                        unsafe { std::mem::transmute(words_of_rows(&codes, k, from)) };
                    for (w, words) in words.iter().enumerate() {
                        for (row, word) in words.iter().enumerate() {
                            let code = |i| {
                                let column = from + 4 * w + i;
                                let there = row < rows && column < k;
                                if there { codes[row * k + column] } else { 0 }
                            };
                            let want = [0, 1, 2, 3].map(|i| code(i) as u8);
                            assert_eq!(word.to_le_bytes(), want, "{k} {rows} {from}: {w} {row}");
                        }
                    }
                }
            }
        }
    }
}
