//! The page: one file, no network, light and dark, screen and paper. Maud escapes every text.

use super::chart::{Interval, Series, intervals, lines};
use super::remarks::Remark;
use super::{ModeDetail, Report, costs, eval, heat, scales};
use maud::{DOCTYPE, Markup, PreEscaped, html};
use scalescope_golden::propagate::Window;

/// The page as HTML.
pub fn page(report: &Report) -> String {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "scalescope: " (report.model) ", profile " (report.profile.0) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                header {
                    h1 { "Where INT8 costs accuracy" }
                    p .lead {
                        (report.model) ": " (report.shape) ". Profile " (report.profile.0) ", " (report.profile.1)
                        ". " (report.sequences) " sequences, " (report.tokens) " tokens"
                        @if let Some(of) = report.sampled_of { ", sampled evenly of " (of) }
                        ". Every mode is held against mode " (report.reference) "."
                    }
                }
                (verdict(report))
                (contents(report))
                (modes(report))
                @if let Some(eval) = &report.eval {
                    section { h2 #eval { "Accuracy and perplexity, with what is known of them" } (eval::section(eval)) }
                }
                (reading())
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
            (intervals("KL of each mode with its 95 % interval", &rows, logarithmic, crate::output::number))
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
            @for detail in &report.details {
                li { a href={ "#" (anchor(&detail.mode)) } { "Mode " (detail.mode) } " " span { (detail.summary) } }
            }
        } }
    }
}

fn modes(report: &Report) -> Markup {
    html! {
        section {
            h2 #modes { "All modes" }
            div .scroll { table {
                thead { tr {
                    th .text { "mode" } th { "perplexity ↓" } th { "agreement ↑" } th { "KL ↓" } th { "clipped" }
                    th .text { "what it does" }
                } }
                tbody { @for mode in &report.modes { tr .reference[mode.reference] {
                    td .text { (mode.mode) }
                    td { (format!("{:.3}", mode.perplexity)) }
                    td { (format!("{:.2} %", 100.0 * mode.agreement)) }
                    td { (format!("{:.5}", mode.kl)) }
                    td { (format!("{:.4} %", 100.0 * mode.overflow_rate)) }
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
        section .mode {
            h2 id=(anchor(&detail.mode)) { "Mode " (detail.mode) }
            p .lead { (detail.summary) }
            @if let Some(other) = &detail.same_as {
                p { "On this text every error, local and propagated, is the same as in "
                    a href={ "#" (anchor(other)) } { "mode " (other) } ": see there." }
            } @else {
                h3 { "Findings" }
                ul .findings { @for remark in &detail.remarks { (finding(remark)) } }
                @if let Some(attribution) = &detail.attribution {
                    h3 { "What costs most" }
                    ul .findings { @for remark in &attribution.remarks { (finding(remark)) } }
                    (costs::map(attribution))
                }
                h3 { "Error against mode " (reference) ", step by step" }
                (heat::maps(detail))
                h3 { "Scale lineage: absmax/(127·scale) of every quantizer" }
                p .note { "How far the largest value reaches before it is quantized, over the reach of the grid. Scales calibrated by a percentile clip a few values on purpose. △ warning, ▲ error: clipping beyond what the scale was calibrated to clip, values that wrap, bits that are never used, or a reader with another scale." }
                (scales::lineage(detail))
                h3 { "Distributions over the INT8 grid" }
                p .note { "How often each code from −128 to 127 comes out, logarithmic, a row for each block. Red at an end: values were clipped there." }
                (scales::distributions(detail))
                h3 { "Error of the recurrent state along time" }
                p .note { "‖x − y‖ / ‖x‖ of the state while tokens are decoded one by one. Line: median block; band: the middle half of the blocks. With clean inputs only what the state gathers by itself is left." }
                (time(detail))
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
