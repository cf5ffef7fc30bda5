//! Scales on the page: distributions over the INT8 grid, and the lineage.

use super::{ModeDetail, chart};
use crate::output::number;
use maud::{Markup, html};
use scalescope_golden::diagnosis::finding::Severity;
use scalescope_golden::diagnosis::lineage::{Lineage, Quantizer, Reader};

/// Names of the quantizers of a block, in the order of the data.
fn names(lineage: &Lineage) -> Vec<&'static str> {
    let first = lineage.quantizers.iter().filter(|q| q.layer == 0);
    first.map(|q| q.name).collect()
}

fn layers(lineage: &Lineage) -> usize {
    let last = lineage.quantizers.iter().map(|q| q.layer).max();
    last.map_or(0, |last| last + 1)
}

fn at<'a>(lineage: &'a Lineage, layer: usize, name: &str) -> Option<&'a Quantizer> {
    let mut all = lineage.quantizers.iter();
    all.find(|q| q.layer == layer && q.name == name)
}

/// A histogram of the codes of every quantizer.
pub fn distributions(detail: &ModeDetail) -> Markup {
    let lineage = &detail.lineage;
    let names = names(lineage);
    html! {
        div .scroll { table .grids {
            thead {
                tr { th {} @for name in &names { th { (name) } } }
                tr { th {} @for _ in &names { th { (chart::code_axis()) } } }
            }
            tbody {
                @for layer in 0..layers(lineage) {
                    tr {
                        td .layer { (layer) }
                        @for name in &names {
                            td { @if let Some(q) = at(lineage, layer, name) { (grid(q)) } }
                        }
                    }
                }
            }
        } }
    }
}

fn grid(q: &Quantizer) -> Markup {
    let clipped = q.clipped > 0.0;
    let title = format!(
        "block {} {}: {:.4} % clipped{}, absmax/(127·scale) = {:.3}",
        q.layer,
        q.name,
        100.0 * q.clipped,
        q.codes_used(),
        q.scale_ratio
    );
    match q.histogram.is_empty() {
        true => html! { span title=(title) { "FP32 " (q.segments_text()) } },
        false => chart::histogram(&q.histogram, clipped, &title),
    }
}

/// Scale ratios of every quantizer, and who reads with which scale.
pub fn lineage(detail: &ModeDetail) -> Markup {
    let lineage = &detail.lineage;
    let names = names(lineage);
    let broken: Vec<(&Quantizer, &Reader)> = (lineage.quantizers.iter())
        .flat_map(|q| q.readers.iter().map(move |r| (q, r)))
        .filter(|(_, r)| r.severity > Severity::Info)
        .collect();
    let edges: usize = lineage.quantizers.iter().map(|q| q.readers.len()).sum();
    html! {
        div .scroll { table {
            thead { tr {
                th .text { "block" }
                @for name in &names { th { (name) } }
            } }
            tbody {
                @for layer in 0..layers(lineage) {
                    tr {
                        td .text { (layer) }
                        @for name in &names {
                            @match at(lineage, layer, name) {
                                Some(q) => (ratio(q)),
                                None => td { "·" },
                            }
                        }
                    }
                }
                tr {
                    td .text { "read by" }
                    @for name in &names {
                        td {
                            @for reader in at(lineage, 0, name).map_or(&[][..], |q| &q.readers) {
                                div { (reader.label()) }
                            }
                        }
                    }
                }
            }
        } }
        @if broken.is_empty() {
            p .note { "All " (edges) " readers have the scale of the quantizer whose codes they read." }
        } @else {
            p { span .badge.error { "error" } " Producer and consumer disagree:" }
            div .scroll { table {
                thead { tr {
                    th .text { "block" } th .text { "written by" } th { "scale" }
                    th .text { "read by" } th { "scale" } th { "factor" }
                } }
                tbody { @for (q, r) in broken { tr {
                    td .text { (q.layer) } td .text { (q.name) } td { (number(q.scale)) }
                    td .text { (r.name) } td { (number(r.scale)) } td .error { (format!("{:.4}", r.factor)) }
                } } }
            } }
        }
    }
}

fn ratio(q: &Quantizer) -> Markup {
    let class = match q.severity {
        Severity::Info => "",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    let mut title = format!(
        "scale {}, absmax {}, {:.4} % clipped, {} wrapped{}",
        number(q.scale),
        number(q.absmax),
        100.0 * q.clipped,
        q.wrapped,
        q.codes_used()
    );
    if let Some(over) = q.over_calibrated {
        title += &format!(", {over:.2} times the calibrated scale");
    }
    let mark = match q.severity {
        Severity::Info => "",
        Severity::Warning => " △",
        Severity::Error => " ▲",
    };
    html! { td class=(class) title=(title) { (format!("{:.3}", q.scale_ratio)) (mark) } }
}
