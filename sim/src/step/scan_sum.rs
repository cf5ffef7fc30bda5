//! The recurrence token after token, with a sum over states that is a tree: PyTorch's `(x * C).sum(-1)`.
//!
//! States go through a chunk of tokens one after another; their products go on a stack of partial sums. The
//! order of the sum is the order of the states and, for each, how many times the two sums on top become one.

use super::scan_formula::Formula;
use super::scan_tile::{Recurrence, Scratch, Tile};
use crate::arith::real::{Lanes, RealMath, lanes};
use crate::profile::SumOrder;

/// Tokens whose values fit the first-level cache.
const CHUNK: usize = 64;

/// A state's product on its way into the sum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Term {
    /// n.
    pub state: usize,
    /// Additions of the two sums on top of the stack that follow it.
    pub merges: usize,
}

/// The terms of a sum over N states.
pub(super) fn terms(order: SumOrder, states: usize) -> Vec<Term> {
    let mut terms = Vec::with_capacity(states);
    match order {
        SumOrder::Ascending => ascending(0..states, &mut terms),
        SumOrder::Halves => halves(0, 1, states, &mut terms),
        SumOrder::EightLanes => {
            for lane in 0..states.min(8) {
                ascending((lane..states).step_by(8), &mut terms);
                if let (Some(last), true) = (terms.last_mut(), lane > 0) {
                    last.merges += 1;
                }
            }
        }
    }
    terms
}

/// One after another.
fn ascending(states: impl Iterator<Item = usize>, terms: &mut Vec<Term>) {
    terms.extend(states.enumerate().map(|(i, state)| Term {
        state,
        merges: usize::from(i > 0),
    }));
}

/// `v[0..h] ⊕ v[h..2h]` until one is left: the sum over every `step`-th state from `first` on is that over
/// every second of them and that over the others.
fn halves(first: usize, step: usize, states: usize, terms: &mut Vec<Term>) {
    if first + step >= states {
        let (state, merges) = (first, 0);
        terms.push(Term { state, merges });
        return;
    }
    halves(first, 2 * step, states, terms);
    halves(first + step, 2 * step, states, terms);
    if let Some(last) = terms.last_mut() {
        last.merges += 1;
    }
}

pub(super) struct SummedScan;

impl<R: RealMath, F: Formula<R>> Recurrence<R, F> for SummedScan {
    fn chunk(_: usize) -> usize {
        CHUNK
    }

    fn decays(_: usize, _: usize, _: bool) -> usize {
        CHUNK
    }

    fn terms(order: SumOrder, states: usize) -> Vec<Term> {
        terms(order, states)
    }

    #[inline(always)]
    fn advance(tile: &Tile, scratch: &mut Scratch, first: usize, tokens: usize, _: usize) {
        let states = scratch.state.len();
        if tile.separate_by_table::<R>(scratch, first, tokens) {
            return;
        }
        tile.decays::<R>(scratch, first, 0..tokens);
        let mut depth = 0;
        for term in tile.terms {
            let n = term.state;
            let mut x = scratch.state[n];
            // As slices of one length: the loop then has no pointers to fetch and no bounds to check.
            let decay = scratch.decay[n..].iter().step_by(states);
            let (drive, u) = (&scratch.drive[..tokens], &scratch.u[..tokens]);
            let from = first * states + n;
            let b = tile.b[from..].iter().step_by(states);
            let c = tile.c[from..].iter().step_by(states);
            let pushes = term.merges == 0;
            depth += usize::from(pushes);
            let top = &mut scratch.sums[(depth - 1) * tokens..][..tokens];
            let lanes_of_tokens = decay.zip(drive).zip(u).zip(top.iter_mut());
            for ((((decay, drive), u), sum), (b, c)) in lanes_of_tokens.zip(b.zip(c)) {
                let input = tile.input::<R, F>(*b, *drive, *u);
                let before = x;
                x = lanes(|e| F::update(decay[e], before[e], input[e]));
                let product = lanes(|e| R::mul(x[e], *c));
                *sum = if pushes {
                    product
                } else {
                    added::<R>(sum, &product)
                };
            }
            scratch.state[n] = x;
            for _ in 1..term.merges {
                depth -= 1;
                let (left, right) = scratch.sums.split_at_mut(depth * tokens);
                for (left, right) in left[(depth - 1) * tokens..].iter_mut().zip(&*right) {
                    *left = added::<R>(left, right);
                }
            }
        }
        scratch.out[..tokens].copy_from_slice(&scratch.sums[..tokens]);
    }
}

#[inline(always)]
fn added<R: RealMath>(a: &Lanes, b: &Lanes) -> Lanes {
    lanes(|e| R::add(a[e], b[e]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum that a stack of strings makes.
    fn written(order: SumOrder, states: usize) -> String {
        let mut stack: Vec<String> = Vec::new();
        for term in terms(order, states) {
            stack.push(term.state.to_string());
            for _ in 0..term.merges {
                let (b, a) = (stack.pop().unwrap(), stack.pop().unwrap());
                stack.push(format!("({a}+{b})"));
            }
        }
        assert_eq!(stack.len(), 1);
        stack.remove(0)
    }

    #[test]
    fn orders_as_they_are_stated() {
        assert_eq!(written(SumOrder::Ascending, 4), "(((0+1)+2)+3)");
        assert_eq!(written(SumOrder::Halves, 4), "((0+2)+(1+3))");
        assert_eq!(
            written(SumOrder::Halves, 8),
            "(((0+4)+(2+6))+((1+5)+(3+7)))"
        );
        assert_eq!(written(SumOrder::Halves, 3), "((0+2)+1)");
        let lanes = "((((((((0+8)+(1+9))+(2+10))+(3+11))+(4+12))+(5+13))+(6+14))+(7+15))";
        assert_eq!(written(SumOrder::EightLanes, 16), lanes);
        assert_eq!(written(SumOrder::EightLanes, 3), "((0+1)+2)");
        for order in SumOrder::ALL {
            assert_eq!(written(order, 1), "0");
            for states in [5, 16, 17, 64, 256] {
                let mut each: Vec<usize> = terms(order, states).iter().map(|t| t.state).collect();
                each.sort_unstable();
                assert_eq!(each, (0..states).collect::<Vec<_>>());
                assert!(terms(order, states).iter().all(|t| t.merges < 10));
            }
        }
    }
}
