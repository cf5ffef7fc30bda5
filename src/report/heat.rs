//! Heat maps block × step: a shade and a legible number in every cell.

use super::ModeDetail;
use maud::{Markup, html};
use scalescope_golden::diagnosis::propagate::SiteError;

/// `normalized_l2` at which a cell is palest and darkest.
const RANGE: (f64, f64) = (1e-3, 0.3);
/// Shades in percent from which numbers change sides, by night and by day: where black and white are as legible.
const TURN: (f64, f64) = (61.5, 84.5);

/// How dark a value is, 0 to 100, on a logarithmic scale.
pub fn shade(value: f64) -> f64 {
    if value <= 0.0 {
        return 0.0;
    }
    let (low, high) = (RANGE.0.ln(), RANGE.1.ln());
    (100.0 * (value.ln() - low) / (high - low)).clamp(2.0, 100.0)
}

/// Share as a percentage in three digits.
fn percent(value: f64) -> String {
    match 100.0 * value {
        0.0 => "0".into(),
        v if v < 0.01 => format!("{v:.0e}"),
        v if v < 1.0 => format!("{v:.2}"),
        v if v < 100.0 => format!("{v:.1}"),
        v => format!("{v:.0}"),
    }
}

/// The map of local error, and that of propagated error.
pub fn maps(detail: &ModeDetail) -> Markup {
    html! {
        p .note {
            "normalized_l2 = ‖x − y‖ / ‖x‖ in percent, x the reference's tensor. Local: the step and the reference's step get "
            "the same clean tensors. Propagated: the step gets what the run made. Hover for both and the amplification."
        }
        h4 { "Local error: what each step makes itself, in % of its output" }
        (map(detail, SiteError::local_l2))
        h4 { "Propagated error: what has gathered up to each step, in % of its output" }
        (map(detail, SiteError::propagated_l2))
        div .legend {
            span { (format!("{} %", 100.0 * RANGE.0)) }
            span .ramp {}
            span { (format!("{} %", 100.0 * RANGE.1)) }
            span { "lower is better, logarithmic shade" }
        }
    }
}

fn map(detail: &ModeDetail, value: fn(&SiteError) -> f64) -> Markup {
    let sites = detail.propagation.sites_of_a_block();
    let layers = (detail.propagation.sites.iter())
        .filter_map(|s| s.layer)
        .max()
        .map_or(0, |last| last + 1);
    html! {
        div .scroll { table .heat {
            thead { tr {
                th { "block" }
                @for site in &sites { th { (wrapped(site)) } }
            } }
            tbody {
                @for layer in 0..layers {
                    tr {
                        td .layer { (layer) }
                        @for site in &sites {
                            @match detail.propagation.get(Some(layer), site) {
                                Some(at) => (cell(at, value(at))),
                                None => td .none { "·" },
                            }
                        }
                    }
                }
            }
        } }
    }
}

fn cell(at: &SiteError, value: f64) -> Markup {
    let title = format!(
        "block {} {}: local {} %, propagated {} %{}",
        at.layer.unwrap_or_default(),
        at.site,
        percent(at.local_l2()),
        percent(at.propagated_l2()),
        at.amplification
            .map_or(String::new(), |a| format!(", {a:.2} times what arrives")),
    );
    shaded(value, &percent(value), &title)
}

/// A cell, the darker the larger its value; what is not above zero stays blank.
pub fn shaded(value: f64, words: &str, title: &str) -> Markup {
    let shade = shade(value);
    html! {
        td .cell .mid[shade >= TURN.0] .dark[shade >= TURN.1] style={ "--s:" (format!("{shade:.0}")) } title=(title) { (words) }
    }
}

/// A name that may break after its separators.
pub fn wrapped(name: &str) -> Markup {
    html! {
        @for part in name.split_inclusive(['_', '.', ' ']) {
            (part) wbr;
        }
    }
}
