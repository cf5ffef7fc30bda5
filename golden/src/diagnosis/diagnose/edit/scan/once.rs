//! Edits that one of two readings of an operand has, and not the other: δ of the decays and of the input, u of the
//! input and of the skip term, z of the gate's sigmoid and of its factor.

use crate::diagnosis::diagnose::edit::{Around, Change, Edit, Edits, OfFormula};
use crate::diagnosis::diagnose::formula::{Formula, Scan};
use std::sync::Arc;

/// An operand that is read twice: the sites of edits that change it, and how its two readings are told apart.
type Twice = (
    &'static [&'static str],
    &'static str,
    fn(&mut Scan, Scan),
    &'static str,
    fn(&mut Scan, Scan),
);

const TWICE: [Twice; 3] = [
    (
        &["dt", "dt_bias", "softplus", "delta", "dt_bias scale"],
        "in the decays alone",
        |own, edited| own.decay_of = Some(Arc::new(edited)),
        "in the input alone",
        |own, edited| own.drive_of = Some(Arc::new(edited)),
    ),
    (
        &["u"],
        "in D·u alone",
        |own, edited| own.skip = Some(Arc::new(edited.u)),
        "in B·δ·u alone",
        |own, edited| {
            let skip = std::mem::replace(&mut own.u, edited.u);
            own.skip.get_or_insert(Arc::new(skip));
        },
    ),
    (
        &["z"],
        "in the gate's sigmoid alone",
        |own, edited| own.sigmoid_of = Some(Arc::new(edited)),
        "in the gate's factor alone",
        |own, edited| {
            let sigmoid = own.clone();
            own.z = edited.z;
            own.sigmoid_of = Some(Arc::new(sigmoid));
        },
    ),
];

/// Edits that need no number to be found.
const SIMPLE: usize = 3;

/// A change that is put into a copy of the scan, of which `put` takes a part.
fn in_copy(edit: &Edit, put: fn(&mut Scan, Scan)) -> OfFormula {
    let changes = edit.change.formula.clone();
    Arc::new(move |formula: &mut Formula, around: Around| {
        let mut copy = formula.clone();
        changes.iter().for_each(|change| change(&mut copy, around));
        if let (Formula::Scan(own), Formula::Scan(edited)) = (formula, copy) {
            put(own, *edited);
        }
    })
}

impl Edits<'_, '_> {
    /// Of every simple edit so far of what is read twice, one for each reading.
    pub(super) fn in_one_place(&mut self) {
        let mut found = Vec::new();
        for edit in self
            .all
            .iter()
            .filter(|e| e.rank <= SIMPLE && e.changes_formula())
        {
            let of = |twice: &&Twice| twice.0.contains(&edit.site.as_str());
            let Some((_, first, put_first, second, put_second)) = TWICE.iter().find(of) else {
                continue;
            };
            for (words, put) in [(first, put_first), (second, put_second)] {
                found.push(Edit {
                    words: format!("{}, {words}", edit.words),
                    rank: edit.rank + 2,
                    change: Change {
                        formula: vec![in_copy(edit, *put)],
                        result: Vec::new(),
                    },
                    ..edit.clone()
                });
            }
        }
        self.all.extend(found);
    }
}
