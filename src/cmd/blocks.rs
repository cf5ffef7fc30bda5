//! A comparison block by block: which tensors a table shows, and the lines that end it.

use crate::output::{counted, table, table_text};
use clap::Args;
use scalescope_golden::compare::{Difference, PointResult};
use std::fmt::Write;
use std::num::NonZeroUsize;

/// Which tensors the table shows. Counts and verdict are of all.
#[derive(Args, Clone, Debug, Default)]
pub struct ShownArgs {
    /// Show only the N tensors that differ most
    #[arg(long, value_name = "N")]
    pub top: Option<NonZeroUsize>,
    /// Show only tensors that differ
    #[arg(long)]
    pub only_failures: bool,
}

/// A compared tensor.
pub struct Compared {
    step: Option<usize>,
    layer: Option<usize>,
    point: String,
    elements: usize,
    differ: usize,
}

impl From<&PointResult> for Compared {
    fn from(of: &PointResult) -> Self {
        Self {
            step: of.step,
            layer: of.layer,
            point: of.point.clone(),
            elements: of.compared,
            differ: of.mismatched,
        }
    }
}

impl From<&Difference> for Compared {
    fn from(of: &Difference) -> Self {
        Self {
            step: of.step,
            layer: of.layer,
            point: of.point.to_owned(),
            elements: of.compared(),
            differ: of.beyond_tolerance,
        }
    }
}

impl Compared {
    fn share(&self) -> f64 {
        self.differ as f64 / self.elements.max(1) as f64
    }

    fn block(&self) -> (Option<usize>, Option<usize>) {
        (self.step, self.layer)
    }
}

impl ShownArgs {
    /// Of the tensors, those that are shown, in their order.
    pub fn of(&self, all: &[Compared]) -> Vec<usize> {
        let mut shown: Vec<usize> = (0..all.len()).collect();
        if self.only_failures || self.top.is_some() {
            shown.retain(|i| all[*i].differ > 0);
        }
        if let Some(top) = self.top {
            shown.sort_by(|a, b| all[*b].share().total_cmp(&all[*a].share()));
            shown.truncate(top.get());
        }
        shown
    }
}

/// A line for each block that differs, and one for each run of blocks that do not; nothing where all is equal.
pub fn by_block(all: &[Compared]) -> String {
    if all.iter().all(|tensor| tensor.differ == 0) {
        return String::new();
    }
    let mut blocks: Vec<Vec<&Compared>> = Vec::new();
    for tensor in all {
        match blocks.last_mut() {
            Some(block) if block[0].block() == tensor.block() => block.push(tensor),
            _ => blocks.push(vec![tensor]),
        }
    }
    let mut rows = table(
        &["block", "tensors", "differ", "elements", "first", "worst"],
        1,
    );
    for column in 4..6 {
        let column = rows.column_mut(column).expect("six columns");
        column.set_cell_alignment(comfy_table::CellAlignment::Left);
    }
    let equal = |block: &[&Compared]| block.iter().all(|tensor| tensor.differ == 0);
    for run in blocks.chunk_by(|a, b| equal(a) && equal(b) && a[0].step == b[0].step) {
        let (first, last) = (&run[0], &run[run.len() - 1]);
        let tensors = || run.iter().flatten();
        let differ = tensors().filter(|tensor| tensor.differ > 0).count();
        let elements: usize = tensors().map(|tensor| tensor.differ).sum();
        let bad = tensors().find(|tensor| tensor.differ > 0);
        let worst = tensors().max_by(|a, b| a.share().total_cmp(&b.share()));
        rows.add_row([
            name(first[0], last[0]),
            tensors().count().to_string(),
            differ.to_string(),
            elements.to_string(),
            bad.map_or(String::new(), |tensor| tensor.point.clone()),
            match worst {
                Some(worst) if differ > 0 => {
                    format!("{} {:.2} %", worst.point, 100.0 * worst.share())
                }
                _ => String::new(),
            },
        ]);
    }
    format!("\n{}", table_text(&rows))
}

/// `0`, `1-10`, `end`, `step 3, 0`.
fn name(first: &Compared, last: &Compared) -> String {
    let mut name = first.step.map_or(String::new(), |s| format!("step {s}, "));
    let layer = |of: &Compared| of.layer.map_or("end".to_owned(), |layer| layer.to_string());
    let (first, last) = (layer(first), layer(last));
    let _ = match first == last {
        true => write!(name, "{first}"),
        false => write!(name, "{first} to {last}"),
    };
    name
}

/// What the table leaves out.
pub fn not_shown(shown: usize, all: usize) -> String {
    match all - shown {
        0 => String::new(),
        left => format!("{} not shown\n", counted(left, "other tensor")),
    }
}
