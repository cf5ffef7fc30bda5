//! A self-contained page of a sweep: perplexity against each part of the cost, the front in colour.

use super::engine::Design;
use std::fmt::Write;

/// A panel, in pixels.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 40.0;
const TOP: f64 = 28.0;
const RIGHT: f64 = 16.0;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

/// The keys and values of a design in words.
pub fn words(design: &Design) -> String {
    let value = |v: &serde_json::Value| match v {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let words: Vec<String> = design
        .values
        .iter()
        .map(|(k, v)| format!("{k}={}", value(v)))
        .collect();
    words.join(" ")
}

/// The page.
pub fn page(title: &str, designs: &[Design], front: &[bool]) -> String {
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><title>{0}</title>\n<style>\
         body{{font:14px system-ui,sans-serif;margin:2em auto;max-width:64em;padding:0 1em}}\
         table{{border-collapse:collapse}}td,th{{padding:.2em .8em;text-align:right}}\
         td:first-child,th:first-child{{text-align:left}}tr:nth-child(even){{background:#f4f4f4}}\
         svg{{margin:.5em}}</style></head><body>\n<h1>{0}</h1>\n\
         <p>Each point is a design; the coloured ones are on the Pareto front of perplexity and every \
         part of the cost. Lower is better on both axes.</p>\n",
        escape(title)
    );
    let names = designs
        .first()
        .map(|d| d.cost.fields().map(|(name, _)| name));
    for (i, name) in names.into_iter().flatten().enumerate() {
        let costs: Vec<f64> = designs
            .iter()
            .map(|d| d.cost.fields()[i].1 as f64)
            .collect();
        if costs.iter().any(|c| *c != costs[0]) {
            html += &panel(name, &costs, designs, front);
        }
    }
    html += "<h2>Pareto front</h2>\n<table><tr><th>design</th><th>perplexity</th><th>KL</th><th>agreement</th>";
    for (name, _) in designs
        .first()
        .map(|d| d.cost.fields())
        .into_iter()
        .flatten()
    {
        let _ = write!(html, "<th>{name}</th>");
    }
    html += "</tr>\n";
    for (design, _) in designs.iter().zip(front).filter(|(_, on)| **on) {
        let _ = write!(
            html,
            "<tr><td>{}</td><td>{:.4}</td><td>{:.5}</td><td>{:.2} %</td>",
            escape(&words(design)),
            design.perplexity,
            design.kl,
            100.0 * design.agreement
        );
        for (_, value) in design.cost.fields() {
            let _ = write!(html, "<td>{value}</td>");
        }
        html += "</tr>\n";
    }
    html + "</table></body></html>\n"
}

fn panel(name: &str, costs: &[f64], designs: &[Design], front: &[bool]) -> String {
    let finite = designs
        .iter()
        .map(|d| d.perplexity)
        .filter(|p| p.is_finite() && *p > 0.0);
    let (low, high) = finite.fold((f64::INFINITY, 0.0f64), |(l, h), p| (l.min(p), h.max(p)));
    if !low.is_finite() {
        return String::new();
    }
    // Broken designs are orders of magnitude off: a logarithmic axis shows both.
    let (y0, y1) = (low.ln(), high.ln().max(low.ln() + 1e-6));
    let (x0, x1) = costs
        .iter()
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), c| {
            (l.min(*c), h.max(*c))
        });
    let x = |c: f64| LEFT + (c - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
    let y = |p: f64| HEIGHT - BOTTOM - (p.ln() - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP);
    let mut svg = format!(
        "<svg width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" aria-label=\"perplexity against {name}\">\
         <text x=\"{LEFT}\" y=\"16\" font-weight=\"bold\">perplexity against {name}</text>\
         <path d=\"M{LEFT} {TOP}V{0}H{1}\" fill=\"none\" stroke=\"#999\"/>",
        HEIGHT - BOTTOM,
        WIDTH - RIGHT
    );
    for k in 0..=4 {
        let p = (y0 + (y1 - y0) * f64::from(k) / 4.0).exp();
        let c = x0 + (x1 - x0) * f64::from(k) / 4.0;
        let _ = write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" font-size=\"11\">{}</text>\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"11\">{c:.0}</text>",
            LEFT - 6.0,
            y(p) + 4.0,
            crate::output::number(p),
            x(c),
            HEIGHT - BOTTOM + 16.0
        );
    }
    let mut points: Vec<usize> = (0..designs.len()).collect();
    points.sort_by_key(|i| front[*i]);
    for i in points {
        let design = &designs[i];
        if !(design.perplexity.is_finite() && design.perplexity > 0.0) {
            continue;
        }
        let (colour, radius) = if front[i] { ("#c33", 5) } else { ("#79a", 3) };
        let _ = write!(
            svg,
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"{radius}\" fill=\"{colour}\" fill-opacity=\".8\"><title>{}: {:.4}</title></circle>",
            x(costs[i]),
            y(design.perplexity),
            escape(&words(design)),
            design.perplexity
        );
    }
    svg + "</svg>\n"
}
