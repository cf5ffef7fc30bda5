//! The recurrence of the selective scan with AVX-512, for 16 channels of 16 states whose decays stand in a table.
//! The scalar code is in [`crate::step`] (`scan_formula` and the orders), operation for operation.
//!
//! A lane is a channel, a register a state: the 16 decays of a token are 16 lines of the table, turned while loading,
//! and never written anywhere.

use super::transpose::turned_quarters;
use crate::profile::SumOrder;
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

/// The maps `x → a·x + b` of consecutive tokens as one, for each state: the first as it is, then
/// `a ← decay ⊗ a`, `b ← fma(decay, b, B ⊗ drive)`.
///
/// # Safety
///
/// The machine has [`crate::isa::Isa::Avx512`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
pub(crate) unsafe fn fold<const FLUSHED: bool>(
    tokens: Tokens,
    a: &mut [[f32; N]; N],
    b: &mut [[f32; N]; N],
) {
    let table = tokens.table();
    let maps = a
        .as_chunks_mut::<TOGETHER>()
        .0
        .iter_mut()
        .zip(b.as_chunks_mut::<TOGETHER>().0);
    for (part, (a, b)) in maps.enumerate() {
        let mut maps = [(_mm512_set1_ps(1.0), _mm512_setzero_ps()); TOGETHER];
        for (t, token) in tokens.each().enumerate() {
            let drive = load(token.drive);
            for q in 0..TOGETHER / 4 {
                let decay = decays(table, token.codes, part * TOGETHER / 4 + q);
                for i in 0..4 {
                    let m = 4 * q + i;
                    let factor = _mm512_set1_ps(token.b[part * TOGETHER + m]);
                    let input = mul::<FLUSHED>(factor, drive);
                    maps[m] = match t {
                        0 => (decay[i], input),
                        _ => (
                            mul::<FLUSHED>(decay[i], maps[m].0),
                            fma::<FLUSHED>(decay[i], maps[m].1, input),
                        ),
                    };
                }
            }
        }
        for ((a, b), map) in a.iter_mut().zip(b).zip(maps) {
            store(a, map.0);
            store(b, map.1);
        }
    }
}
