//! The recurrence of the selective scan with AVX-512, for 16 channels of 16 states whose decays stand in a table.
//! The scalar code is in [`crate::step`] (`scan_formula` and the orders), operation for operation.
//!
//! A lane is a channel, a register a state: the 16 decays of a token are 16 lines of the table, turned while loading,
//! and never written anywhere.

use super::transpose::turned_quarters;
use crate::isa::Isa;
use crate::profile::SumOrder;
use crate::step::scan_block::{Map, WARP};
use crate::step::scan_codes::STRIDE;
use std::arch::x86_64::*;

/// Channels, and states of each.
const N: usize = 16;

/// States that go through the tokens together: few enough for registers, and for sums of several tokens under way
/// at once, each a chain.
const TOGETHER: usize = 4;

/// Some tokens of a tile.
#[derive(Clone, Copy)]
pub(crate) struct Tokens<'a> {
    /// Decays: the N of a channel and code at line `channel · STRIDE + code`.
    pub table: &'a [[f32; N]],
    /// The codes of each token's channels, times the bytes of a line.
    pub codes: &'a [[u16; N]],
    /// What all states share of their inputs, token by token.
    pub drive: &'a [[f32; N]],
    /// u, token by token.
    pub u: &'a [[f32; N]],
    /// B, `[tokens, N]`.
    pub b: &'a [f32],
    /// C, `[tokens, N]`.
    pub c: &'a [f32],
}

macro_rules! kernels {
    ($($(#[$meta:meta])* $vis:vis fn $name:ident$(<$(const $g:ident: $gt:ty),*>)?($($arg:tt)*) $(-> $out:ty)? $body:block)*) => {
        $($(#[$meta])*
        #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
        #[inline]
        $vis fn $name$(<$(const $g: $gt),*>)?($($arg)*) $(-> $out)? $body)*
    };
}

kernels! {
    /// A result: subnormals become zeros where the arithmetic flushes.
    fn result<const FLUSHED: bool>(x: __m512) -> __m512 {
        if !FLUSHED {
            return x;
        }
        // Without a mask register: making one takes longer than all of this. Where the exponent is not zero, twice
        // of what is infinity's reaches the sign.
        let bits = _mm512_castps_si512(x);
        let infinity = _mm512_set1_epi32(0x7F80_0000);
        let sum = _mm512_add_epi32(_mm512_and_si512(bits, infinity), infinity);
        let normal = _mm512_srai_epi32::<31>(sum);
        // x & (normal | sign)
        let kept = _mm512_ternarylogic_epi32::<0xE0>(bits, normal, _mm512_set1_epi32(i32::MIN));
        _mm512_castsi512_ps(kept)
    }

    fn mul<const FLUSHED: bool>(a: __m512, b: __m512) -> __m512 {
        result::<FLUSHED>(_mm512_mul_ps(a, b))
    }

    fn add<const FLUSHED: bool>(a: __m512, b: __m512) -> __m512 {
        result::<FLUSHED>(_mm512_add_ps(a, b))
    }

    fn fma<const FLUSHED: bool>(a: __m512, b: __m512, c: __m512) -> __m512 {
        result::<FLUSHED>(_mm512_fmadd_ps(a, b, c))
    }

    fn load(lanes: &[f32; N]) -> __m512 {
        // SAFETY: 16 values.
        unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
    }

    fn store(lanes: &mut [f32; N], v: __m512) {
        // SAFETY: 16 values.
        unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), v) }
    }

    /// Decays of the states 4q to 4q+3.
    fn decays(table: &[[f32; N]; N * STRIDE], codes: &[u16; N], q: usize) -> [__m512; 4] {
        turned_quarters(|lane| {
            // SAFETY: a quarter of the entry of a channel and code, all of which there are.
            unsafe {
                let entries = table.as_ptr().add(lane * STRIDE).cast::<__m128i>().add(q);
                _mm_loadu_si128(entries.byte_add(codes[lane].into()))
            }
        })
        .map(|words| _mm512_castsi512_ps(words))
    }
}

impl<'a> Tokens<'a> {
    /// The table with the length that makes every look-up one that is inside.
    fn table(&self) -> &'a [[f32; N]; N * STRIDE] {
        self.table.first_chunk().expect("entries of all codes")
    }

    /// Codes, drive, u, B and C of each token.
    fn each(self) -> impl Iterator<Item = Token<'a>> {
        let inputs = self.codes.iter().zip(self.drive).zip(self.u);
        let (b, c) = (self.b.as_chunks().0, self.c.as_chunks().0);
        inputs
            .zip(b.iter().zip(c))
            .map(|(((codes, drive), u), (b, c))| Token {
                codes,
                drive,
                u,
                b,
                c,
            })
    }
}

struct Token<'a> {
    codes: &'a [u16; N],
    drive: &'a [f32; N],
    u: &'a [f32; N],
    b: &'a [f32; N],
    c: &'a [f32; N],
}

/// `x ← fma(decay, x, B ⊗ drive)`, `out ← fma(x, C, out)`, n ascending.
///
/// # Safety
///
/// The machine has [`crate::isa::Isa::Avx512`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn fused<const FLUSHED: bool>(
    tokens: Tokens,
    state: &mut [[f32; N]; N],
    out: &mut [[f32; N]],
) {
    match FLUSHED {
        true => fused_together::<FLUSHED, 8>(tokens, state, out),
        false => fused_together::<FLUSHED, 16>(tokens, state, out),
    }
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn fused_together<const FLUSHED: bool, const TOGETHER: usize>(
    tokens: Tokens,
    state: &mut [[f32; N]; N],
    out: &mut [[f32; N]],
) {
    let table = tokens.table();
    for (part, state) in state.as_chunks_mut::<TOGETHER>().0.iter_mut().enumerate() {
        let mut x = [_mm512_setzero_ps(); TOGETHER];
        for (x, state) in x.iter_mut().zip(&*state) {
            *x = load(state);
        }
        for (token, out) in tokens.each().zip(&mut *out) {
            let drive = load(token.drive);
            let mut sum = load(out);
            for q in 0..TOGETHER / 4 {
                let decay = decays(table, token.codes, part * TOGETHER / 4 + q);
                for i in 0..4 {
                    let (m, n) = (4 * q + i, part * TOGETHER + 4 * q + i);
                    let input = mul::<FLUSHED>(_mm512_set1_ps(token.b[n]), drive);
                    x[m] = fma::<FLUSHED>(decay[i], x[m], input);
                    sum = fma::<FLUSHED>(x[m], _mm512_set1_ps(token.c[n]), sum);
                }
            }
            store(out, sum);
        }
        for (state, x) in state.iter_mut().zip(x) {
            store(state, x);
        }
    }
}

/// `x ← (decay ⊗ x) ⊕ ((drive ⊗ B) ⊗ u)`, `out ← Σ x ⊗ C` in an order.
///
/// # Safety
///
/// The machine has [`crate::isa::Isa::Avx512`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn separate<const FLUSHED: bool>(
    order: SumOrder,
    tokens: Tokens,
    state: &mut [[f32; N]; N],
    out: &mut [[f32; N]],
) {
    match order {
        SumOrder::Ascending => separate_in::<FLUSHED, 0>(tokens, state, out),
        SumOrder::Halves => separate_in::<FLUSHED, 1>(tokens, state, out),
        SumOrder::EightLanes => separate_in::<FLUSHED, 2>(tokens, state, out),
    }
}

kernels! {
    fn separate_in<const FLUSHED: bool, const ORDER: usize>(
        tokens: Tokens,
        state: &mut [[f32; N]; N],
        out: &mut [[f32; N]]
    ) {
        let table = tokens.table();
        let mut x = [_mm512_setzero_ps(); N];
        for (x, state) in x.iter_mut().zip(&*state) {
            *x = load(state);
        }
        for (token, out) in tokens.each().zip(out) {
            let (drive, u) = (load(token.drive), load(token.u));
            let mut terms = [_mm512_setzero_ps(); N];
            for q in 0..4 {
                let decay = decays(table, token.codes, q);
                for i in 0..4 {
                    let n = 4 * q + i;
                    let input = mul::<FLUSHED>(drive, _mm512_set1_ps(token.b[n]));
                    let input = mul::<FLUSHED>(input, u);
                    x[n] = add::<FLUSHED>(mul::<FLUSHED>(decay[i], x[n]), input);
                    terms[n] = mul::<FLUSHED>(x[n], _mm512_set1_ps(token.c[n]));
                }
            }
            store(out, sum::<FLUSHED, ORDER>(terms));
        }
        for (state, x) in state.iter_mut().zip(x) {
            store(state, x);
        }
    }

    /// [`SumOrder`], by its number.
    fn sum<const FLUSHED: bool, const ORDER: usize>(mut v: [__m512; N]) -> __m512 {
        // Sums that are added one after another in the end.
        let (halvings, left) = [(0, N), (4, 1), (1, 8)][ORDER];
        for h in 0..halvings {
            let half = N >> (h + 1);
            for i in 0..half {
                v[i] = add::<FLUSHED>(v[i], v[i + half]);
            }
        }
        let mut sum = v[0];
        for v in &v[1..left] {
            sum = add::<FLUSHED>(sum, *v);
        }
        sum
    }
}

/// One token of the decode kernel: `x ← fma(x, decay, (B ⊗ delta) ⊗ u)`, and for each group of four states
/// `x_1 ⊗ C_1`, then fma with those of 0, 2 and 3; returns `(g_0 ⊕ g_2) ⊕ (g_1 ⊕ g_3)`.
///
/// # Safety
///
/// The machine has [`crate::isa::Isa::Avx512`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn grouped<const FLUSHED: bool>(
    decay: &[[f32; N]; N],
    [delta, u]: [&[f32; N]; 2],
    [b, c]: [&[f32; N]; 2],
    state: &mut [[f32; N]; N],
) -> [f32; N] {
    let (delta, u) = (load(delta), load(u));
    let mut groups = [_mm512_setzero_ps(); 4];
    for (j, group) in groups.iter_mut().enumerate() {
        let mut x = [_mm512_setzero_ps(); 4];
        for (i, x) in x.iter_mut().enumerate() {
            let n = 4 * j + i;
            let input = mul::<FLUSHED>(_mm512_set1_ps(b[n]), delta);
            let input = mul::<FLUSHED>(input, u);
            *x = fma::<FLUSHED>(load(&state[n]), load(&decay[n]), input);
            store(&mut state[n], *x);
        }
        *group = mul::<FLUSHED>(x[1], _mm512_set1_ps(c[4 * j + 1]));
        for i in [0, 2, 3] {
            *group = fma::<FLUSHED>(x[i], _mm512_set1_ps(c[4 * j + i]), *group);
        }
    }
    let [g0, g1, g2, g3] = groups;
    let sum = add::<FLUSHED>(add::<FLUSHED>(g0, g2), add::<FLUSHED>(g1, g3));
    let mut out = [0.0; N];
    store(&mut out, sum);
    out
}

/// The maps `x → a·x + b` of consecutive tokens as one, for each state, to the first of each `row` of maps.
///
/// # Safety
///
/// The machine has [`crate::isa::Isa::Avx512`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn fold<const FLUSHED: bool>(tokens: Tokens, maps: &mut [Map], row: usize) {
    let table = tokens.table();
    for part in 0..N / TOGETHER {
        let mut folds = [[_mm512_setzero_ps(); 2]; TOGETHER];
        for (t, token) in tokens.each().enumerate() {
            let drive = load(token.drive);
            for q in 0..TOGETHER / 4 {
                let decay = decays(table, token.codes, part * TOGETHER / 4 + q);
                for i in 0..4 {
                    let m = 4 * q + i;
                    let factor = _mm512_set1_ps(token.b[part * TOGETHER + m]);
                    let map = [decay[i], mul::<FLUSHED>(factor, drive)];
                    folds[m] = match t {
                        0 => map,
                        _ => then::<FLUSHED>(folds[m], map),
                    };
                }
            }
        }
        for (m, fold) in folds.into_iter().enumerate() {
            store_map(&mut maps[(part * TOGETHER + m) * row], fold);
        }
    }
}

/// Inclusive scan of the maps of a warp's threads, if the machine can: offsets 1, 2, 4, 8, 16, each at all threads at
/// once. `flushes`: subnormal results become zeros.
pub(crate) fn kogge_stone(flushes: bool, warp: &mut [Map; WARP]) -> bool {
    if Isa::current() < Isa::Avx512 {
        return false;
    }
    // SAFETY: the instruction set was found.
    unsafe {
        match flushes {
            true => kogge_stone_in::<true>(warp),
            false => kogge_stone_in::<false>(warp),
        }
    }
    true
}

#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
fn kogge_stone_in<const FLUSHED: bool>(warp: &mut [Map; WARP]) {
    // Offsets 1 and 2 in one pass: the maps before, before any offset, and the two after offset 1.
    let mut before = load_map(&warp[0]);
    let [mut second, mut first] = [before; 2];
    for (thread, map) in warp.iter_mut().enumerate().skip(1) {
        let own = load_map(map);
        let after_one = then::<FLUSHED>(before, own);
        let after_two = match thread {
            1 => after_one,
            _ => then::<FLUSHED>(second, after_one),
        };
        store_map(map, after_two);
        (before, second, first) = (own, first, after_one);
    }
    // What remains joins threads whose numbers differ by multiples of 4, few enough for registers.
    for apart in 0..4 {
        let mut maps: [_; WARP / 4] = std::array::from_fn(|i| load_map(&warp[apart + 4 * i]));
        for offset in [1, 2, 4] {
            for i in (offset..maps.len()).rev() {
                maps[i] = then::<FLUSHED>(maps[i - offset], maps[i]);
            }
        }
        for (i, map) in maps.into_iter().enumerate() {
            store_map(&mut warp[apart + 4 * i], map);
        }
    }
}

kernels! {
    fn load_map(map: &Map) -> [__m512; 2] {
        [load(&map.a), load(&map.b)]
    }

    fn store_map(to: &mut Map, [a, b]: [__m512; 2]) {
        store(&mut to.a, a);
        store(&mut to.b, b);
    }

    /// The map of a stretch, then that of the next one.
    fn then<const FLUSHED: bool>(before: [__m512; 2], after: [__m512; 2]) -> [__m512; 2] {
        let a = match FLUSHED {
            true => product_of_decays(after[0], before[0]),
            false => mul::<false>(after[0], before[0]),
        };
        [a, fma::<FLUSHED>(after[0], before[1], after[1])]
    }

    /// The product of two factors that are not negative, a subnormal one a zero.
    ///
    /// Decays of many tokens have such products all the time, and an Intel core takes fifty times as long for one. What
    /// is certain to become zero is therefore not multiplied: of 2^i·(1 + m) and 2^j·(1 + n), which as
    /// words are 127 + i + m and 127 + j + n in units of 2^23, the product is below 2^-126 where i + j + m + n < -126.1875.
    fn product_of_decays(a: __m512, b: __m512) -> __m512 {
        const SMALLEST: i32 = (127 << 23) + (13 << 19);
        // Without the sign that NaN may have.
        let size = |x| _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX));
        let sum = _mm512_add_epi32(size(a), size(b));
        let remains = _mm512_cmpge_epu32_mask(sum, _mm512_set1_epi32(SMALLEST));
        // Not a product under the mask: of that the compiler makes a product, and then a mask.
        result::<true>(_mm512_mul_ps(a, _mm512_maskz_mov_ps(remains, b)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arith::real::{Ieee, RealMath};
    use crate::arith::sfu::CudaFast;
    use crate::random::Stream;
    use crate::step::scan_block::kogge_stone_by_definition;

    fn compare<R: RealMath>(warp: [Map; WARP], what: &str) {
        let (mut want, mut got) = (warp, warp);
        kogge_stone_by_definition::<R>(&mut want);
        assert!(kogge_stone(R::FLUSHES, &mut got));
        for (thread, (want, got)) in want.iter().zip(&got).enumerate() {
            for e in 0..N {
                let pairs = [(want.a[e], got.a[e]), (want.b[e], got.b[e])];
                for (want, got) in pairs {
                    let same = want.to_bits() == got.to_bits() || want.is_nan() && got.is_nan();
                    assert!(
                        same,
                        "{what}, thread {thread}, channel {e}: {want:e}, not {got:e}"
                    );
                }
            }
        }
    }

    /// Maps whose decays are about 2^-range and less, some of them zero or one.
    fn maps(seed: u64, range: f64) -> [Map; WARP] {
        let stream = Stream(seed);
        std::array::from_fn(|thread| {
            let mut map = Map::IDENTITY;
            for e in 0..N {
                let v = |i: usize| stream.uniform((thread * N + e) * 3 + i);
                map.a[e] = match v(2) {
                    ..0.02 => 0.0,
                    ..0.04 => 1.0,
                    _ => CudaFast::operand((-range * v(0)).exp2() as f32),
                };
                map.b[e] = CudaFast::operand((v(1) - 0.5) as f32 * map.a[e]);
            }
            map
        })
    }

    #[test]
    fn a_warp_is_scanned_as_it_is_defined() {
        if !Isa::available().contains(&Isa::Avx512) {
            eprintln!("not run: no AVX-512");
            return;
        }
        for seed in 0..200 {
            for range in [0.1, 2.0, 8.0, 30.0, 126.0] {
                let mut warp = maps(seed, range);
                compare::<Ieee>(warp, "exact");
                compare::<CudaFast>(warp, "flushed");
                warp[3].a[5] = f32::NAN;
                warp[4].a[6] = -f32::NAN;
                warp[7].b[8] = f32::INFINITY;
                compare::<CudaFast>(warp, "with NaN");
            }
        }
    }

    /// Every pair of exponents about the smallest normal product, with mantissas about where it is one.
    #[test]
    fn products_about_the_smallest_normal_number_are_flushed_as_defined() {
        if !Isa::available().contains(&Isa::Avx512) {
            return;
        }
        let mut stream = (0..).map(|i| Stream(9).uniform(i));
        for i in 1..=126u32 {
            for j in (123..=131u32).filter_map(|sum| sum.checked_sub(i)) {
                if !(1..=127).contains(&j) {
                    continue;
                }
                for _ in 0..200 {
                    let mut lanes = [[0.0; N]; 2];
                    for e in 0..N {
                        let m = (stream.next().unwrap() * f64::from(1 << 23)) as u32;
                        let a = f32::from_bits(i << 23 | m);
                        // Half of them about 2^-126 / a.
                        let near = (f32::MIN_POSITIVE / a)
                            .to_bits()
                            .wrapping_add((e as u32) / 2)
                            .wrapping_sub(2);
                        let n = (stream.next().unwrap() * f64::from(1 << 23)) as u32;
                        let b = match e % 2 {
                            0 if f32::from_bits(near) >= f32::MIN_POSITIVE => f32::from_bits(near),
                            _ => f32::from_bits(j << 23 | n),
                        };
                        (lanes[0][e], lanes[1][e]) = (a, b);
                    }
                    let mut got = [0.0; N];
                    // SAFETY: the instruction set was found.
                    unsafe {
                        store(
                            &mut got,
                            product_of_decays(load(&lanes[0]), load(&lanes[1])),
                        )
                    };
                    for e in 0..N {
                        let [a, b] = lanes.map(|lanes| lanes[e]);
                        assert_eq!(
                            got[e].to_bits(),
                            CudaFast::mul(a, b).to_bits(),
                            "{a:e} {b:e}"
                        );
                    }
                }
            }
        }
    }
}
