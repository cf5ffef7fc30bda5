//! The formulas of the selective scan: how its operations are grouped and rounded.
//! Source: `docs/arithmetic.md`, "The rules of each arithmetic".

use crate::arith::real::{LANES, RealMath};

/// The formula of a scan: how its operations are grouped and rounded.
pub(super) trait Formula<R: RealMath>: Copy + Send + Sync {
    /// dt before the softplus; `bias` is dequantized already.
    fn dt(scale: f32, dt: f32, bias: f32) -> f32;
    /// The output before the first state is added; `skip` is s_D ⊗ q_D.
    fn first_output(skip: f32, u: f32) -> f32;
    /// What all states share of what enters them.
    fn drive(delta: f32, u: f32) -> f32;
    /// What enters a state.
    fn input(b: f32, drive: f32, u: f32) -> f32;
    /// The next state.
    fn update(decay: f32, x: f32, input: f32) -> f32;
    /// The output with one more state.
    fn accumulate(x: f32, c: f32, out: f32) -> f32;
    /// The output after the last state, before the gate.
    fn last_output(out: f32, skip: f32, u: f32) -> f32;
    /// The gated outputs, from the outputs and z.
    fn gate(out: &mut [f32], z: &[f32]);
    /// What z alone decides of a gated output.
    fn gate_part(z: f32) -> f32;
    /// [`Formula::gate`] of one output, from z and `gate_part(z)`.
    fn gated(out: f32, z: f32, part: f32) -> f32;
}

/// The CUDA prefill kernel's formula.
#[derive(Clone, Copy)]
pub(super) struct Fused;

impl<R: RealMath> Formula<R> for Fused {
    #[inline(always)]
    fn dt(scale: f32, dt: f32, bias: f32) -> f32 {
        R::fma(scale, dt, bias)
    }
    #[inline(always)]
    fn first_output(skip: f32, u: f32) -> f32 {
        R::mul(skip, u)
    }
    #[inline(always)]
    fn drive(delta: f32, u: f32) -> f32 {
        R::mul(delta, u)
    }
    #[inline(always)]
    fn input(b: f32, drive: f32, _: f32) -> f32 {
        R::mul(b, drive)
    }
    #[inline(always)]
    fn update(decay: f32, x: f32, input: f32) -> f32 {
        R::fma(decay, x, input)
    }
    #[inline(always)]
    fn accumulate(x: f32, c: f32, out: f32) -> f32 {
        R::fma(x, c, out)
    }
    #[inline(always)]
    fn last_output(out: f32, _: f32, _: f32) -> f32 {
        out
    }
    #[inline(always)]
    fn gate(out: &mut [f32], z: &[f32]) {
        for (out, z) in out.iter_mut().zip(z) {
            *out = R::mul(*out, *z);
        }
        R::times_sigmoid_slice(out, z);
    }
    #[inline(always)]
    fn gate_part(z: f32) -> f32 {
        R::sigmoid_divisor(z)
    }
    #[inline(always)]
    fn gated(out: f32, z: f32, divisor: f32) -> f32 {
        R::by_sigmoid(R::mul(out, z), divisor)
    }
}

/// PyTorch's formula: every operation rounded on its own.
#[derive(Clone, Copy)]
pub(super) struct Separate;

impl<R: RealMath> Formula<R> for Separate {
    #[inline(always)]
    fn dt(scale: f32, dt: f32, bias: f32) -> f32 {
        R::add(R::mul(dt, scale), bias)
    }
    #[inline(always)]
    fn first_output(_: f32, _: f32) -> f32 {
        // The sum starts with its first term.
        -0.0
    }
    #[inline(always)]
    fn drive(delta: f32, _: f32) -> f32 {
        delta
    }
    #[inline(always)]
    fn input(b: f32, delta: f32, u: f32) -> f32 {
        R::mul(R::mul(delta, b), u)
    }
    #[inline(always)]
    fn update(decay: f32, x: f32, input: f32) -> f32 {
        R::add(R::mul(decay, x), input)
    }
    #[inline(always)]
    fn accumulate(x: f32, c: f32, out: f32) -> f32 {
        R::add(out, R::mul(x, c))
    }
    #[inline(always)]
    fn last_output(out: f32, skip: f32, u: f32) -> f32 {
        R::add(out, R::mul(u, skip))
    }
    #[inline(always)]
    fn gate(out: &mut [f32], z: &[f32]) {
        for (out, z) in out.chunks_mut(LANES).zip(z.chunks(LANES)) {
            let mut gate = [0.0; LANES];
            let gate = &mut gate[..z.len()];
            gate.copy_from_slice(z);
            R::silu_slice(gate);
            for (out, gate) in out.iter_mut().zip(gate) {
                *out = R::mul(*out, *gate);
            }
        }
    }
    #[inline(always)]
    fn gate_part(z: f32) -> f32 {
        R::times_sigmoid(z, z)
    }
    #[inline(always)]
    fn gated(out: f32, _: f32, silu: f32) -> f32 {
        R::mul(out, silu)
    }
}

/// The CUDA decode kernel's formula. Its sum over states is grouped, so it accumulates in
/// [`GroupedUpdate`], not here.
#[derive(Clone, Copy)]
pub(super) struct Grouped;

impl<R: RealMath> Formula<R> for Grouped {
    #[inline(always)]
    fn dt(scale: f32, dt: f32, bias: f32) -> f32 {
        R::fma(scale, dt, bias)
    }
    #[inline(always)]
    fn first_output(_: f32, _: f32) -> f32 {
        0.0
    }
    #[inline(always)]
    fn drive(delta: f32, _: f32) -> f32 {
        delta
    }
    #[inline(always)]
    fn input(b: f32, delta: f32, u: f32) -> f32 {
        R::mul(R::mul(b, delta), u)
    }
    #[inline(always)]
    fn update(decay: f32, x: f32, input: f32) -> f32 {
        R::fma(x, decay, input)
    }
    #[inline(always)]
    fn accumulate(x: f32, c: f32, out: f32) -> f32 {
        R::fma(x, c, out)
    }
    #[inline(always)]
    fn last_output(out: f32, skip: f32, u: f32) -> f32 {
        R::fma(skip, u, out)
    }
    #[inline(always)]
    fn gate(out: &mut [f32], z: &[f32]) {
        for (out, z) in out.iter_mut().zip(z) {
            let part = <Self as Formula<R>>::gate_part(*z);
            *out = <Self as Formula<R>>::gated(*out, *z, part);
        }
    }
    #[inline(always)]
    fn gate_part(z: f32) -> f32 {
        let sigmoid = R::div(1.0, R::add(R::exp_neg(z), 1.0));
        R::mul(z, sigmoid)
    }
    #[inline(always)]
    fn gated(out: f32, _: f32, gate: f32) -> f32 {
        R::mul(out, gate)
    }
}
