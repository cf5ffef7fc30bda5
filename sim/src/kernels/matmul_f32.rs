//! FP32 × FP32 → FP32 with a defined order: each output is
//! `fma(x_{K-1}, w_{K-1}, … fma(x_1, w_1, fma(x_0, w_0, 0)))`. Outputs are vectorised over the rows
//! of the weight, never over k, so the order holds on every instruction set.
//!
//! Weights stay as the model has them, binary16, FP32 or INT8. The thread that is about to use 32 rows
//! turns a block of their columns into FP32 with the 32 outputs side by side; partial sums wait in
//! the output, which rounds nothing.

use super::columns::SplitColumns;
use super::lines::Lines;
#[cfg(target_arch = "x86_64")]
use super::pages;
use super::team::share;
use crate::arith::binary16::from_f16;
use crate::arith::saturate::Status;
use crate::isa::{Isa, Kernel, dispatch};
use crate::quant::Scale;
use half::f16;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;
use std::ops::Range;

/// Outputs of a panel, side by side.
const PANEL: usize = 32;
/// Columns of a weight that are turned at once: a block of a panel is 32 KiB.
const BLOCK: usize = 256;
/// Rows of x that stay in the second-level cache while all panels pass by.
const SLAB: usize = 512;
/// Multiplications that are worth a thread of their own.
const TASK: usize = 1 << 18;

/// How far ahead of its reading a panel is asked for, as in [`crate::kernels::matmul_i8`].
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4096;

/// A weight `[N, K]` and what its elements mean.
#[derive(Clone, Copy, Debug)]
pub enum RealWeight<'m> {
    /// Binary16.
    F16(ArrayView2<'m, f16>),
    /// The same, with a copy for products of one row.
    Panels(ArrayView2<'m, f16>, &'m Panels),
    /// FP32.
    F32(ArrayView2<'m, f32>),
    /// INT8 codes times a scale, or each row's.
    Codes(ArrayView2<'m, i8>, &'m [Scale]),
}

/// A binary16 weight turned once, for products of one row: the 32 outputs of a panel side by side, k after
/// k, a cache line each. One reads it from end to end.
#[derive(Debug)]
pub struct Panels(Lines<f16, PANEL>);

impl Panels {
    /// Turns `weight` (`[N, K]`) if the instruction set in use has a kernel for the result. It takes as much memory
    /// again.
    pub fn of_weight(weight: ArrayView2<f16>) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        if Isa::current() >= Isa::Avx2 && !weight.is_empty() {
            let (n, k) = weight.dim();
            let rows = weight.as_slice().expect("weights are row-major");
            let mut lines = Lines::new(f16::ZERO, n.div_ceil(PANEL) * k);
            pages::enlarge(lines.as_flattened());
            (lines.par_chunks_exact_mut(k))
                .zip(rows.par_chunks(PANEL * k))
                .for_each(|(panel, rows)| match Isa::current() >= Isa::Avx512 {
                    // SAFETY: the instruction set was detected.
                    true => unsafe { avx512::turn(rows, k, panel) },
                    false => turn(rows, k, panel),
                });
            return Some(Self(lines));
        }
        let _ = weight;
        None
    }

    /// The panel whose first output is `first`.
    #[cfg(target_arch = "x86_64")]
    fn of(&self, first: usize, k: usize) -> &[[f16; PANEL]] {
        &self.0[first / PANEL * k..][..k]
    }
}

impl RealWeight<'_> {
    /// N and K.
    pub fn dim(&self) -> (usize, usize) {
        match self {
            RealWeight::F16(weight) | RealWeight::Panels(weight, _) => weight.dim(),
            RealWeight::F32(weight) => weight.dim(),
            RealWeight::Codes(codes, _) => codes.dim(),
        }
    }

    /// `x · weightᵀ`: `[L, K]` to `[L, N]`.
    pub fn multiply(&self, x: &Array2<f32>) -> Array2<f32> {
        let (n, k) = self.dim();
        assert_eq!(x.ncols(), k);
        let mut out = Array2::zeros((x.nrows(), n));
        if x.is_empty() || out.is_empty() {
            return out;
        }
        let columns = SplitColumns::new(&mut out);
        for from in (0..x.nrows()).step_by(SLAB) {
            let rows = from..(from + SLAB).min(x.nrows());
            let work = PANEL * k * rows.len();
            let _ = share(
                n.div_ceil(PANEL),
                TASK.div_ceil(work),
                || Lines::new(0.0, BLOCK.min(k)),
                |panel, p| {
                    let task = Panel {
                        weight: self,
                        x: x.as_slice().expect("activations are row-major"),
                        rows: rows.clone(),
                        k,
                        first: p * PANEL,
                        width: PANEL.min(n - p * PANEL),
                        panel,
                        out: &columns,
                        isa: Isa::current(),
                    };
                    dispatch(task);
                    Status::default()
                },
            );
        }
        out
    }

    /// Columns `from..from + panel.len()` of the weight's rows `first..first + width` as FP32. `isa` was detected.
    #[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
    #[inline(always)]
    fn fill(&self, isa: Isa, first: usize, width: usize, from: usize, panel: &mut [[f32; PANEL]]) {
        match self {
            RealWeight::F16(weight) | RealWeight::Panels(weight, _) => {
                let k = weight.ncols();
                let rows = &weight.as_slice().expect("weights are row-major")[first * k..];
                #[cfg(target_arch = "x86_64")]
                let filled = match isa >= Isa::Avx2 && width == PANEL {
                    // SAFETY: the instruction set was detected.
                    true => unsafe { avx2::fill(rows, k, from, panel) },
                    false => 0,
                };
                #[cfg(not(target_arch = "x86_64"))]
                let filled = 0;
                let rest = &mut panel[filled..];
                fill(rows, k, width, from + filled, rest, |_| from_f16);
            }
            RealWeight::F32(weight) => {
                let k = weight.ncols();
                let rows = &weight.as_slice().expect("weights are row-major")[first * k..];
                fill(rows, k, width, from, panel, |_| |w| w);
            }
            RealWeight::Codes(codes, scales) => {
                let k = codes.ncols();
                let rows = &codes.as_slice().expect("weights are row-major")[first * k..];
                let last = scales.len() - 1;
                let scale = |lane: usize| scales[(first + lane).min(last)].get();
                fill(rows, k, width, from, panel, |lane| {
                    let scale = scale(lane);
                    move |q| scale * f32::from(q)
                });
            }
        }
    }
}

#[inline(always)]
fn fill<T: Copy, R: Fn(T) -> f32>(
    rows: &[T],
    k: usize,
    width: usize,
    from: usize,
    panel: &mut [[f32; PANEL]],
    real_of_lane: impl Fn(usize) -> R,
) {
    for (lane, row) in rows.chunks_exact(k).take(width).enumerate() {
        let real = real_of_lane(lane);
        for (lanes, w) in panel.iter_mut().zip(&row[from..]) {
            lanes[lane] = real(*w);
        }
    }
}

/// At most 32 rows as a panel of [`Panels`].
#[cfg(target_arch = "x86_64")]
fn turn(rows: &[f16], k: usize, panel: &mut [[f16; PANEL]]) {
    for (lane, row) in rows.chunks_exact(k).enumerate() {
        for (line, v) in panel.iter_mut().zip(row) {
            line[lane] = *v;
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{AHEAD, PANEL, f16};
    use std::arch::x86_64::*;

    /// The outputs of one row of x for a panel of [`super::Panels`].
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn one_row_of_panel(panel: &[[f16; PANEL]], x: &[f32], out: &mut [f32]) {
        assert!(x.len() == panel.len() && out.len() <= PANEL);
        let mut sums = [_mm256_setzero_ps(); PANEL / SIDE];
        for (line, x) in panel.iter().zip(x) {
            let x = _mm256_set1_ps(*x);
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_byte_add(AHEAD).cast());
            for (part, sum) in sums.iter_mut().enumerate() {
                // SAFETY: eight values.
                let w = unsafe { _mm_loadu_si128(line[SIDE * part..][..SIDE].as_ptr().cast()) };
                *sum = _mm256_fmadd_ps(x, _mm256_cvtph_ps(w), *sum);
            }
        }
        // SAFETY: four vectors are 32 values.
        let sums = unsafe { std::mem::transmute::<[__m256; PANEL / SIDE], [f32; PANEL]>(sums) };
        out.copy_from_slice(&sums[..out.len()]);
    }

    /// Rows and columns that are turned at once.
    const SIDE: usize = 8;

    /// As the scalar `fill`, for all 32 rows of a panel; the number of columns that it filled.
    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn fill(rows: &[f16], k: usize, from: usize, panel: &mut [[f32; PANEL]]) -> usize {
        let (blocks, _) = panel.as_chunks_mut::<SIDE>();
        for first in (0..PANEL).step_by(SIDE) {
            for (block, lanes) in blocks.iter_mut().enumerate() {
                let at = |i: usize| &rows[(first + i) * k + from + SIDE * block..][..SIDE];
                let columns = turned(std::array::from_fn(|i| {
                    // SAFETY: eight values.
                    unsafe { _mm_loadu_si128(at(i).as_ptr().cast()) }
                }));
                for (lanes, column) in lanes.iter_mut().zip(columns) {
                    let to = lanes[first..][..SIDE].as_mut_ptr();
                    // SAFETY: eight values from `to` on.
                    unsafe { _mm256_storeu_ps(to, column) };
                }
            }
        }
        SIDE * blocks.len()
    }

    /// Eight columns of eight rows as FP32, turned so that a row is a lane.
    #[target_feature(enable = "avx2,f16c")]
    #[inline]
    fn turned(rows: [__m128i; SIDE]) -> [__m256; SIDE] {
        let mut v = [_mm256_setzero_ps(); SIDE];
        for (v, row) in v.iter_mut().zip(rows) {
            *v = _mm256_cvtph_ps(row);
        }
        // Two rows, then four side by side, inside each 128-bit lane …
        let mut twos = v;
        for i in 0..4 {
            twos[2 * i] = _mm256_unpacklo_ps(v[2 * i], v[2 * i + 1]);
            twos[2 * i + 1] = _mm256_unpackhi_ps(v[2 * i], v[2 * i + 1]);
        }
        let mut fours = twos;
        for i in 0..2 {
            for j in 0..2 {
                let (a, b) = (twos[4 * i + j], twos[4 * i + 2 + j]);
                let (a, b) = (_mm256_castps_pd(a), _mm256_castps_pd(b));
                fours[4 * i + 2 * j] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, b));
                fours[4 * i + 2 * j + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, b));
            }
        }
        // … then all eight of a column.
        let mut out = fours;
        for c in 0..4 {
            out[c] = _mm256_permute2f128_ps::<0x20>(fours[c], fours[4 + c]);
            out[4 + c] = _mm256_permute2f128_ps::<0x31>(fours[c], fours[4 + c]);
        }
        out
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use super::{AHEAD, Isa, PANEL, RealWeight, f16};
    use std::arch::x86_64::*;

    /// As [`RealWeight::fill`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    #[inline]
    pub(super) fn fill_f16_or(
        weight: &RealWeight,
        first: usize,
        width: usize,
        from: usize,
        panel: &mut [[f32; PANEL]],
    ) {
        match weight {
            RealWeight::F16(weight) | RealWeight::Panels(weight, _) => {
                let k = weight.ncols();
                let rows = &weight.as_slice().expect("weights are row-major")[first * k..];
                fill(&rows[..width * k], k, from, panel);
            }
            RealWeight::F32(_) | RealWeight::Codes(..) => {
                weight.fill(Isa::Avx512, first, width, from, panel);
            }
        }
    }

    /// As the scalar `multiply`, with all sums in registers.
    #[target_feature(enable = "avx512f")]
    #[inline]
    pub(super) fn multiply<const R: usize>(
        x: [&[f32]; R],
        panel: &[[f32; PANEL]],
        sums: &mut [[f32; PANEL]; R],
    ) {
        for x in x {
            assert_eq!(x.len(), panel.len());
        }
        let mut acc = [[_mm512_setzero_ps(); 2]; R];
        for (acc, sums) in acc.iter_mut().zip(sums.iter()) {
            // SAFETY: 32 values are two vectors.
            *acc = unsafe { std::mem::transmute::<[f32; PANEL], [__m512; 2]>(*sums) };
        }
        for (i, w) in panel.iter().enumerate() {
            // SAFETY: as above; i is below the length of every row.
            let w = unsafe { std::mem::transmute::<[f32; PANEL], [__m512; 2]>(*w) };
            for r in 0..R {
                let v = _mm512_set1_ps(unsafe { *x[r].get_unchecked(i) });
                acc[r][0] = _mm512_fmadd_ps(v, w[0], acc[r][0]);
                acc[r][1] = _mm512_fmadd_ps(v, w[1], acc[r][1]);
            }
        }
        for (acc, sums) in acc.iter().zip(sums) {
            // SAFETY: as above.
            *sums = unsafe { std::mem::transmute::<[__m512; 2], [f32; PANEL]>(*acc) };
        }
    }

    /// As the scalar `fill`, 16 rows by 32 columns at a time.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    #[inline]
    fn fill(rows: &[f16], k: usize, from: usize, panel: &mut [[f32; PANEL]]) {
        for (block, lanes) in panel.chunks_mut(COLUMNS).enumerate() {
            for half in 0..2 {
                let columns = turned(rows, k, from + COLUMNS * block, lanes.len(), half);
                for (lanes, column) in lanes.iter_mut().zip(columns) {
                    let to = lanes[16 * half..][..16].as_mut_ptr();
                    // SAFETY: 16 values from `to` on.
                    unsafe { _mm512_storeu_ps(to, _mm512_cvtph_ps(column)) };
                }
            }
        }
    }

    /// Columns that are turned at once: a vector of each row.
    const COLUMNS: usize = 32;

    /// `columns` columns, at most 32, of 16 rows, turned so that a row is a lane. Columns and rows that are
    /// missing are zero.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    fn turned(
        rows: &[f16],
        k: usize,
        from: usize,
        columns: usize,
        half: usize,
    ) -> [__m256i; COLUMNS] {
        let rows = &rows[(16 * half * k).min(rows.len())..];
        let mut v = [_mm512_setzero_si512(); 16];
        if rows.len() >= 16 * k && columns == COLUMNS {
            let block = rows[from..][..15 * k + COLUMNS].as_ptr();
            for (i, v) in v.iter_mut().enumerate() {
                // The same place of the next panel: strides this long defeat the machine's own
                // prefetching. A prefetch past the end does nothing.
                let next = block.wrapping_add((i + PANEL) * k);
                _mm_prefetch::<_MM_HINT_T1>(next.cast());
                // SAFETY: a vector of each of the block's 16 rows.
                *v = unsafe { _mm512_loadu_si512(block.add(i * k).cast()) };
            }
        } else {
            let mask = u32::MAX >> (32 - columns);
            for (row, v) in rows.chunks_exact(k).zip(&mut v) {
                let at = row[from..][..columns].as_ptr();
                // SAFETY: the mask keeps the load inside those columns.
                *v = unsafe { _mm512_maskz_loadu_epi16(mask, at.cast()) };
            }
        }
        // Two rows, then four, then eight side by side, inside each 128-bit lane …
        let mut twos = v;
        for i in 0..8 {
            twos[2 * i] = _mm512_unpacklo_epi16(v[2 * i], v[2 * i + 1]);
            twos[2 * i + 1] = _mm512_unpackhi_epi16(v[2 * i], v[2 * i + 1]);
        }
        let mut fours = twos;
        for i in 0..4 {
            for j in 0..2 {
                let (a, b) = (twos[4 * i + j], twos[4 * i + 2 + j]);
                fours[4 * i + 2 * j] = _mm512_unpacklo_epi32(a, b);
                fours[4 * i + 2 * j + 1] = _mm512_unpackhi_epi32(a, b);
            }
        }
        // eights[8i + c]: rows 8i to 8i + 7 of column c and those 8, 16 and 24 further.
        let mut eights = fours;
        for i in 0..2 {
            for j in 0..4 {
                let (a, b) = (fours[8 * i + j], fours[8 * i + 4 + j]);
                eights[8 * i + 2 * j] = _mm512_unpacklo_epi64(a, b);
                eights[8 * i + 2 * j + 1] = _mm512_unpackhi_epi64(a, b);
            }
        }
        // … then all 16 of a column.
        let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
        let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
        let mut out = [_mm256_setzero_si256(); COLUMNS];
        for c in 0..8 {
            for (at, place) in [(c, first), (16 + c, second)] {
                let both = _mm512_permutex2var_epi64(eights[c], place, eights[8 + c]);
                out[at] = _mm512_castsi512_si256(both);
                out[at + 8] = _mm512_extracti64x4_epi64::<1>(both);
            }
        }
        out
    }

    /// At most 32 rows as a panel of [`super::Panels`].
    #[target_feature(enable = "avx512f,avx512bw")]
    pub(super) fn turn(rows: &[f16], k: usize, panel: &mut [[f16; PANEL]]) {
        for (block, lines) in panel.chunks_mut(COLUMNS).enumerate() {
            for half in 0..2 {
                let columns = turned(rows, k, COLUMNS * block, lines.len(), half);
                for (line, column) in lines.iter_mut().zip(columns) {
                    let to = line[16 * half..][..16].as_mut_ptr();
                    // SAFETY: 16 values from `to` on.
                    unsafe { _mm256_storeu_si256(to.cast(), column) };
                }
            }
        }
    }

    /// The outputs of one row of x for a panel of [`super::Panels`].
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    pub(super) fn one_row_of_panel(panel: &[[f16; PANEL]], x: &[f32], out: &mut [f32]) {
        assert!(x.len() == panel.len() && out.len() <= PANEL);
        let mut sums = [_mm512_setzero_ps(); 2];
        for (line, x) in panel.iter().zip(x) {
            let x = _mm512_set1_ps(*x);
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_byte_add(AHEAD).cast());
            for (half, sum) in sums.iter_mut().enumerate() {
                // SAFETY: 16 values.
                let w = unsafe { _mm256_loadu_si256(line[16 * half..][..16].as_ptr().cast()) };
                *sum = _mm512_fmadd_ps(x, _mm512_cvtph_ps(w), *sum);
            }
        }
        // SAFETY: two vectors are 32 values.
        let sums = unsafe { std::mem::transmute::<[__m512; 2], [f32; PANEL]>(sums) };
        out.copy_from_slice(&sums[..out.len()]);
    }

    /// The outputs of one row of x for at most 32 rows of a weight. Nothing is stored in between: while
    /// the sums of 16 outputs wait for each other, the next 16 rows are turned.
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,f16c")]
    #[inline]
    pub(super) fn one_row(rows: &[f16], k: usize, x: &[f32], out: &mut [f32]) {
        assert!(x.len() == k && rows.len() == out.len() * k && out.len() <= PANEL);
        let mut sums = [_mm512_setzero_ps(); 2];
        for (block, x) in x.chunks(COLUMNS).enumerate() {
            for (half, sum) in sums.iter_mut().enumerate() {
                let columns = turned(rows, k, COLUMNS * block, x.len(), half);
                if let Ok(x) = <&[f32; COLUMNS]>::try_from(x) {
                    for i in 0..COLUMNS {
                        let w = _mm512_cvtph_ps(columns[i]);
                        *sum = _mm512_fmadd_ps(_mm512_set1_ps(x[i]), w, *sum);
                    }
                } else {
                    for (x, column) in x.iter().zip(columns) {
                        let w = _mm512_cvtph_ps(column);
                        *sum = _mm512_fmadd_ps(_mm512_set1_ps(*x), w, *sum);
                    }
                }
            }
        }
        // SAFETY: two vectors are 32 values.
        let sums = unsafe { std::mem::transmute::<[__m512; 2], [f32; PANEL]>(sums) };
        out.copy_from_slice(&sums[..out.len()]);
    }
}

/// 32 outputs of every row.
struct Panel<'a, 'm> {
    weight: &'a RealWeight<'m>,
    /// `[L, K]`.
    x: &'a [f32],
    /// The rows of x that are multiplied.
    rows: Range<usize>,
    k: usize,
    first: usize,
    width: usize,
    panel: &'a mut [[f32; PANEL]],
    /// `[L, N]`.
    out: &'a SplitColumns<'a, f32>,
    /// The instruction set that was detected.
    isa: Isa,
}

impl Kernel for Panel<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run(mut self) {
        #[cfg(target_arch = "x86_64")]
        if self.isa >= Isa::Avx2 && self.rows.len() == 1 {
            let x = &self.x[self.rows.start * self.k..][..self.k];
            // SAFETY: panels have different columns; no other segment of this one is alive.
            let out = unsafe { self.out.segment(self.rows.start, self.first, self.width) };
            match self.weight {
                RealWeight::Panels(_, panels) => {
                    let panel = panels.of(self.first, self.k);
                    return match self.isa >= Isa::Avx512 {
                        // SAFETY: the instruction set was detected.
                        true => unsafe { avx512::one_row_of_panel(panel, x, out) },
                        // SAFETY: as above.
                        false => unsafe { avx2::one_row_of_panel(panel, x, out) },
                    };
                }
                RealWeight::F16(weight) if self.isa >= Isa::Avx512 => {
                    let weight = weight.as_slice().expect("weights are row-major");
                    let rows = &weight[self.first * self.k..][..self.width * self.k];
                    // SAFETY: the instruction set was detected.
                    return unsafe { avx512::one_row(rows, self.k, x, out) };
                }
                RealWeight::F16(_) | RealWeight::F32(_) | RealWeight::Codes(..) => {}
            }
        }
        for from in (0..self.k).step_by(BLOCK) {
            let columns = BLOCK.min(self.k - from);
            let panel = &mut self.panel[..columns];
            let (first, width) = (self.first, self.width);
            #[cfg(target_arch = "x86_64")]
            if self.isa >= Isa::Avx512 {
                // SAFETY: the instruction set was detected.
                unsafe { avx512::fill_f16_or(self.weight, first, width, from, panel) };
            } else {
                self.weight.fill(self.isa, first, width, from, panel);
            }
            #[cfg(not(target_arch = "x86_64"))]
            self.weight.fill(self.isa, first, width, from, panel);
            let Range { mut start, end } = self.rows;
            while start + 8 <= end {
                self.tile::<8>(from, columns, start);
                start += 8;
            }
            while start < end {
                self.tile::<1>(from, columns, start);
                start += 1;
            }
        }
    }
}

impl Panel<'_, '_> {
    /// Adds a block of columns to R rows of the outputs.
    #[inline(always)]
    fn tile<const R: usize>(&mut self, from: usize, columns: usize, row: usize) {
        let panel = &self.panel[..columns];
        let x = std::array::from_fn(|r| &self.x[(row + r) * self.k + from..][..columns]);
        let mut sums = [[0.0f32; PANEL]; R];
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: panels have different columns; no other segment of this one is alive.
            let out = unsafe { self.out.segment(row + r, self.first, self.width) };
            sums[..self.width].copy_from_slice(out);
        }
        #[cfg(target_arch = "x86_64")]
        if self.isa >= Isa::Avx512 {
            // SAFETY: the instruction set was detected.
            unsafe { avx512::multiply::<R>(x, panel, &mut sums) };
        } else {
            multiply::<R>(x, panel, &mut sums);
        }
        #[cfg(not(target_arch = "x86_64"))]
        multiply::<R>(x, panel, &mut sums);
        for (r, sums) in sums.iter().enumerate() {
            // SAFETY: as above.
            let out = unsafe { self.out.segment(row + r, self.first, self.width) };
            out.copy_from_slice(&sums[..self.width]);
        }
    }
}

/// `sums[r] ← fma(x[r][i], panel[i], sums[r])` for i = 0, 1, …
#[inline(always)]
fn multiply<const R: usize>(x: [&[f32]; R], panel: &[[f32; PANEL]], sums: &mut [[f32; PANEL]; R]) {
    let (fours, rest) = x.as_chunks::<4>();
    let (sums_of_fours, sums_of_rest) = sums.as_chunks_mut::<4>();
    for (x, sums) in fours.iter().zip(sums_of_fours) {
        multiply_together(x, panel, sums);
    }
    for (x, sums) in rest.iter().zip(sums_of_rest) {
        multiply_together(&[*x], panel, std::array::from_mut(sums));
    }
}

/// As [`multiply`], of rows whose sums stay in the registers of AVX2 side by side, as many as hide the latency of an fma.
#[inline(always)]
fn multiply_together<const R: usize>(
    x: &[&[f32]; R],
    panel: &[[f32; PANEL]],
    sums: &mut [[f32; PANEL]; R],
) {
    /// Lanes of each row.
    const PART: usize = 16;
    let x = x.map(|x| &x[..panel.len()]);
    for part in (0..PANEL).step_by(PART) {
        let own =
            |sums: &[f32; PANEL]| -> [f32; PART] { std::array::from_fn(|lane| sums[part + lane]) };
        let mut acc: [[f32; PART]; R] = std::array::from_fn(|r| own(&sums[r]));
        for (i, w) in panel.iter().enumerate() {
            let w = own(w);
            for (acc, x) in acc.iter_mut().zip(x) {
                for (acc, w) in acc.iter_mut().zip(w) {
                    *acc = x[i].mul_add(w, *acc);
                }
            }
        }
        for (acc, sums) in acc.iter().zip(&mut *sums) {
            sums[part..part + PART].copy_from_slice(acc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_is_k_ascending_fma_at_every_edge() {
        for (l, n, k) in [
            (1, 1, 1),
            (1, 33, 7),
            (3, 31, 5),
            (4, 32, 16),
            (9, 65, 319),
            (17, 40, 513),
        ] {
            let weight = Array2::from_shape_fn((n, k), |(j, i)| {
                f16::from_f32(((j * 7 + i * 3) as f32).sin())
            });
            let codes = Array2::from_shape_fn((n, k), |(j, i)| (j * 7 + i * 3) as i8);
            let x = Array2::from_shape_fn((l, k), |(r, i)| ((r * 5 + i) as f32).cos());
            let check = |packed: RealWeight, weight: &dyn Fn(usize, usize) -> f32| {
                let out = packed.multiply(&x);
                for r in 0..l {
                    for j in 0..n {
                        let mut want = 0.0f32;
                        for i in 0..k {
                            want = x[(r, i)].mul_add(weight(j, i), want);
                        }
                        assert_eq!(
                            out[(r, j)].to_bits(),
                            want.to_bits(),
                            "{l} {n} {k}: {r} {j}"
                        );
                    }
                }
            };
            check(RealWeight::F16(weight.view()), &|j, i| {
                f32::from(weight[(j, i)])
            });
            if let Some(panels) = Panels::of_weight(weight.view()) {
                check(RealWeight::Panels(weight.view(), &panels), &|j, i| {
                    f32::from(weight[(j, i)])
                });
            }
            let scale = |j: usize| Scale::new(0.37 + j as f32).unwrap();
            let scales: Vec<Scale> = (0..n).map(scale).collect();
            check(RealWeight::Codes(codes.view(), &scales[..1]), &|j, i| {
                0.37 * f32::from(codes[(j, i)])
            });
            check(RealWeight::Codes(codes.view(), &scales), &|j, i| {
                scale(j).get() * f32::from(codes[(j, i)])
            });
        }
    }
}
