//! The most likely next token without computing every logit.
//!
//! The head is nearly half of what a decode reads. An INT8 copy of it, with what each row lost by being
//! rounded, puts every logit between two bounds. Few logits can then be the largest, and only these are computed, by the
//! head's own arithmetic: the token is that of the whole row of logits, for half the head's bytes.
//!
//! | | |
//! |---|---|
//! | w | a row of the head; `w = s·q + r` with INT8 codes q |
//! | x | the head's input; `x = t·p + e` with INT8 codes p |
//! | \|w·x − s·t·(q·p)\| | ≤ ‖r‖‖x‖ + (‖w‖ + ‖r‖)‖e‖, Cauchy and Schwarz |
//! | \|w·x − the sum by fma in FP32\| | ≤ γ‖w‖‖x‖ + K·2⁻¹⁴⁹, γ = K·2⁻²⁴/(1 − K·2⁻²⁴) |

use crate::arith::binary16::from_f16;
use crate::arith::requant::{QuantRule, to_f16};
use crate::arith::saturate::Overflow;
use crate::isa::{Kernel, dispatch};
use crate::kernels::matmul_i8::{Sums, matmul_i8};
use crate::kernels::pages;
use crate::quant::Scale;
use half::f16;
use ndarray::{Array2, ArrayView2};
use rayon::prelude::*;

/// Above this a logit may leave binary16, and all are computed, so that infinities are seen.
const LARGEST_LOGIT: f32 = 60_000.0;
/// More than the bounds' own rounding: a few units of 2⁻²⁴ each.
const SLACK: f32 = 2e-6;
/// Rows that a thread searches at once.
const PART: usize = 1 << 12;
/// Numbers side by side, so that a loop is not one chain of sums or maxima.
const SIDE: usize = 16;
/// The codes of either. What they lose is measured, so that any would do.
const RULE: QuantRule = QuantRule {
    overflow: Overflow::SaturateSymmetric,
    ..QuantRule::NEAREST_EVEN
};

/// What bounds the logits of a binary16 head.
#[derive(Debug)]
pub struct HeadBounds {
    /// q, `[V, K]`.
    codes: Array2<i8>,
    /// s of each row.
    scales: Vec<f32>,
    /// At least ‖r‖ of each row.
    lost: Vec<f32>,
    /// At least ‖w‖ of each row.
    norms: Vec<f32>,
}

impl HeadBounds {
    /// Those of a head `[V, K]` of finite weights.
    pub fn of(weight: ArrayView2<f16>) -> Self {
        let (v, k) = weight.dim();
        let mut codes = Array2::zeros((v, k));
        let rows = codes.as_slice_mut().expect("fresh arrays are row-major");
        let weight = weight.as_slice().expect("weights are row-major");
        let rows: Vec<[f32; 3]> = (rows.par_chunks_exact_mut(k))
            .zip(weight.par_chunks_exact(k))
            .with_min_len(64)
            .map(|(codes, weight)| dispatch(Quantize { weight, codes }))
            .collect();
        let column = |i: usize| rows.iter().map(|row| row[i]).collect();
        pages::enlarge(codes.as_slice().unwrap_or(&[]));
        Self {
            codes,
            scales: column(0),
            lost: column(1),
            norms: column(2),
        }
    }

    /// Bytes read a token.
    pub fn bytes(&self) -> usize {
        self.codes.len() + 3 * size_of::<f32>() * self.scales.len()
    }

    /// The rows, ascending, that may have the largest logit in binary16 or in FP32 for an input `[K]`. `None` where
    /// the bounds say nothing: an input that is not finite, a logit that may leave binary16.
    pub fn candidates(&self, x: &[f32]) -> Option<Vec<usize>> {
        let input = Input::new(x)?;
        let mut sums = Array2::zeros((1, self.scales.len()));
        let _ = matmul_i8(&input.codes, self.codes.view(), &mut sums, &Sums);
        let sums = sums.as_slice().expect("fresh arrays are row-major");
        let extremes: Vec<Extremes> = (sums.par_chunks(PART).enumerate())
            .map(|(part, sums)| {
                let first = part * PART;
                dispatch(Search(&self.rows(first, sums, &input)))
            })
            .collect();
        let most = |f: fn(&Extremes) -> f32| extremes.iter().map(f).fold(f32::MIN, f32::max);
        let (highest, lowest) = (most(|e| e.highest), most(|e| -e.lowest));
        if !(highest < LARGEST_LOGIT && lowest < LARGEST_LOGIT) {
            return None;
        }
        // Rounding to binary16 keeps order but not distance: whatever may round to the same is in question.
        let below = f32::from(next_below(to_f16(most(|e| e.floor))));
        let mut candidates = Vec::new();
        for (part, sums) in sums.chunks(PART).enumerate() {
            if extremes[part].highest > below {
                let rows = self.rows(part * PART, sums, &input);
                let may = |row: &usize| rows.bounds_of(*row).1 > below;
                candidates.extend((0..sums.len()).filter(may).map(|row| part * PART + row));
            }
        }
        Some(candidates)
    }

    fn rows<'a>(&'a self, first: usize, sums: &'a [i32], input: &'a Input) -> Rows<'a> {
        let rows = first..first + sums.len();
        Rows {
            sums,
            scales: &self.scales[rows.clone()],
            lost: &self.lost[rows.clone()],
            norms: &self.norms[rows],
            input,
        }
    }
}

/// One row to codes; its scale, what was lost, its norm.
struct Quantize<'a> {
    weight: &'a [f16],
    codes: &'a mut [i8],
}

impl Kernel for Quantize<'_> {
    type Output = [f32; 3];

    #[inline(always)]
    fn run(self) -> [f32; 3] {
        let Self { weight, codes } = self;
        let magnitude = |w: &f16| w.to_bits() & 0x7fff;
        let largest = weight.iter().map(magnitude).fold(0, u16::max);
        let scale = scale_for(from_f16(f16::from_bits(largest)));
        let (mut lost, mut norm) = ([0f64; SIDE], [0f64; SIDE]);
        let rows = codes.chunks_mut(SIDE).zip(weight.chunks(SIDE));
        for (codes, weight) in rows {
            for (i, (code, w)) in codes.iter_mut().zip(weight).enumerate() {
                let w = from_f16(*w);
                *code = RULE.quantize(w, scale);
                // Products of 24 by 7 bits and their differences are exact.
                let r = f64::from(w) - f64::from(scale.get()) * f64::from(*code);
                lost[i] += r * r;
                norm[i] += f64::from(w) * f64::from(w);
            }
        }
        let root = |squares: [f64; SIDE]| at_least(squares.into_iter().sum::<f64>().sqrt());
        [scale.get(), root(lost), root(norm)]
    }
}

/// An input as INT8 codes.
struct Input {
    /// p, `[1, K]`.
    codes: Array2<i8>,
    /// t.
    scale: f32,
    /// At least ‖x‖.
    norm: f32,
    /// At least ‖e‖.
    lost: f32,
    /// γ of sums of K products.
    gamma: f32,
    /// What results below the normal numbers lose, here too.
    underflow: f32,
}

impl Input {
    fn new(x: &[f32]) -> Option<Self> {
        let largest = x.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        // Of larger ones, and of NaN, nothing is said: so all bounds are finite.
        if !x.iter().all(|v| v.abs() < 1e20) {
            return None;
        }
        let scale = scale_for(largest);
        let (mut norm, mut lost) = (0.0, 0.0);
        let code = |v: &f32| {
            let p = RULE.quantize(*v, scale);
            let v = f64::from(*v);
            let e = v - f64::from(scale.get()) * f64::from(p);
            lost += e * e;
            norm += v * v;
            p
        };
        let codes = x.iter().map(code).collect();
        let codes = Array2::from_shape_vec((1, x.len()), codes).expect("one row");
        let terms = x.len() as f64;
        let unit = terms * 2f64.powi(-24);
        Some(Self {
            codes,
            scale: scale.get(),
            norm: at_least(norm.sqrt()),
            lost: at_least(lost.sqrt()),
            gamma: at_least(unit / (1.0 - unit)),
            underflow: at_least((terms + 16.0) * 2f64.powi(-149)),
        })
    }
}

/// The step of codes up to a largest magnitude, which may be zero.
fn scale_for(largest: f32) -> Scale {
    Scale::from_absmax(largest, f32::MIN_POSITIVE).expect("finite and at least the smallest scale")
}

/// An f32 that is no smaller, also than what the sum of squares would be without rounding.
fn at_least(v: f64) -> f32 {
    ((v * (1.0 + 1e-9)) as f32).next_up()
}

fn next_below(v: f16) -> f16 {
    match v.to_bits() {
        0 => f16::from_bits(0x8001),
        bits if v.is_sign_negative() => f16::from_bits(bits + 1),
        bits => f16::from_bits(bits - 1),
    }
}

/// The sums of an input's codes with those of some rows.
struct Rows<'a> {
    sums: &'a [i32],
    scales: &'a [f32],
    lost: &'a [f32],
    norms: &'a [f32],
    input: &'a Input,
}

impl Rows<'_> {
    /// Between what a logit lies before it is rounded to the output's type.
    #[inline(always)]
    fn bounds_of(&self, row: usize) -> (f32, f32) {
        let x = self.input;
        // Both scales' product may be below the normal numbers, where it would lose more than `underflow` holds.
        let about = self.scales[row] * (x.scale * self.sums[row] as f32);
        let (norm, lost) = (self.norms[row], self.lost[row]);
        let error = lost * x.norm + (norm + lost) * x.lost + x.gamma * norm * x.norm + x.underflow;
        let error = error + (error + about.abs()) * SLACK;
        (about - error, about + error)
    }
}

/// Of the bounds of some rows.
struct Extremes {
    /// The lowest of the lower ones.
    lowest: f32,
    /// The highest of the lower ones: the largest logit is not below.
    floor: f32,
    /// The highest of the upper ones.
    highest: f32,
}

struct Search<'a>(&'a Rows<'a>);

impl Kernel for Search<'_> {
    type Output = Extremes;

    #[inline(always)]
    fn run(self) -> Extremes {
        let rows = self.0;
        let count = rows.sums.len();
        // Slices of one length, so that the loop has no bounds to check and becomes vectors.
        let rows = Rows {
            sums: &rows.sums[..count],
            scales: &rows.scales[..count],
            lost: &rows.lost[..count],
            norms: &rows.norms[..count],
            input: rows.input,
        };
        let mut lowest = [f32::MAX; SIDE];
        let (mut floor, mut highest) = ([f32::MIN; SIDE], [f32::MIN; SIDE]);
        let mut see = |row: usize, i: usize| {
            let (low, high) = rows.bounds_of(row);
            lowest[i] = if low < lowest[i] { low } else { lowest[i] };
            floor[i] = if low > floor[i] { low } else { floor[i] };
            highest[i] = if high > highest[i] { high } else { highest[i] };
        };
        for first in (0..count / SIDE * SIDE).step_by(SIDE) {
            for i in 0..SIDE {
                see(first + i, i);
            }
        }
        for row in count / SIDE * SIDE..count {
            see(row, 0);
        }
        Extremes {
            lowest: lowest.into_iter().fold(f32::MAX, f32::min),
            floor: floor.into_iter().fold(f32::MIN, f32::max),
            highest: highest.into_iter().fold(f32::MIN, f32::max),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::matmul_f32::RealWeight;
    use crate::random::Stream;
    use crate::score::greedy;
    use proptest::prelude::*;

    fn reals(seed: u64, count: usize) -> impl Iterator<Item = f32> {
        (0..count).map(move |i| (Stream(seed).uniform(i) - 0.5) as f32)
    }

    fn head(seed: u64, v: usize, k: usize, size: f32) -> Array2<f16> {
        let values = reals(seed, v * k)
            .map(|w| f16::from_f32(size * w))
            .collect();
        Array2::from_shape_vec((v, k), values).unwrap()
    }

    /// All logits, as the head computes them.
    fn logits(head: &Array2<f16>, x: &[f32]) -> Vec<f32> {
        let x = Array2::from_shape_vec((1, x.len()), x.to_vec()).unwrap();
        RealWeight::F16(head.view())
            .multiply(&x)
            .into_raw_vec_and_offset()
            .0
    }

    proptest! {
        /// Every logit lies between its bounds, and the token of all logits is a candidate, whichever type they are
        /// rounded to; equal rows are candidates together.
        #[test]
        fn the_largest_logit_is_a_candidate(
            seed in any::<u64>(),
            v in 1usize..80,
            k in 1usize..200,
            size in prop::sample::select(vec![1e-7f32, 1e-3, 1.0, 300.0]),
            spread in prop::sample::select(vec![1e-36f32, 1e-30, 1e-4, 1.0, 20.0]),
            twin in any::<bool>(),
        ) {
            let mut head = head(seed, v, k, size);
            if twin {
                let row = head.row(0).to_owned();
                head.row_mut(v - 1).assign(&row);
            }
            let x: Vec<f32> = reals(seed ^ 1, k).map(|v| spread * v).collect();
            let all = logits(&head, &x);
            let bounds = HeadBounds::of(head.view());
            let Some(candidates) = bounds.candidates(&x) else {
                prop_assert!(all.iter().any(|v| v.abs() > 0.9 * LARGEST_LOGIT));
                return Ok(());
            };
            let narrow: Vec<f32> = all.iter().map(|v| to_f16(*v).into()).collect();
            for all in [&all, &narrow] {
                let token = greedy(all) as usize;
                prop_assert!(candidates.contains(&token), "{token} of {candidates:?}");
                for (row, v) in all.iter().enumerate() {
                    prop_assert!(*v < all[token] || candidates.contains(&row));
                }
            }
        }
    }

    /// The copy is worth it: of many rows few are left.
    #[test]
    fn candidates_are_few() {
        let head = head(3, 8192, 256, 0.1);
        let x: Vec<f32> = reals(4, 256).collect();
        let candidates = HeadBounds::of(head.view()).candidates(&x).unwrap();
        assert!((1..82).contains(&candidates.len()), "{}", candidates.len());
    }

    #[test]
    fn what_cannot_be_bounded_is_left_to_all_logits() {
        let bounds = HeadBounds::of(head(5, 40, 64, 1000.0).view());
        let mut x = vec![0.01f32; 64];
        assert!(bounds.candidates(&x).is_some());
        for wrong in [f32::NAN, f32::INFINITY, 1e6] {
            x[7] = wrong;
            assert_eq!(bounds.candidates(&x), None, "{wrong}");
        }
        // Nothing to choose by: all are equal.
        assert_eq!(bounds.candidates(&[0.0; 64]).map(|c| c.len()), Some(40));
    }
}
