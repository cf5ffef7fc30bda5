//! A self-contained page of a sweep: perplexity against each part of the cost, the front in colour, and
//! what each value of each key costs.

use super::effects::{Effect, effects};
use super::engine::Design;
use crate::output::number;
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// A panel, in pixels.
const WIDTH: f64 = 420.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 64.0;
const BOTTOM: f64 = 44.0;
const TOP: f64 = 28.0;
const RIGHT: f64 = 28.0;
/// Marks on an axis, at most.
const MARKS: usize = 5;

/// A value of a key in words.
pub fn word(value: &serde_json::Value) -> String {
    match value {
        serde_json::Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// The keys and values of a design in words.
pub fn words(design: &Design) -> String {
    let words = design
        .values
        .iter()
        .map(|(k, v)| format!("{k}={}", word(v)));
    words.collect::<Vec<_>>().join(" ")
}

/// The page.
pub fn page(title: &str, designs: &[Design], front: &[bool]) -> String {
    let varied = varied_costs(designs);
    let mut shown: Vec<&Design> = (designs.iter().zip(front))
        .filter(|(_, on)| **on)
        .map(|(design, _)| design)
        .collect();
    shown.sort_by(|a, b| a.perplexity.total_cmp(&b.perplexity));
    let tied = |design: &Design| shown.first().is_some_and(|best| best.is_tied_with(design));
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "scalescope: " (title) }
                style { (PreEscaped(include_str!("../report/style.css"))) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                header {
                    h1 { (title) }
                    p .lead {
                        "Each point is a design, with the standard error of its perplexity against the float model's; the large \
                         ones are on the Pareto front of perplexity and every part of the cost. Lower is better on both axes. \
                         What is the same in every design is not drawn."
                    }
                }
                div .panels { @for i in &varied { (panel(*i, designs, front)) } }
                h2 { "What each value costs" }
                p .note { "Over all designs that have it." }
                (effects_table(&effects(designs)))
                h2 { "Pareto front" }
                p .note { "Tied: within two standard errors of the first design. Their order says nothing." }
                div .scroll { table {
                    tr {
                        th .text { "design" }
                        th { "perplexity" } th { "tied" } th { "KL" } th { "agreement" }
                        @for i in &varied { th { (designs[0].cost.fields()[*i].0) } }
                    }
                    @for design in &shown {
                        tr {
                            td .text { (words(design)) }
                            td { (design.perplexity_text(4)) }
                            td { @if tied(design) { "best" } }
                            td { (format!("{:.5}", design.kl)) }
                            td { (format!("{:.2} %", 100.0 * design.agreement)) }
                            @for i in &varied { td { (design.cost.fields()[*i].1) } }
                        }
                    }
                } }
            }
        }
    };
    page.into_string()
}

const STYLE: &str = "\
.panels { display: flex; flex-wrap: wrap; gap: 1rem; }\n\
svg .design { fill: var(--soft); fill-opacity: .6; }\n\
svg .front { fill: var(--red); fill-opacity: .85; }\n";

/// The parts of the cost, by number, in which designs differ.
fn varied_costs(designs: &[Design]) -> Vec<usize> {
    let Some(first) = designs.first().map(|d| d.cost.fields()) else {
        return Vec::new();
    };
    let differs = |i: &usize| designs.iter().any(|d| d.cost.fields()[*i].1 != first[*i].1);
    (0..first.len()).filter(differs).collect()
}

fn effects_table(effects: &[Effect]) -> Markup {
    html! {
        div .scroll { table {
            tr {
                th .text { "key" } th .text { "value" } th { "designs" }
                th { "best perplexity" } th { "mean perplexity" } th { "mean KL" } th { "mean agreement" }
            }
            @for effect in effects {
                tr {
                    td .text { (effect.key) }
                    td .text { (effect.value) }
                    td { (effect.designs) }
                    td { (format!("{:.4}", effect.best)) }
                    td { (format!("{:.4}", effect.perplexity)) }
                    td { (format!("{:.5}", effect.kl)) }
                    td { (format!("{:.2} %", 100.0 * effect.agreement)) }
                }
            }
        } }
    }
}

/// Some of the values that occur, spread over them.
fn marks(mut values: Vec<u64>) -> Vec<u64> {
    values.sort_unstable();
    values.dedup();
    if values.len() <= MARKS {
        return values;
    }
    let last = values.len() - 1;
    (0..MARKS).map(|k| values[k * last / (MARKS - 1)]).collect()
}

fn panel(cost: usize, designs: &[Design], front: &[bool]) -> Markup {
    let name = designs[0].cost.fields()[cost].0;
    let of = |design: &Design| design.cost.fields()[cost].1;
    let finite = |design: &Design| design.perplexity.is_finite() && design.perplexity > 0.0;
    let (low, high) = (designs.iter().filter(|d| finite(d)))
        .map(|d| d.perplexity)
        .fold((f64::INFINITY, 0.0f64), |(l, h), p| (l.min(p), h.max(p)));
    if !low.is_finite() {
        return html! {};
    }
    // Broken designs are orders of magnitude off: a logarithmic axis shows both.
    let (y0, y1) = (low.ln(), high.ln().max(low.ln() + 1e-6));
    let marks = marks(designs.iter().map(of).collect());
    let (x0, x1) = (marks[0] as f64, marks[marks.len() - 1] as f64);
    let x = |c: u64| LEFT + (c as f64 - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
    let y = |p: f64| HEIGHT - BOTTOM - (p.ln() - y0) / (y1 - y0) * (HEIGHT - BOTTOM - TOP);
    let levels = (0..=4).map(|k| (y0 + (y1 - y0) * f64::from(k) / 4.0).exp());
    let px = |v: f64| format!("{v:.1}");
    let mut points: Vec<usize> = (0..designs.len())
        .filter(|i| finite(&designs[*i]))
        .collect();
    points.sort_by_key(|i| front[*i]);
    let title = format!("perplexity against {name}");
    html! {
        svg width=(WIDTH) height=(HEIGHT) viewBox=(format!("0 0 {WIDTH} {HEIGHT}")) role="img" aria-label=(title) {
            text .strong x=(LEFT) y="16" { (title) }
            path .axis fill="none" d=(format!("M{LEFT} {TOP}V{0}H{1}", HEIGHT - BOTTOM, WIDTH - RIGHT)) {}
            @for p in levels {
                text x=(px(LEFT - 6.0)) y=(px(y(p) + 4.0)) text-anchor="end" { (number(p)) }
            }
            @for c in &marks {
                text x=(px(x(*c))) y=(px(HEIGHT - BOTTOM + 16.0)) text-anchor="middle" { (c) }
            }
            text x=(px((LEFT + WIDTH - RIGHT) / 2.0)) y=(px(HEIGHT - 4.0)) text-anchor="middle" { (name) }
            text transform=(format!("translate(12 {}) rotate(-90)", (HEIGHT - BOTTOM + TOP) / 2.0)) text-anchor="middle" { "perplexity" }
            @for i in points {
                @let design = &designs[i];
                @if let Some(se) = design.log_perplexity_se {
                    @let ends = [-se, se].map(|by| y((design.perplexity.ln() + by).exp()).clamp(TOP, HEIGHT - BOTTOM));
                    path .axis d=(format!("M{:.1} {:.1}V{:.1}", x(of(design)), ends[0], ends[1])) {}
                }
                circle class=(if front[i] { "front" } else { "design" }) r=(if front[i] { 5 } else { 3 })
                    cx=(px(x(of(design)))) cy=(px(y(design.perplexity))) {
                    title { (words(design)) ": " (design.perplexity_text(4)) }
                }
            }
        }
    }
}
