//! Tables and interval plots of an `eval` run. Modes stand in the order they were asked for; those
//! that cannot be told apart share a letter and are never ranked.

use super::chart::{Interval, intervals};
use crate::eval::stats::Estimate;
use crate::eval::summary::{EvalReport, ModeSummary, PairSummary};
use maud::{Markup, html};

/// The section's contents.
pub fn section(report: &EvalReport) -> Markup {
    let settings = &report.settings;
    let letters = |tied: &str| match tied.is_empty() {
        true => String::new(),
        false => format!("tied: {tied}"),
    };
    let rows = |of: fn(&ModeSummary) -> Estimate, tied: fn(&ModeSummary) -> &str| {
        let row = |mode: &ModeSummary| {
            let estimate = of(mode);
            let known = |end: f64| if end.is_nan() { estimate.value } else { end };
            Interval {
                name: mode.mode.clone(),
                value: estimate.value,
                // One sample has no interval.
                low: known(estimate.low),
                high: known(estimate.high),
                tied: letters(tied(mode)),
            }
        };
        report.modes.iter().map(row).collect::<Vec<Interval>>()
    };
    html! {
        p {
            (report.samples) " samples, " (report.target_tokens) " predicted tokens, model "
            code { (settings.model.name) } ", data " code { (settings.data.name) } ", profile " (settings.profile)
            ". Modes that share a letter cannot be told apart with this many samples; the order is the one asked for, not a ranking."
        }
        h3 { "Perplexity, 95 % intervals (lower is better, logarithmic axis)" }
        div .scroll { (intervals("Perplexity of each mode with its 95 % interval", &rows(|m| m.perplexity, |m| &m.tied.log_likelihood), true, |v| format!("{v:.2}"))) }
        h3 { "Accuracy, 95 % intervals (higher is better)" }
        div .scroll { (intervals("Accuracy of each mode with its 95 % interval", &rows(|m| m.accuracy, |m| &m.tied.accuracy), false, |v| format!("{:.1} %", 100.0 * v))) }
        h3 { "Numbers" }
        (modes(report))
        @if !report.pairs.is_empty() {
            h3 { "Every pair of modes" }
            (pairs(report))
        }
        dl {
            dt { "perplexity" } dd { "exp of the mean negative log-likelihood of what is predicted" }
            dt { "accuracy" } dd { "share of predictions that are the greedy choice" }
            dt { "tied" } dd { "letters: two modes that share one have no difference with corrected p below 0.05" }
            dt { "KL" } dd { "mean KL divergence from the reference mode, nats a token; lower is better" }
            dt { "p" } dd { "McNemar's exact test on accuracy, paired bootstrap on log-likelihood; Holm's correction over all pairs" }
            dt { "needed" } dd { "samples that would show the observed difference, if it is the real one" }
        }
    }
}

/// An interval; one sample has none.
fn range(low: f64, high: f64, show: fn(f64) -> String) -> String {
    match low.is_nan() || high.is_nan() {
        true => "–".into(),
        false => format!("{} to {}", show(low), show(high)),
    }
}

fn modes(report: &EvalReport) -> Markup {
    let optional = |value: Option<f64>, show: fn(f64) -> String| value.map_or("–".into(), show);
    html! {
        div .scroll { table {
            thead { tr {
                th .text { "mode" } th { "perplexity" } th { "95 %" } th { "tied" }
                th { "accuracy" } th { "95 %" } th { "tied" } th { "KL" } th { "top-1 agreement" }
                th .text { "what it does" }
            } }
            tbody { @for mode in &report.modes { tr {
                td .text { (mode.mode) }
                td { (format!("{:.3}", mode.perplexity.value)) }
                td { (range(mode.perplexity.low, mode.perplexity.high, |v| format!("{v:.2}"))) }
                td { (mode.tied.log_likelihood) }
                td { (format!("{:.2} %", 100.0 * mode.accuracy.value)) }
                td { (range(mode.accuracy.low, mode.accuracy.high, |v| format!("{:.1} %", 100.0 * v))) }
                td { (mode.tied.accuracy) }
                td { (optional(mode.kl, |v| format!("{v:.5}"))) }
                td { (optional(mode.top1_agreement, |v| format!("{:.2} %", 100.0 * v))) }
                td .long { (mode.summary) }
            } } }
        } }
    }
}

fn pairs(report: &EvalReport) -> Markup {
    let verdict = |pair: &PairSummary, p: f64| {
        if pair.identical {
            "identical"
        } else if p < report.statistics.alpha {
            "differ"
        } else {
            "tied"
        }
    };
    let needed = |n: Option<f64>| n.map_or("–".into(), |n| format!("{n:.0}"));
    html! {
        div .scroll { table {
            thead { tr {
                th .text { "pair" } th { "Δ log-likelihood" } th { "95 %" } th { "p" } th { "needed" } th .text { "" }
                th { "Δ accuracy" } th { "p" } th { "needed" } th .text { "" }
            } }
            tbody { @for pair in &report.pairs {
                @let ll = &pair.log_likelihood;
                tr {
                    td .text { (pair.a) " – " (pair.b) }
                    td { (format!("{:+.4}", ll.difference)) }
                    td { (range(ll.bootstrap.low, ll.bootstrap.high, |v| format!("{v:+.4}"))) }
                    td { (format!("{:.3}", ll.p_holm)) }
                    td { (needed(ll.samples_needed)) }
                    td .text { (verdict(pair, ll.p_holm)) }
                    @match &pair.accuracy {
                        Some(a) => {
                            td { (format!("{:+.2} %", 100.0 * a.difference)) }
                            td { (format!("{:.3}", a.p_holm)) }
                            td { (needed(a.samples_needed)) }
                            td .text { (verdict(pair, a.p_holm)) }
                        }
                        None => { td { "–" } td { "–" } td { "–" } td .text { "" } }
                    }
                }
            } }
        } }
    }
}
