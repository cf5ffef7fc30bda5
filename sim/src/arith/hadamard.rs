//! Hadamard transforms in f32, in their defined order. Source: `docs/arithmetic.md`.
//!
//! A length n is c·2^k with c the first of 12, 40, 28, 20 that fits, else a power of two (c = 1);
//! the matrix is `H_c ⊗ H_{2^k}`. Butterflies (`a+b`, `a−b`) run over strides 1, 2, 4, … inside
//! blocks of 2^k consecutive elements, then the c×c factor combines the c blocks, each row summed
//! left to right. The caller multiplies by its scale once, afterwards.

use super::real::{LANES, Lanes, lanes};
use crate::error::{Result, SimError};
use crate::isa::{Kernel, dispatch};
#[cfg(target_arch = "x86_64")]
use crate::kernels::butterflies;

/// How a length factors: n = base·2^k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HadamardSize {
    base: usize,
    block: usize,
}

impl HadamardSize {
    /// The factorization of `n`, or an error for lengths without a Hadamard matrix here.
    pub fn of(n: usize) -> Result<Self> {
        for base in [12, 40, 28, 20] {
            if n.is_multiple_of(base) && (n / base).is_power_of_two() {
                return Ok(Self {
                    base,
                    block: n / base,
                });
            }
        }
        if n.is_power_of_two() {
            return Ok(Self { base: 1, block: n });
        }
        Err(SimError::value(
            "Hadamard size",
            "2^k, 12·2^k, 40·2^k, 28·2^k or 20·2^k",
            n,
        ))
    }

    /// The length.
    pub fn n(self) -> usize {
        self.base * self.block
    }

    /// The odd factor's matrix size: 12, 20, 28, 40, or 1 for powers of two.
    pub fn base(self) -> usize {
        self.base
    }

    /// 1/√n in f64, the factor that makes the transform orthonormal.
    pub fn norm(self) -> f64 {
        1.0 / (self.n() as f64).sqrt()
    }

    /// Entry (i, j) of the unscaled matrix, ±1.
    pub fn entry(self, i: usize, j: usize) -> f32 {
        // The block is a power of two: the remainder of both at once.
        let sylvester = ((i & j) % self.block).count_ones() % 2;
        let negative = sign_row(self.base, i / self.block) >> (j / self.block) & 1;
        if u64::from(sylvester) ^ negative == 1 {
            -1.0
        } else {
            1.0
        }
    }

    /// Transforms every consecutive row of length n in place, without scaling. `rows.len()` must
    /// be a multiple of n.
    pub fn transform(self, rows: &mut [f32]) {
        assert_eq!(rows.len() % self.n(), 0, "rows of length {}", self.n());
        dispatch(Transform { size: self, rows });
    }
}

struct Transform<'a> {
    size: HadamardSize,
    rows: &'a mut [f32],
}

impl Kernel for Transform<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let HadamardSize { base, block } = self.size;
        let mut mixed = vec![0.0f32; if base > 1 { base * block } else { 0 }];
        for row in self.rows.chunks_exact_mut(base * block) {
            let mut stride = short_strides(row, block);
            while stride < block {
                for pair in row.chunks_exact_mut(2 * stride) {
                    let (low, high) = pair.split_at_mut(stride);
                    for (a, b) in low.iter_mut().zip(high) {
                        (*a, *b) = (*a + *b, *a - *b);
                    }
                }
                stride *= 2;
            }
            if base == 12 && block.is_multiple_of(LANES) {
                mix_12(row, block);
            } else if base > 1 {
                for (i, out) in mixed.chunks_exact_mut(block).enumerate() {
                    let signs = sign_row(base, i);
                    // A sum from the left starts with its first term, so a −0 there survives.
                    copy_signed(signs & 1, &row[..block], out);
                    for j in 1..base {
                        add_signed(signs >> j & 1, &row[j * block..][..block], out);
                    }
                }
                row.copy_from_slice(&mixed);
            }
        }
    }
}

/// Butterflies of the strides whose partners lie close; returns the first one left.
#[inline(always)]
fn short_strides(row: &mut [f32], block: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    if block >= butterflies::LONG && butterflies::short_strides(row) {
        return butterflies::LONG;
    }
    if block < LANES {
        return 1;
    }
    for short in row.as_chunks_mut::<LANES>().0 {
        *short = butterflies_of_short(*short);
    }
    LANES
}

/// Elements whose butterflies of strides 1, 2, 4, 8 stay among themselves: one vector.
#[inline(always)]
fn butterflies_of_short(v: Lanes) -> Lanes {
    stride::<8>(stride::<4>(stride::<2>(stride::<1>(v))))
}

/// All butterflies of one stride: `a+b` in the low place, `a−b` in the high one.
#[inline(always)]
fn stride<const STRIDE: usize>(v: Lanes) -> Lanes {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        let (a, b) = (v[i & !STRIDE], v[i | STRIDE]);
        out[i] = if i & STRIDE == 0 { a + b } else { a - b };
    }
    out
}

/// The factor of 12 for whole vectors: 12 of them stay in registers.
#[inline(always)]
fn mix_12(row: &mut [f32], block: usize) {
    for at in (0..block).step_by(LANES) {
        let mut v = [[0.0; LANES]; 12];
        for (j, v) in v.iter_mut().enumerate() {
            v.copy_from_slice(&row[j * block + at..][..LANES]);
        }
        macro_rules! rows {
            ($($i:literal)*) => {
                $(row[$i * block + at..][..LANES].copy_from_slice(&sum_12::<$i>(&v));)*
            };
        }
        rows!(0 1 2 3 4 5 6 7 8 9 10 11);
    }
}

/// Row I of H_12 times 12 vectors, from the left; its signs are constants.
#[inline(always)]
fn sum_12<const I: usize>(v: &[Lanes; 12]) -> Lanes {
    let negative = |j: usize| H12[I] >> j & 1 == 1;
    let first = v[0];
    let mut sum = match negative(0) {
        true => lanes(|e| -first[e]),
        false => first,
    };
    for j in 1..12 {
        let (before, term) = (sum, v[j]);
        sum = match negative(j) {
            true => lanes(|e| before[e] - term[e]),
            false => lanes(|e| before[e] + term[e]),
        };
    }
    sum
}

#[inline(always)]
fn copy_signed(negative: u64, from: &[f32], to: &mut [f32]) {
    for (o, v) in to.iter_mut().zip(from) {
        *o = if negative == 1 { -*v } else { *v };
    }
}

#[inline(always)]
fn add_signed(negative: u64, from: &[f32], to: &mut [f32]) {
    if negative == 1 {
        for (o, v) in to.iter_mut().zip(from) {
            *o -= *v;
        }
    } else {
        for (o, v) in to.iter_mut().zip(from) {
            *o += *v;
        }
    }
}

/// Signs of row `i` of H_base: bit j set where the entry is −1.
#[inline(always)]
fn sign_row(base: usize, i: usize) -> u64 {
    match base {
        12 => H12[i],
        20 => H20[i],
        28 => H28[i],
        40 => H40[i],
        _ => 0,
    }
}

// The ±1 matrices, read from the reference kernels on the device (golden vectors
// `ops/hadamard_quant.npz`, keys h12, h20, h28, h40).

/// H_12: bit j of row i is set where the entry (i, j) is −1.
#[rustfmt::skip]
const H12: [u64; 12] = [
    0x002, 0xaab, 0x3c8, 0x96e,
    0xf20, 0x5ba, 0xc8c, 0x6e6,
    0x23c, 0xb96, 0x8f0, 0xe5a,
];

/// H_20: bit j of row i is set where the entry (i, j) is −1.
#[rustfmt::skip]
const H20: [u64; 20] = [
    0x933de, 0x2e3bd, 0x5477b, 0xa0ef7,
    0x499ef, 0x637c1, 0xc6ba2, 0x8d764,
    0x1aee8, 0x359f0, 0x0fa53, 0x174a7,
    0x26d4e, 0x45e9c, 0x83d39, 0xf7a6d,
    0xef4fa, 0xdedd5, 0xbdf8b, 0x7bf36,
];

/// H_28: bit j of row i is set where the entry (i, j) is −1.
#[rustfmt::skip]
const H28: [u64; 28] = [
    0xcd69e7e, 0x9ad7c7d, 0x37ab8fb, 0x6d571f7,
    0xd8ae3ef, 0xb3587df, 0x66b4f3f, 0xb467f43,
    0x6acbe87, 0xd593d8e, 0xab27b9c, 0x564f7b8,
    0xac9aff0, 0x5b31fe1, 0x87fb325, 0x0ff66ca,
    0x1decd95, 0x39ddb2a, 0x71bf654, 0xe17eca9,
    0xc2fd9d2, 0xfcf1299, 0xfbe2532, 0xf7c4ae4,
    0xef8d549, 0xdf1ea13, 0xbe3d4a6, 0x7e7a94c,
];

/// H_40: bit j of row i is set where the entry (i, j) is −1.
#[rustfmt::skip]
const H40: [u64; 40] = [
    0xffffeffffe, 0x615e4615e4, 0xc2bc8c2bc8, 0x8579285792,
    0x0af260af26, 0x15e4c15e4c, 0x2bc982bc98, 0x5793057930,
    0xaf260af260, 0x5e4c25e4c2, 0xbc984bc984, 0x7930a7930a,
    0xf2614f2614, 0xe4c2ae4c2a, 0xc9856c9856, 0x930ae930ae,
    0x2615e2615e, 0x4c2bc4c2bc, 0x9857898578, 0x30af230af2,
    0x00001ffffe, 0x9ea1b615e4, 0x3d437c2bc8, 0x7a86d85792,
    0xf50d90af26, 0xea1b315e4c, 0xd43672bc98, 0xa86cf57930,
    0x50d9faf260, 0xa1b3d5e4c2, 0x4367bbc984, 0x86cf57930a,
    0x0d9ebf2614, 0x1b3d5e4c2a, 0x367a9c9856, 0x6cf51930ae,
    0xd9ea12615e, 0xb3d434c2bc, 0x67a8798578, 0xcf50d30af2,
];
#[cfg(test)]
mod tests {
    use super::*;

    const SIZES: [usize; 12] = [1, 2, 32, 512, 12, 192, 384, 20, 28 * 4, 40, 80, 160];

    #[test]
    fn factorization_prefers_the_first_base() {
        let base = |n| HadamardSize::of(n).map(|s| (s.base(), s.n()));
        assert_eq!(base(80).unwrap(), (40, 80));
        assert_eq!(base(20).unwrap(), (20, 20));
        assert_eq!(base(768).unwrap(), (12, 768));
        assert_eq!(base(1).unwrap(), (1, 1));
        for n in [0, 3, 36, 100, 1000] {
            assert!(HadamardSize::of(n).is_err(), "{n}");
        }
    }

    /// Rows have length √n before, 1 after; exactly where √n is a power of two.
    #[test]
    fn the_norm_makes_rows_of_length_one() {
        for (n, norm) in [(1, 1.0), (4, 0.5), (1024, 1.0 / 32.0)] {
            assert_eq!(HadamardSize::of(n).unwrap().norm(), norm);
        }
        for n in SIZES {
            let norm = HadamardSize::of(n).unwrap().norm();
            assert!((n as f64 * norm * norm - 1.0).abs() < 1e-15 && norm > 0.0);
        }
    }

    #[test]
    fn rows_are_orthogonal() {
        for n in SIZES {
            let size = HadamardSize::of(n).unwrap();
            for i in 0..n {
                for j in 0..n {
                    let dot: f32 = (0..n).map(|k| size.entry(i, k) * size.entry(j, k)).sum();
                    assert_eq!(
                        dot,
                        if i == j { n as f32 } else { 0.0 },
                        "n {n} rows {i} {j}"
                    );
                }
            }
        }
    }

    #[test]
    fn transform_is_the_matrix_on_exact_integers() {
        for n in SIZES {
            let size = HadamardSize::of(n).unwrap();
            let x: Vec<f32> = (0..n).map(|i| ((i * 37 + 11) % 64) as f32 - 32.0).collect();
            let mut got = x.clone();
            size.transform(&mut got);
            for (i, got) in got.iter().enumerate() {
                let want: f32 = (0..n).map(|k| size.entry(i, k) * x[k]).sum();
                assert_eq!(*got, want, "n {n} row {i}");
            }
        }
    }
}
