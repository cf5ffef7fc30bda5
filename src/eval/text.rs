//! The report as tables. Modes stand in the order they were asked for, never in that of a result.

use super::stats::{ALPHA, Estimate};
use super::summary::{Cost, EvalReport, PairSummary, Preparation};
use super::task::Task;
use crate::output::{counted, table, table_text};

/// The whole report.
pub fn text(report: &EvalReport) -> String {
    let settings = &report.settings;
    let (what, of) = match settings.task {
        Task::LastWord { .. } => ("passage", ", last word"),
        Task::Perplexity { .. } => ("window", " of text, every token"),
        Task::Chunks { .. } => ("piece", " of all texts as one, every token but the first"),
    };
    let mut out = format!(
        "{}, profile {}: {}{of}, {} predicted\n",
        settings.model.name,
        settings.profile,
        counted(report.samples, what),
        counted(report.target_tokens, "token")
    );
    if !settings.bad_lines.is_empty() {
        let (bad, lines) = (settings.bad_lines.len(), settings.lines);
        out.push_str(&format!("{bad} of {lines} lines could not be used\n"));
    }
    if settings.blank_lines > 0 {
        out.push_str(&format!(
            "{} blank rows were skipped\n",
            settings.blank_lines
        ));
    }
    if settings.shard.count > 1 {
        let (index, count) = (settings.shard.index, settings.shard.count);
        out.push_str(&format!("shard {index}/{count} only\n"));
    }
    out.push_str(&format!("\n{}\n", modes(report)));
    out.push_str(&verdicts(report));
    if !report.costs.is_empty() {
        out.push_str("\nwhat each step away from the checkpoint adds to the perplexity\n");
        out.push_str(&costs(&report.costs));
    }
    if report.pairs.iter().any(|p| p.accuracy.is_some()) {
        out.push_str("\naccuracy of pairs, points (McNemar's exact test, Holm over all pairs)\n");
        out.push_str(&accuracy_pairs(&report.pairs));
    }
    if !report.pairs.is_empty() {
        out.push_str(
            "\nlog-likelihood of pairs, a − b, positive where a is better (paired bootstrap, Holm over all pairs)\n",
        );
        out.push_str(&likelihood_pairs(&report.pairs));
        out.push_str(
            "\ndetectable: smallest difference these samples show (5 %, power 80 %, one comparison); \
             needed: samples that would show the observed difference, if it is real\n",
        );
    }
    out
}

fn modes(report: &EvalReport) -> String {
    let per_token = report.settings.task.per_token();
    let mut header = vec![
        "mode",
        "accuracy %",
        "95 %",
        "tied",
        "perplexity",
        "95 %",
        "tied",
    ];
    if per_token {
        header.push("bits/byte");
    }
    header.extend(["KL", "agreement"]);
    let mut rows = table(&header, 1);
    for m in &report.modes {
        let mut row = vec![
            m.mode.clone(),
            with_error(100.0, 2, &m.accuracy),
            interval(100.0, 2, &m.accuracy),
            or_dash(&m.tied.accuracy),
            with_error(1.0, 4, &m.perplexity),
            interval(1.0, 4, &m.perplexity),
            or_dash(&m.tied.log_likelihood),
        ];
        if let Some(bits) = m.bits_per_byte {
            row.push(format!("{bits:.5}"));
        }
        row.push(m.kl.map_or("-".into(), |v| format!("{v:.5}")));
        row.push(
            m.top1_agreement
                .map_or("-".into(), |v| format!("{:.2} %", 100.0 * v)),
        );
        rows.add_row(row);
    }
    let mut out = table_text(&rows);
    if report.modes.len() > 1 {
        out.push_str("modes that share a letter cannot be told apart\n");
    }
    if let Some(reference) = report.settings.reference_name() {
        out.push_str(&format!(
            "KL, agreement: of the target tokens, against mode {reference}\n"
        ));
    }
    out
}

/// What the tests say, in words.
fn verdicts(report: &EvalReport) -> String {
    if report.pairs.is_empty() {
        return String::new();
    }
    let mut out = String::new();
    let accuracy: Vec<(&PairSummary, f64, f64)> = (report.pairs.iter())
        .filter_map(|p| p.accuracy.as_ref().map(|a| (p, a.difference, a.p_holm)))
        .collect();
    if !accuracy.is_empty() {
        out.push_str(&verdict("accuracy", &accuracy));
    }
    let likelihood: Vec<(&PairSummary, f64, f64)> = (report.pairs.iter())
        .map(|p| (p, p.log_likelihood.difference, p.log_likelihood.p_holm))
        .collect();
    out.push_str(&verdict("log-likelihood", &likelihood));
    out
}

fn verdict(metric: &str, pairs: &[(&PairSummary, f64, f64)]) -> String {
    let differ: Vec<String> = (pairs.iter())
        .filter(|(.., p)| *p < ALPHA)
        .map(|(pair, difference, _)| match *difference > 0.0 {
            true => format!("{} > {}", pair.a, pair.b),
            false => format!("{} > {}", pair.b, pair.a),
        })
        .collect();
    let (found, all) = (differ.len(), pairs.len());
    match found {
        0 => format!("{metric}: none of {all} pairs can be told apart\n"),
        _ => format!(
            "{metric}: {found} of {all} pairs can be told apart (better > worse): {}\n",
            differ.join(", ")
        ),
    }
}

fn costs(costs: &[Cost]) -> String {
    let mut rows = table(&["step", "from", "to", "ratio", "perplexity", "95 %"], 3);
    for cost in costs {
        let step = match cost.step {
            Preparation::Folding => "folding",
            Preparation::Quantization => "INT8",
        };
        rows.add_row([
            step.into(),
            cost.from.clone(),
            cost.to.clone(),
            format!("{:.5}", cost.ratio),
            format!("{:+.4}", cost.perplexity),
            match cost.low.is_nan() {
                true => "-".into(),
                false => format!("{:+.4} to {:+.4}", cost.low, cost.high),
            },
        ]);
    }
    table_text(&rows)
}

fn accuracy_pairs(pairs: &[PairSummary]) -> String {
    let header = [
        "a",
        "b",
        "a − b",
        "only a",
        "only b",
        "p",
        "p Holm",
        "detectable",
        "needed",
    ];
    let mut rows = table(&header, 2);
    for pair in pairs {
        let Some(accuracy) = &pair.accuracy else {
            continue;
        };
        rows.add_row([
            pair.a.clone(),
            pair.b.clone(),
            match pair.identical {
                true => "identical".into(),
                false => format!("{:+.2}", 100.0 * accuracy.difference),
            },
            accuracy.a_only.to_string(),
            accuracy.b_only.to_string(),
            p_value(accuracy.p),
            p_value(accuracy.p_holm),
            (accuracy.detectable).map_or("-".into(), |d| format!("{:.2}", 100.0 * d)),
            needed(accuracy.samples_needed),
        ]);
    }
    table_text(&rows)
}

fn likelihood_pairs(pairs: &[PairSummary]) -> String {
    let header = [
        "a",
        "b",
        "a − b",
        "95 %",
        "p",
        "p Holm",
        "detectable",
        "needed",
    ];
    let mut rows = table(&header, 2);
    for pair in pairs {
        let l = &pair.log_likelihood;
        let (difference, interval) = match pair.identical {
            true => ("identical".into(), "-".into()),
            false if l.bootstrap.low.is_nan() => (format!("{:+.5}", l.difference), "-".into()),
            false => (
                format!("{:+.5}", l.difference),
                format!("{:+.5} to {:+.5}", l.bootstrap.low, l.bootstrap.high),
            ),
        };
        rows.add_row([
            pair.a.clone(),
            pair.b.clone(),
            difference,
            interval,
            p_value(l.bootstrap.p),
            p_value(l.p_holm),
            match l.detectable.is_nan() {
                true => "-".into(),
                false => format!("{:.5}", l.detectable),
            },
            needed(l.samples_needed),
        ]);
    }
    table_text(&rows)
}

/// A number in some unit and its standard error, which one sample does not tell.
fn with_error(unit: f64, digits: usize, e: &Estimate) -> String {
    match e.stderr.is_nan() {
        true => format!("{:.digits$}", unit * e.value),
        false => format!("{:.digits$} ± {:.digits$}", unit * e.value, unit * e.stderr),
    }
}

fn interval(unit: f64, digits: usize, e: &Estimate) -> String {
    match e.low.is_nan() || e.high.is_nan() {
        true => "-".into(),
        false => format!("{:.digits$}–{:.digits$}", unit * e.low, unit * e.high),
    }
}

fn or_dash(letters: &str) -> String {
    match letters {
        "" => "-".into(),
        letters => letters.into(),
    }
}

fn p_value(p: f64) -> String {
    match p < 0.0001 {
        true => "<0.0001".into(),
        false => format!("{p:.4}"),
    }
}

fn needed(samples: Option<f64>) -> String {
    match samples {
        None => "-".into(),
        Some(n) if n < 1e7 => format!("{n:.0}"),
        Some(n) => format!("{n:.1e}"),
    }
}
