//! Edits that one of the two readings of the convolution's sum has: SiLU's factor or its sigmoid.

use crate::diagnosis::diagnose::edit::{Around, Change, Edit, Edits, OfFormula};
use crate::diagnosis::diagnose::formula::Formula;
use std::sync::Arc;

/// What is edited of a sum and its operands, and not what becomes of it.
const OF_SUMS: [&str; 9] = [
    "bias",
    "taps",
    "weight",
    "input",
    "conv",
    "history",
    "bias scale",
    "weight scale",
    "input scale",
];

/// Edits that need no number to be found.
const SIMPLE: usize = 3;

/// A change of a copy, which makes what the sigmoid gets, or else the factor.
fn in_half(edit: &Edit, of_sigmoid: bool) -> OfFormula {
    let changes = edit.change.formula.clone();
    Arc::new(move |formula: &mut Formula, around: Around| {
        let mut copy = formula.clone();
        changes.iter().for_each(|change| change(&mut copy, around));
        let (Formula::Conv(own), Formula::Conv(mut edited)) = (formula, copy) else {
            return;
        };
        if of_sigmoid {
            own.sigmoid_of = Some(edited);
        } else {
            edited.sigmoid_of = Some(own.clone());
            *own = edited;
        }
    })
}

impl Edits<'_, '_> {
    /// Of every simple edit so far of the convolution's sum, one for each of SiLU's two readings.
    pub(super) fn in_half_of_silu(&mut self) {
        let simple = |e: &&Edit| {
            e.rank <= SIMPLE && e.changes_formula() && OF_SUMS.contains(&e.site.as_str())
        };
        let mut found = Vec::new();
        for edit in self.all.iter().filter(simple) {
            for (words, of_sigmoid) in [
                ("in what SiLU's sigmoid gets alone", true),
                ("in SiLU's factor alone", false),
            ] {
                found.push(Edit {
                    words: format!("{}, {words}", edit.words),
                    rank: edit.rank + 2,
                    change: Change {
                        formula: vec![in_half(edit, of_sigmoid)],
                        result: Vec::new(),
                    },
                    ..edit.clone()
                });
            }
        }
        self.all.extend(found);
    }
}
