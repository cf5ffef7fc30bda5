//! AMX. `tdpbssd` multiplies a tile of 16 rows of 64 codes by a tile of 64 rows of 16 codes, both
//! signed, and adds to 16 × 16 sums of i32. Eight tile registers hold four tiles of sums (32 rows of x by
//! a panel of 32 outputs) and two of each operand.
//!
//! A tile of x is 16 rows of 64 codes, one after another; a tile of the weight is 16 words of a panel, packed
//! as for VNNI but without its offset. Sums wrap in i32, as everywhere, and the results fit.
//!
//! Every row of a tile lies on one cache line: across two, loads take more than four times as long.
//!
//! Stable Rust has no intrinsics for AMX: a step over k is assembly. The compiler knows nothing of tile
//! registers, and nothing between [`Tiles`] and its end may use them but these steps.

use super::packed::{self, Rows, Tile, Words};
use super::vnni::pack;
use super::{Epilogue, Job};
use crate::arith::saturate::Status;
use std::arch::asm;

/// Rows of a tile, and words of a row of one.
const SIDE: usize = 16;
/// Rows of x at once: two tiles.
const ROWS: usize = 2 * SIDE;
/// Bytes of a row of a tile.
const ROW_BYTES: usize = 4 * SIDE;

pub(super) struct Amx;

impl Tile for Amx {
    const GROUP: usize = 4;
    const K_MULTIPLE: usize = SIDE;
    const ROWS: usize = ROWS;

    fn pack_rows(rows: &[i8], k: usize, words: &mut [i32]) {
        pack_rows(rows, k, words);
    }

    fn start(_: i32) -> i32 {
        0
    }

    #[inline(always)]
    fn pack(weight: &[i8], k: usize, panel: &mut [Words]) {
        // SAFETY: only `Amx::panel` packs, with AVX-512 enabled.
        unsafe { pack(weight, k, 0, panel) }
    }

    #[inline(always)]
    fn multiply(
        words: &[i32],
        panel: &[Words],
        _: &[i32],
        acc: &mut [Words],
        meanwhile: impl FnMut(),
    ) {
        // SAFETY: only `Amx::panel` multiplies, between the making and the end of `Tiles`.
        unsafe { multiply(words, panel, acc, meanwhile) }
    }

    fn panel<E: Epilogue>(job: &Job<E>, x: &Rows, p: usize) -> Status {
        // SAFETY: `matmul_i8` chooses this tile where `Isa::Amx` was detected.
        unsafe { panel(job, x, p) }
    }
}

/// 64 codes of all rows after another 64 of all rows, filled up with zeros.
fn pack_rows(rows: &[i8], k: usize, words: &mut [i32]) {
    let lines = bytemuck::cast_slice_mut::<i32, [i8; ROW_BYTES]>(words);
    for (r, row) in rows.chunks_exact(k).enumerate() {
        let mut codes = row.chunks(ROW_BYTES);
        for line in lines.iter_mut().skip(r).step_by(ROWS) {
            let codes = codes.next().unwrap_or(&[]);
            match <&[i8; ROW_BYTES]>::try_from(codes) {
                Ok(codes) => *line = *codes,
                Err(_) => {
                    line[..codes.len()].copy_from_slice(codes);
                    line[codes.len()..].fill(0);
                }
            }
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn panel<E: Epilogue>(job: &Job<E>, x: &Rows, p: usize) -> Status {
    // SAFETY: this runs where AMX was found and the system was asked for it.
    let _tiles = unsafe { Tiles::configure() };
    packed::panel::<Amx, E>(job, x, p)
}

/// The shape of the tile registers: all eight of 16 rows by 64 bytes, as long as this lives. Belongs to
/// the thread that made it.
struct Tiles(std::marker::PhantomData<*mut ()>);

/// Operand of `ldtilecfg`.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Tiles {
    /// # Safety
    ///
    /// The machine has AMX and the process may use it.
    unsafe fn configure() -> Self {
        static EIGHT: Configuration = {
            let (mut row_bytes, mut rows) = ([0; 16], [0; 16]);
            let mut i = 0;
            while i < 8 {
                (row_bytes[i], rows[i]) = (ROW_BYTES as u16, SIDE as u8);
                i += 1;
            }
            Configuration {
                palette: 1,
                start_row: 0,
                reserved: [0; 14],
                row_bytes,
                rows,
            }
        };
        // SAFETY: reads the 64 bytes of a valid configuration.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &EIGHT, options(nostack, preserves_flags)) };
        Self(std::marker::PhantomData)
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the tiles were configured, so the instruction is there.
        unsafe { asm!("tilerelease", options(nomem, nostack, preserves_flags)) };
    }
}

/// `acc ← words · panel`: 32 rows by 32 outputs. The tile unit takes 64 cycles for a step, in which the rest
/// of the core would wait: it does the other work.
///
/// # Safety
///
/// A [`Tiles`] of this thread is alive.
#[inline(always)]
unsafe fn multiply(words: &[i32], panel: &[Words], acc: &mut [Words], mut meanwhile: impl FnMut()) {
    /// Words of a tile of x.
    const TILE: usize = SIDE * SIDE;
    let groups = panel.len();
    let steps = groups / SIDE;
    let mut pieces = 0;
    assert!(words.len() == ROWS * groups && acc.len() == ROWS && groups.is_multiple_of(SIDE));
    let width = size_of::<Words>();
    // SAFETY: two tiles of x, 16 rows of 64 bytes each, and 16 rows of the panel, 128 bytes apart, are read
    // for every step: the lengths were checked. At the end 32 rows of 128 bytes are written.
    unsafe {
        asm!(
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nomem, nostack, preserves_flags),
        );
        let operands = words.chunks_exact(2 * TILE).zip(panel.chunks_exact(SIDE));
        for (step, (x, w)) in operands.enumerate() {
            // x passes by once for each panel, the panel stays in the first-level cache: `t1` keeps x out of it,
            // which makes the product a fifth faster.
            asm!(
                "tileloaddt1 tmm4, [{x} + {line}*1]",
                "tileloadd tmm6, [{w} + {width}*1]",
                "tileloadd tmm7, [{w} + {width}*1 + 64]",
                "tileloaddt1 tmm5, [{x} + {line}*1 + 1024]",
                "tdpbssd tmm0, tmm4, tmm6",
                "tdpbssd tmm1, tmm4, tmm7",
                "tdpbssd tmm2, tmm5, tmm6",
                "tdpbssd tmm3, tmm5, tmm7",
                x = in(reg) x.as_ptr(),
                w = in(reg) w.as_ptr(),
                line = in(reg) ROW_BYTES,
                width = in(reg) width,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(readonly, nostack, preserves_flags),
            );
            while pieces * steps < (step + 1) * (ROWS / packed::PIECE) {
                meanwhile();
                pieces += 1;
            }
        }
        asm!(
            "tilestored [{acc} + {width}*1], tmm0",
            "tilestored [{acc} + {width}*1 + 64], tmm1",
            "tilestored [{acc} + {width}*1 + 2048], tmm2",
            "tilestored [{acc} + {width}*1 + 2112], tmm3",
            width = in(reg) width,
            acc = in(reg) acc.as_mut_ptr(),
            options(nostack, preserves_flags),
        );
    }
}

/// Tile products in registers; returns how many operations, two for each product of codes.
///
/// # Safety
///
/// The machine has [`crate::isa::Isa::Amx`].
pub(in super::super) unsafe fn burst(repeats: usize) -> u64 {
    // SAFETY: by the contract; the loop reads and writes tile registers only.
    unsafe {
        let _tiles = Tiles::configure();
        asm!(
            "2:",
            "tdpbssd tmm0, tmm4, tmm6",
            "tdpbssd tmm1, tmm4, tmm7",
            "tdpbssd tmm2, tmm5, tmm6",
            "tdpbssd tmm3, tmm5, tmm7",
            "dec {repeats}",
            "jnz 2b",
            repeats = inout(reg) repeats => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            options(nomem, nostack),
        );
    }
    (repeats * 4 * 2 * SIDE * SIDE * ROW_BYTES) as u64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::isa::Isa;
    use crate::kernels::columns::SplitColumns;
    use crate::kernels::matmul_i8::Sums;
    use ndarray::Array2;

    /// The same with `tdpbssd` and the tile loads in scalar code, for machines without them.
    struct Emulated;

    impl Tile for Emulated {
        const GROUP: usize = Amx::GROUP;
        const K_MULTIPLE: usize = Amx::K_MULTIPLE;
        const ROWS: usize = Amx::ROWS;

        fn pack_rows(rows: &[i8], k: usize, words: &mut [i32]) {
            Amx::pack_rows(rows, k, words);
        }

        fn start(sum: i32) -> i32 {
            Amx::start(sum)
        }

        fn pack(weight: &[i8], k: usize, panel: &mut [Words]) {
            Amx::pack(weight, k, panel);
        }

        fn multiply(
            words: &[i32],
            panel: &[Words],
            _: &[i32],
            acc: &mut [Words],
            mut meanwhile: impl FnMut(),
        ) {
            let lines = words.as_chunks::<SIDE>().0;
            for (tile, acc) in acc.chunks_exact_mut(SIDE).enumerate() {
                // Some of the pieces, to see that the rest comes too.
                meanwhile();
                for half in 0..2 {
                    let mut sums = [[0; SIDE]; SIDE];
                    for (step, panel) in panel.chunks_exact(SIDE).enumerate() {
                        let a = lines[ROWS * step + SIDE * tile..][..SIDE]
                            .try_into()
                            .unwrap();
                        let b: [[i32; SIDE]; SIDE] = std::array::from_fn(|i| {
                            panel[i][SIDE * half..][..SIDE].try_into().unwrap()
                        });
                        tdpbssd(&mut sums, a, &b);
                    }
                    for (acc, sums) in acc.iter_mut().zip(sums) {
                        acc[SIDE * half..][..SIDE].copy_from_slice(&sums);
                    }
                }
            }
        }

        fn panel<E: Epilogue>(job: &Job<E>, x: &Rows, p: usize) -> Status {
            packed::panel::<Emulated, E>(job, x, p)
        }
    }

    /// Intel's definition: dst[m][n] += Σ_k Σ_i a[m][k].byte[i] · b[k][n].byte[i].
    fn tdpbssd(dst: &mut [[i32; SIDE]; SIDE], a: &[[i32; SIDE]; SIDE], b: &[[i32; SIDE]; SIDE]) {
        for m in 0..SIDE {
            for k in 0..SIDE {
                for n in 0..SIDE {
                    for (a, b) in a[m][k].to_le_bytes().into_iter().zip(b[k][n].to_le_bytes()) {
                        dst[m][n] += i32::from(a as i8) * i32::from(b as i8);
                    }
                }
            }
        }
    }

    #[test]
    fn packing_is_what_the_tiles_expect() {
        if !Isa::available().contains(&Isa::Avx512) {
            eprintln!("not run: no AVX-512");
            return;
        }
        assert_eq!(size_of::<Configuration>(), 64);
        for l in [1, 15, 16, 17, 31, 32, 33, 65] {
            for n in [1, 16, 31, 32, 33, 64, 70] {
                for k in [1, 3, 4, 5, 63, 64, 65, 128, 130] {
                    let code =
                        |i: usize| ((i as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 56) as i8;
                    let x = Array2::from_shape_fn((l, k), |(r, i)| code(r * 1009 + i));
                    let weight = Array2::from_shape_fn((n, k), |(j, i)| code(j * 2003 + i + 77));
                    let mut out = Array2::zeros((l, n));
                    let job = Job {
                        x: x.as_slice().unwrap(),
                        weight: super::super::WeightRows::Int8(weight.as_slice().unwrap()),
                        k,
                        out: SplitColumns::new(&mut out),
                        epilogue: &Sums,
                    };
                    let _ = packed::run::<Emulated, Sums>(&job);
                    for r in 0..l {
                        for j in 0..n {
                            let want: i32 = (0..k)
                                .map(|i| i32::from(x[(r, i)]) * i32::from(weight[(j, i)]))
                                .sum();
                            assert_eq!(out[(r, j)], want, "{l} {n} {k}: {r} {j}");
                        }
                    }
                }
            }
        }
    }
}
