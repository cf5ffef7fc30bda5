//! The page: one file, no network, light and dark, screen and paper. Maud escapes every text.

use super::chart::{Interval, Series, intervals, lines};
use super::measure::ModeResult;
use super::remarks::Remark;
use super::{ModeDetail, Report, costs, eval, heat, scales};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use scalescope_golden::diagnosis::propagate::Window;

/// The page as HTML.
pub fn page(report: &Report) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "scalescope: " (report.model) ", profile " (report.profile.0) }
                style { (PreEscaped(include_str!("style.css"))) (PreEscaped(picked(report))) }
            }
            body {
                header {
                    h1 { "Where INT8 costs accuracy" }
                    p .lead {
                        (report.model) ": " (report.shape) ". Profile " (report.profile.0) ", " (report.profile.1)
                        ". " (report.sequences) " sequences, " (report.tokens) " tokens"
                        @if let Some(of) = report.sampled_of { ", sampled evenly of " (of) }
                        @if report.detail_tokens < report.tokens { "; steps and scales of each mode on " (report.detail_tokens) " of them" }
                        ". Every mode is compared with mode " (report.reference) "."
                    }
                }
                (verdict(report))
                (contents(report))
                (modes(report))
                @if let Some(eval) = &report.eval {
                    section { h2 #eval { "Accuracy and perplexity, with their uncertainty" } (eval::section(eval)) }
                }
                (reading())
                (picker(report))
                @for detail in &report.details { (mode(detail, &report.reference)) }
                footer {
                    "Made by scalescope " (env!("CARGO_PKG_VERSION")) " (report --html). The same numbers are in its JSON (report --html … --json)."
                }
            }
        }
    };
    page.into_string()
}

/// What it all says, and every mode's cost with its interval.
fn verdict(report: &Report) -> Markup {
    let rows = report.verdict.modes.iter().map(|cost| {
        let known = |end: f64| if end.is_nan() { cost.kl.value } else { end };
        Interval {
            name: cost.mode.clone(),
            value: cost.kl.value,
            low: known(cost.kl.low),
            high: known(cost.kl.high),
            tied: cost.tied.clone(),
        }
    });
    let rows: Vec<Interval> = rows.collect();
    // A mode that is the reference in all but name has no place on a logarithmic axis.
    let logarithmic = rows.iter().all(|row| row.low > 0.0);
    html! {
        section {
            h2 #verdict { "Verdict" }
            ul .verdict { @for sentence in report.verdict.sentences() { li { (sentence) } } }
            h3 { "KL of every mode, nats a token, with 95 % intervals (lower is better)" }
            div .scroll { (intervals("KL of each mode with its 95 % interval", &rows, logarithmic, crate::output::number)) }
            p .note { "At the right: modes that share a letter cannot be told apart on this text (paired bootstrap over stretches of 32 positions, Holm's correction over all pairs). The order is that of the mode table." }
        }
    }
}

/// An id for a mode's section.
fn anchor(mode: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    format!("mode-{}", mode.chars().map(plain).collect::<String>())
}

fn contents(report: &Report) -> Markup {
    html! {
        nav aria-label="Contents" { ol {
            li { a href="#verdict" { "Verdict" } }
            li { a href="#modes" { "All modes" } }
            @if report.eval.is_some() { li { a href="#eval" { "Accuracy and perplexity" } } }
            li { a href="#reading" { "How to read the maps" } }
            @if !report.details.is_empty() { li { a href="#pick" { "One mode in depth" } } }
        } }
    }
}

/// A button for each mode: the sections of the others are not shown. Without script, by the style sheet.
fn picker(report: &Report) -> Markup {
    html! {
        @if !report.details.is_empty() {
            section {
                h2 #pick { "One mode in depth" }
                fieldset .choice {
                    legend { "Mode" }
                    @for (i, detail) in report.details.iter().enumerate() {
                        input type="radio" name="mode" id={ "pick-" (i) } checked[i == 0];
                        label for={ "pick-" (i) } title=(detail.summary) { (detail.mode) }
                    }
                }
            }
        }
    }
}

/// Shows the section of the mode that is picked.
fn picked(report: &Report) -> String {
    let rule = |(i, detail): (usize, &ModeDetail)| {
        let section = anchor(&detail.mode);
        format!("body:has(#pick-{i}:checked) #{section} {{ display: block; }}\n")
    };
    report.details.iter().enumerate().map(rule).collect()
}

/// Every mode in a line; the reference first where it was not asked for.
fn lines_of_modes(report: &Report) -> Vec<&ModeResult> {
    let listed = report.modes.iter().any(|mode| mode.reference);
    let first = (!listed).then_some(&report.reference_line);
    first.into_iter().chain(&report.modes).collect()
}

/// The keys that the table of modes is sorted by, lowest first, as a name, a heading and the number.
type Key = (&'static str, &'static str, fn(&ModeResult) -> f64);
const KEYS: [Key; 4] = [
    ("kl", "KL", |mode| mode.kl),
    ("perplexity", "perplexity", |mode| mode.perplexity),
    ("agreement", "agreement", |mode| -mode.agreement),
    ("clipped", "clipped", |mode| mode.clipped),
];

/// The place of every mode by each key, for the style sheet.
fn places(modes: &[&ModeResult]) -> Vec<String> {
    let place = |mode: &ModeResult, key: fn(&ModeResult) -> f64| {
        modes.iter().filter(|other| key(other) < key(mode)).count()
    };
    let places = |mode: &&ModeResult| {
        let all = KEYS.map(|(name, _, key)| format!("--{name}: {};", place(mode, key)));
        all.concat()
    };
    modes.iter().map(places).collect()
}

fn modes(report: &Report) -> Markup {
    let modes = lines_of_modes(report);
    let interval = |mode: &ModeResult| {
        let cost = report
            .verdict
            .modes
            .iter()
            .find(|cost| cost.mode == mode.mode);
        let known = cost.filter(|cost| !cost.kl.low.is_nan());
        known.map_or(String::new(), |cost| {
            format!("{:.5} to {:.5}", cost.kl.low, cost.kl.high)
        })
    };
    let tied = |mode: &ModeResult| {
        let cost = report
            .verdict
            .modes
            .iter()
            .find(|cost| cost.mode == mode.mode);
        cost.map_or(String::new(), |cost| cost.tied.clone())
    };
    html! {
        section {
            h2 #modes { "All modes" }
            fieldset .choice {
                legend { "Sorted" }
                input type="radio" name="sort" id="sort-none" checked;
                label for="sort-none" { "as listed" }
                @for (name, heading, _) in KEYS {
                    input type="radio" name="sort" id={ "sort-" (name) };
                    label for={ "sort-" (name) } { "by " (heading) }
                }
            }
            div .scroll { table .sortable {
                thead { tr {
                    th .text { "mode" } th { "KL ↓" } th { "95 %" } th { "tied" } th { "perplexity ↓" } th { "agreement ↑" }
                    th { "clipped" } th .text { "what it does" }
                } }
                tbody { @for (mode, places) in modes.iter().zip(places(&modes)) { tr .reference[mode.reference] style=(places) {
                    td .text { (mode.mode) }
                    td { (format!("{:.5}", mode.kl)) }
                    td { (interval(mode)) }
                    td { (tied(mode)) }
                    td { (format!("{:.3}", mode.perplexity)) }
                    td { (format!("{:.2} %", 100.0 * mode.agreement)) }
                    td { (format!("{:.4} %", 100.0 * mode.clipped)) }
                    td .long { (mode.summary) @if mode.reference { " (the reference)" } }
                } } }
            } }
            dl {
                dt { "perplexity" } dd { "exp of the mean negative log-likelihood of each next token" }
                dt { "agreement" } dd { "positions at which the most likely next token is the reference's" }
                dt { "KL" } dd { "mean divergence of the next token's distribution from the reference's, nats a token" }
                dt { "clipped" } dd { "quantized values that did not fit INT8" }
            }
            p .note { "What happens on this text; the verdict says what of it is beyond chance, " code { "scalescope eval" } " tests perplexity and accuracy on more." }
        }
    }
}

fn reading() -> Markup {
    html! {
        section {
            h2 #reading { "How to read the maps" }
            dl {
                dt { "local error" } dd { "the step and the reference's step both get the reference's clean tensors, as the mode stores them; what the outputs differ by is made here. The rounding of an input counts at the step that writes it." }
                dt { "propagated error" } dd { "the step gets what the run in this mode really made; everything made before is in it." }
                dt { "amplification" } dd { "propagated error over the largest among the step's inputs; above 1 the step adds error or makes it larger" }
            }
            p .note { "Columns of the maps are steps in the order of the data. A block is a row." }
        }
    }
}

fn mode(detail: &ModeDetail, reference: &str) -> Markup {
    html! {
        section .mode id=(anchor(&detail.mode)) {
            h2 { "Mode " (detail.mode) }
            p .lead { (detail.summary) }
            @if let Some(other) = &detail.same_as {
                p { "On this text every error, local and propagated, is the same as in mode " (other) ": pick that one." }
            } @else {
                h3 { "Findings" }
                ul .findings { @for remark in &detail.remarks { (finding(remark)) } }
                @if let Some(attribution) = &detail.attribution {
                    h3 { "What costs most" }
                    ul .findings { @for remark in &attribution.remarks { (finding(remark)) } }
                    (costs::map(attribution))
                }
                @if detail.sites_left_out {
                    h3 { "What costs most" }
                    p { "Not measured here: switching every site of so many modes would take too long. "
                        code { "scalescope attribute --mode " (detail.mode) } " measures it." }
                }
                h3 { "Error against mode " (reference) ", step by step" }
                (heat::maps(detail))
                h3 { "Scale lineage: absmax/(127·scale) of every quantizer" }
                p .note { "How far the largest value reaches before it is quantized, over the reach of the grid. Scales calibrated by a percentile clip a few values on purpose. △ warning, ▲ error: clipping beyond what the scale was calibrated to clip, values that wrap, bits that are never used, or a reader with another scale." }
                (scales::lineage(detail))
                h3 { "Distributions over the INT8 grid" }
                p .note { "How often each code comes out, a row for each block: codes from −128 to 127 across, counts upward on a logarithmic axis that ends at the most frequent. Red at an end: values were clipped there." }
                (scales::distributions(detail))
                h3 { "Error of the recurrent state along time" }
                p .note { "‖x − y‖ / ‖x‖ of the state while tokens are decoded one by one. Line: median block; band: the middle half of the blocks. With clean inputs only what the state gathers by itself is left." }
                div .scroll { (time(detail)) }
            }
        }
    }
}

fn finding(remark: &Remark) -> Markup {
    let place = match &remark.layers[..] {
        [] => String::new(),
        [one] => format!("block {one}: "),
        many => format!("blocks {}: ", ranges(many)),
    };
    html! {
        li {
            span { span class={ "badge " (remark.severity) } { (remark.severity) } }
            span .where { (remark.site) }
            span { (place) (remark.words) }
        }
    }
}

/// `0, 3–7, 9` of ascending numbers.
fn ranges(numbers: &[usize]) -> String {
    let runs = numbers.chunk_by(|a, b| a + 1 == *b);
    let words = runs.map(|run| match run {
        [] => String::new(),
        [one] => one.to_string(),
        [first, .., last] => format!("{first}–{last}"),
    });
    words.collect::<Vec<String>>().join(", ")
}

fn time(detail: &ModeDetail) -> Markup {
    let windows = &detail.time.windows;
    let range = |values: &[f64]| {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let at = |quarters: usize| {
            let i = quarters * sorted.len() / 4;
            sorted.get(i).copied().unwrap_or(0.0)
        };
        [at(1), at(2), at(3)]
    };
    let series = |name, class, of: fn(&Window) -> &[f64]| Series {
        name,
        class,
        values: windows.iter().map(|w| range(of(w))).collect(),
    };
    let ends: Vec<usize> = windows.iter().map(|w| w.last).collect();
    lines(
        "Error of the recurrent state against the token's position",
        &ends,
        &[
            series("as it runs, own inputs", "one", |w| &w.ssm_state),
            series("clean inputs, own state", "two", |w| {
                &w.ssm_state_clean_inputs
            }),
        ],
    )
}
