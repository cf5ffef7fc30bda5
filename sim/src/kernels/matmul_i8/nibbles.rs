//! Weights of four bits. They stay so in memory: half the bytes for a product of one row to read. A
//! table of 16 INT8 weights for each scale that groups of 128 codes have says what the codes are; few scales occur, so
//! the tables stay in the cache.

use crate::arith::int4::GROUP;
use std::ops::Range;

/// Bytes of a group: the low halves are its first 64 codes, the high ones the other 64.
const BYTES: usize = GROUP / 2;

/// A weight `[N, K]` of four-bit codes, K whole groups. Layout:
/// [`crate::quant::Int4Tensor::nibbles`].
#[derive(Clone, Copy, Debug)]
pub struct Nibbles<'a> {
    /// N rows of K/2 bytes.
    pub bytes: &'a [u8],
    /// Entry i of a table is the INT8 weight of nibble i.
    pub tables: &'a [[i8; 16]],
    /// The number of each group's table, N rows of K/128.
    pub table_of: &'a [u16],
    /// K/128.
    pub groups: usize,
}

impl<'a> Nibbles<'a> {
    /// N and K.
    pub fn dim(&self) -> (usize, usize) {
        let row = self.groups * BYTES;
        (self.bytes.len() / row.max(1), self.groups * GROUP)
    }

    /// Some rows.
    pub(super) fn rows(&self, rows: Range<usize>) -> Self {
        let groups = rows.start * self.groups..rows.end * self.groups;
        Self {
            bytes: &self.bytes[groups.start * BYTES..groups.end * BYTES],
            tables: self.tables,
            table_of: &self.table_of[groups],
            groups: self.groups,
        }
    }

    /// The bytes of each group.
    pub(super) fn chunks(&self) -> &'a [[u8; BYTES]] {
        self.bytes.as_chunks().0
    }

    /// Some rows in INT8, one after another, into `out`.
    pub fn expand(&self, rows: Range<usize>, out: &mut [i8]) {
        let rows = self.rows(rows);
        let bytes = rows.chunks();
        let out = out.as_chunks_mut::<GROUP>().0;
        assert_eq!(bytes.len(), out.len());
        let tables = (rows.table_of.iter()).map(|table| &rows.tables[usize::from(*table)]);
        #[cfg(target_arch = "x86_64")]
        if crate::isa::Isa::current() >= crate::isa::Isa::Avx2 {
            for ((bytes, table), out) in bytes.iter().zip(tables).zip(out) {
                // SAFETY: AVX2 was detected.
                unsafe { avx2::expand(bytes, table, out) }
            }
            return;
        }
        for ((bytes, table), out) in bytes.iter().zip(tables).zip(out) {
            for (j, pair) in bytes.iter().enumerate() {
                out[j] = table[usize::from(pair & 15)];
                out[BYTES + j] = table[usize::from(pair >> 4)];
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{BYTES, GROUP};
    use std::arch::x86_64::*;

    /// A group in INT8.
    #[target_feature(enable = "avx2")]
    pub(super) fn expand(bytes: &[u8; BYTES], table: &[i8; 16], out: &mut [i8; GROUP]) {
        let low = _mm256_set1_epi8(15);
        // SAFETY: the table is 16 bytes.
        let table = unsafe { _mm_loadu_si128(table.as_ptr().cast()) };
        let table = _mm256_broadcastsi128_si256(table);
        for half in 0..BYTES / 32 {
            let first = 32 * half;
            // SAFETY: 32 bytes are read and written from there on, inside the arrays.
            unsafe {
                let pairs = _mm256_loadu_si256(bytes[first..][..32].as_ptr().cast());
                let lows = _mm256_and_si256(pairs, low);
                let highs = _mm256_and_si256(_mm256_srli_epi16::<4>(pairs), low);
                let to = out[first..][..32].as_mut_ptr().cast();
                _mm256_storeu_si256(to, _mm256_shuffle_epi8(table, lows));
                let to = out[BYTES + first..][..32].as_mut_ptr().cast();
                _mm256_storeu_si256(to, _mm256_shuffle_epi8(table, highs));
            }
        }
    }
}
