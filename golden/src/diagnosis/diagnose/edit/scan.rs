//! Edits of the selective scan.

use super::codes::turned_bits;
use super::{Edit, Edits};
use crate::diagnosis::diagnose::formula::{
    BlockInputs, Carried, Formula, Hiccup, Measured, Narrow, Scan, solve,
};
use crate::diagnosis::diagnose::kind::Kind;
use ndarray::Array2;
use scalescope_sim::arith::round::Rounding;
use scalescope_sim::dataflow::Row;
use scalescope_sim::trace::TracePoint;
use std::sync::Arc;

mod formats;
mod functions;
mod inputs;
mod once;
mod parameters;

fn on(
    change: impl Fn(&mut Scan) + Send + Sync,
) -> impl Fn(&mut Formula, super::Around) + Send + Sync {
    move |formula, _| {
        if let Formula::Scan(scan) = formula {
            change(scan);
        }
    }
}

/// One code of a channel's parameters, every bit of it turned over, and none.
pub fn bits<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    own: &Scan,
    channel: usize,
) -> Vec<Edit> {
    let mut edits = Edits::new(scene, row, own.d.len());
    for state in 0..own.a_log.values.ncols() {
        let before = own.a_log.values[(channel, state)];
        for (after, bit) in turned_bits(before) {
            let words = format!(
                "A_log of channel {channel} and state {state} is {after} and not {before}{bit}"
            );
            let change = on(move |s| s.a_log.values[(channel, state)] = after);
            edits.formula(6, (Kind::Weights, "A"), words, change);
        }
    }
    type Vector = (
        &'static str,
        &'static str,
        f32,
        fn(&mut Scan) -> &mut Vec<f32>,
    );
    let vectors: [Vector; 2] = [
        ("D", "D", own.d_scale, |s| &mut s.d),
        ("dt_bias", "the bias of dt", own.dt_bias_scale, |s| {
            &mut s.dt_bias
        }),
    ];
    for (site, name, scale, of) in vectors {
        let before = (of(&mut own.clone())[channel] / scale).round();
        for (after, bit) in turned_bits(before) {
            let words =
                format!("{name} of channel {channel} is code {after} and not {before}{bit}");
            let change = on(move |s| of(s)[channel] = after * scale);
            edits.formula(6, (Kind::Weights, site), words, change);
        }
    }
    edits.all
}

/// The state before the first token, solved channel by channel from all outputs, which are linear in it.
pub fn begins_with<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    own: &Scan,
    dumped: &Array2<f32>,
) -> Option<Edit> {
    let (e, n) = own.a_log.values.dim();
    if own.unit.is_some() || own.before.is_some() || own.u.values.nrows() < ENOUGH * n {
        return None;
    }
    let made = own.run().out;
    let made_with = |state: usize| {
        let one = Array2::from_shape_fn((e, n), |(_, i)| f32::from(u8::from(i == state)));
        let before = Some(one);
        Scan {
            before,
            ..own.clone()
        }
        .run()
        .out - &made
    };
    let by_one: Vec<Array2<f32>> = (0..n).map(made_with).collect();
    let off = dumped - &made;
    let mut before = Array2::zeros((e, n));
    for c in 0..e {
        let columns: Vec<Vec<f64>> = by_one
            .iter()
            .map(|made| made.column(c).iter().map(|v| f64::from(*v)).collect())
            .collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let off: Vec<f64> = off.column(c).iter().map(|v| f64::from(*v)).collect();
        let mut normal = Array2::from_shape_fn((n, n), |(i, j)| dot(&columns[i], &columns[j]));
        let ridge = 1e-9 * normal.diag().iter().copied().fold(0.0, f64::max) + f64::MIN_POSITIVE;
        normal.diag_mut().iter_mut().for_each(|v| *v += ridge);
        let right = columns.iter().map(|column| dot(column, &off)).collect();
        let found = solve(normal, right)?;
        let mut to = before.row_mut(c);
        to.iter_mut().zip(found).for_each(|(to, v)| *to = v as f32);
    }
    let words = "the state before the first token is not empty";
    let mut edits = Edits::new(scene, row, e);
    let change = on(move |s| s.before = Some(before.clone()));
    edits.formula(8, (Kind::NotReset, "state"), words, change);
    edits.all.pop()
}

/// Tokens for each state of a channel that is solved.
const ENOUGH: usize = 4;

/// One state of a channel that is another from a token on, by what is fitted to the outputs from there on; one edit for
/// each state.
pub fn bumps<'a>(
    scene: Option<&'a BlockInputs<'a, '_>>,
    row: &'a Row,
    own: &Scan,
    dumped: &Array2<f32>,
    (token, channel): (usize, usize),
) -> Vec<Edit> {
    let mut edits = Edits::new(scene, row, own.d.len());
    let mut one = own.clone();
    let only: Vec<bool> = (0..own.d.len()).map(|c| c == channel).collect();
    one.channels = Some(only);
    let column = |made: Array2<f32>| made.column(channel).mapv(f64::from);
    let made = column(one.run().out);
    let off = dumped.column(channel).mapv(f64::from) - &made;
    for state in 0..own.states.len() {
        // Outputs are linear in the state.
        one.bump = Some((token, channel, state, 1.0));
        let by_one = column(one.run().out) - &made;
        let size = by_one.dot(&by_one);
        let by = (off.dot(&by_one) / size) as f32;
        if size > 0.0 && by.is_finite() {
            let words = format!(
                "after token {token} state {state} of channel {channel} is {by:+} off: a bit in memory, or a value of \
                 another"
            );
            let change = on(move |s| s.bump = Some((token, channel, state, by)));
            edits.formula(6, (Kind::FlippedBit, "state"), words, change);
        }
    }
    edits.all
}

/// The function that makes the gate, read off what deviates.
pub fn measured<'a>(scene: Option<&'a BlockInputs<'a, '_>>, row: &'a Row, found: Measured) -> Edit {
    let mut edits = Edits::new(scene, row, 0);
    let words = format!("the gate is another function of z: {}", found.words());
    let found = Arc::new(found);
    let change = on(move |s| s.measured_gate = Some(Arc::clone(&found)));
    edits.formula(8, (Kind::Function, "gate"), words, change);
    edits.all.remove(0)
}

impl Edits<'_, '_> {
    pub(super) fn of_scan(&mut self, own: &Scan) {
        self.terms();
        self.functions();
        self.inputs(own);
        self.states(own);
        self.scan_formats();
        self.other_parameters(own);
        self.in_one_place();
    }

    fn terms(&mut self) {
        self.formula(
            1,
            (Kind::LeftOut, "D"),
            "the skip term D·u is missing",
            on(|s| s.d.fill(0.0)),
        );
        self.formula(
            1,
            (Kind::Twice, "D"),
            "the skip term D·u is added twice",
            on(|s| {
                s.d.iter_mut().for_each(|d| *d *= 2.0);
            }),
        );
        self.formula(2, (Kind::Constant, "D"), "D is one", on(|s| s.d.fill(1.0)));
        self.formula(
            2,
            (Kind::Order, "D"),
            "the skip term D·u is added after the gate",
            on(|s| s.skip_ungated = true),
        );
        self.formula(
            1,
            (Kind::LeftOut, "dt_bias"),
            "the bias of dt is missing",
            on(|s| s.dt_bias.fill(0.0)),
        );
        self.formula(
            1,
            (Kind::Twice, "dt_bias"),
            "the bias of dt is added twice",
            on(|s| {
                s.dt_bias.iter_mut().for_each(|b| *b *= 2.0);
            }),
        );
        self.formula(
            2,
            (Kind::Sign, "dt_bias"),
            "the bias of dt is subtracted",
            on(|s| {
                s.dt_bias.iter_mut().for_each(|b| *b = -*b);
            }),
        );
        for factor in [0.5f32, 0.25, 4.0] {
            let words = format!("D is multiplied by {factor}");
            let change = on(move |s| s.d.iter_mut().for_each(|d| *d *= factor));
            self.formula(4, (Kind::Factor, "D"), words, change);
            let words = format!("the bias of dt is multiplied by {factor}");
            let change = on(move |s| s.dt_bias.iter_mut().for_each(|b| *b *= factor));
            self.formula(4, (Kind::Factor, "dt_bias"), words, change);
        }
        self.formula(
            2,
            (Kind::Order, "dt_bias"),
            "the bias of dt is added after softplus",
            on(|s| s.late_bias = true),
        );
        self.formula(
            2,
            (Kind::Order, "decay"),
            "the token's input decays with the state",
            on(|s| s.input_decays = true),
        );
        self.formula(
            1,
            (Kind::LeftOut, "gate"),
            "the gate of z is missing",
            on(|s| s.gate = None),
        );
        self.formula(
            2,
            (Kind::LeftOut, "input_delta"),
            "B·u enters without δ",
            on(|s| s.input_delta = false),
        );
        self.formula(
            2,
            (Kind::LeftOut, "state"),
            "the outputs have the skip term alone",
            on(|s| s.states.fill(false)),
        );
        self.formula(
            2,
            (Kind::Sign, "D"),
            "the skip term D·u is subtracted",
            on(|s| {
                s.d.iter_mut().for_each(|d| *d = -*d);
            }),
        );
    }

    /// A chunk that begins with an older state than the last one.
    fn older_states(&mut self) {
        for tile in [1usize, 2, 4, 8, 16, 32, 64, 128, 256] {
            for back in 1..=2usize {
                let words = format!(
                    "at every {tile}th token the state goes on from that of {} tokens before",
                    back + 1
                );
                let change = on(move |s| s.older = Some((tile, back)));
                self.formula(3, (Kind::History, "state"), words, change);
            }
        }
    }

    pub(super) fn scan_tile(&mut self, tile: usize) {
        for carried in Carried::ALL {
            let words = format!("every {tile} tokens {}", carried.words());
            let change = on(move |s| s.chunks = Some((tile, carried)));
            self.formula(3, carried.kind(), words, change);
        }
        let words = format!("at every {tile}th token the state is empty again");
        let change = on(move |s| s.tile = Some(tile));
        self.formula(2, (Kind::History, "state"), words, change);
    }

    /// Tokens at which something goes wrong with the state, of which the first one that deviates is one.
    pub(super) fn hiccups(&mut self, first: usize) {
        let powers = (1..=8).map(|bits| 1usize << bits);
        let mut tiles: Vec<usize> = powers.filter(|tile| *tile > 1).collect();
        // What begins with it, what ends with it, and it alone.
        tiles.extend(
            [first, first + 1, usize::MAX]
                .into_iter()
                .filter(|tile| *tile > 2),
        );
        tiles.sort_unstable();
        tiles.dedup();
        for tile in tiles {
            let at = first % tile;
            for hiccup in Hiccup::ALL {
                let words = match (tile, at) {
                    (usize::MAX, _) => format!("at token {at} {}", hiccup.words()),
                    (_, 0) => format!("at every {tile}th token {}", hiccup.words()),
                    _ => format!("at token {at} of each {tile} {}", hiccup.words()),
                };
                let change = on(move |s| s.hiccup = Some((tile, at, hiccup)));
                self.formula(3, (hiccup.kind(), hiccup.site()), words, change);
            }
        }
    }

    fn states(&mut self, own: &Scan) {
        let n = own.states.len();
        for tile in [2usize, 4, 8, 16, 32, 64, 128, 256, 512, 1024] {
            self.scan_tile(tile);
        }
        self.older_states();
        self.formula(
            1,
            (Kind::History, "state"),
            "no state is carried from token to token",
            on(|s| s.carry = 0.0),
        );
        self.formula(
            2,
            (Kind::Order, "state"),
            "outputs read the state before the token",
            on(|s| s.late = true),
        );
        self.formula(
            3,
            (Kind::History, "state"),
            "the state that is kept is the one before the last token",
            on(|s| s.kept_early = true),
        );
        let mut formats = vec![Narrow::F16, Narrow::Bf16];
        if let Some(scale) = own.state_scale {
            let even = Rounding::NearestTiesToEven;
            formats.extend([
                Narrow::Codes(8, scale, even),
                Narrow::Codes(4, scale * 127.0 / 7.0, even),
                Narrow::Codes(4, scale * 16.0, even),
                Narrow::Codes(16, scale * 127.0 / 32767.0, even),
            ]);
            for bits in [5u8, 6, 7] {
                let step = scale * f32::from(1u8 << (8 - bits));
                formats.push(Narrow::Codes(bits, step, even));
            }
            for rounding in [Rounding::Floor, Rounding::TowardZero, Rounding::Ceil] {
                formats.push(Narrow::Codes(8, scale, rounding));
            }
        }
        for narrow in formats {
            let words = format!("the state is kept in {}", narrow.name());
            self.formula(
                2,
                (Kind::Format, "state"),
                words,
                on(move |s| s.state = Some(narrow)),
            );
        }
        if let Some(scale) = own.state_scale {
            for (words, top) in [
                ("its calibrated range", 127.0 * scale),
                ("half of its calibrated range", 63.5 * scale),
            ] {
                let words = format!("after each token the state is saturated to {words}");
                self.formula(
                    2,
                    (Kind::Overflow, "state"),
                    words,
                    on(move |s| s.state = Some(Narrow::Range(-top, top))),
                );
            }
        }
        // What implementations of Mamba limit δ to.
        for (low, high) in [
            (0.0, 0.01),
            (0.0, 0.02),
            (0.0, 0.05),
            (0.0, 0.1),
            (0.0, 0.2),
            (0.0, 0.5),
            (0.0, 1.0),
            (0.0, 2.0),
            (0.0, 5.0),
            (0.0, 10.0),
            (0.0, 20.0),
            (1e-4, f32::INFINITY),
            (1e-3, f32::INFINITY),
            (5e-3, f32::INFINITY),
            (1e-2, f32::INFINITY),
            (2e-2, f32::INFINITY),
            (5e-2, f32::INFINITY),
            (0.1, f32::INFINITY),
            (1e-3, 0.1),
        ] {
            let narrow = Narrow::Range(low, high);
            let words = format!("δ is kept to {}", narrow.name());
            self.formula(
                3,
                (Kind::Overflow, "delta"),
                words,
                on(move |s| s.narrow_delta = Some(narrow)),
            );
        }
        let mut missing: Vec<(String, std::ops::Range<usize>)> = Vec::new();
        for tail in [1usize, 2, 4, 8].into_iter().filter(|t| *t < n) {
            missing.push((
                format!("the last {tail} of {n} states are not summed"),
                n - tail..n,
            ));
            missing.push((
                format!("the first {tail} of {n} states are not summed"),
                0..tail,
            ));
        }
        for (words, range) in missing {
            self.formula(
                2,
                (Kind::PartMissing, "states"),
                words,
                on(move |s| s.states[range.clone()].fill(false)),
            );
        }
        for state in 0..n {
            let words = format!("state {state} of {n} is not summed");
            let change = on(move |s| s.states[state] = false);
            self.formula(4, (Kind::PartMissing, "states"), words, change);
            let words = format!("state {state} of {n} alone is summed");
            let change = on(move |s| (0..n).for_each(|i| s.states[i] = i == state));
            self.formula(4, (Kind::PartMissing, "states"), words, change);
        }
        for odd in [0, 1] {
            let words = format!("only states 2i+{odd} are summed");
            let change = on(move |s| (0..n).for_each(|i| s.states[i] = i % 2 == odd));
            self.formula(3, (Kind::PartMissing, "states"), words, change);
        }
        let words = "the state of the sequence before is not reset";
        self.formula(1, (Kind::NotReset, "state"), words, |f, around| {
            let Formula::Scan(scan) = f else { return };
            let state = around
                .before
                .and_then(|seen| seen.get(&TracePoint::SsmState));
            scan.before = state.map(|t| t.to_real());
        });
        self.formula(
            3,
            (Kind::NotReset, "state"),
            "a channel begins with the last state of the one before",
            on(|s| s.passed_on = true),
        );
        let words = "the sequence begins with its own last state";
        self.formula(2, (Kind::NotReset, "state"), words, |f, _| {
            let Formula::Scan(scan) = f else { return };
            let mut first = scan.clone();
            first.last = crate::diagnosis::diagnose::formula::Output::real(false);
            scan.before = first.run().state;
        });
    }
}
