//! What each site of a mode costs, on a part of the text: the ranking of `scalescope attribute`, as a
//! map and in words.

use super::depth::{Depth, SITE_SEQUENCES};
use super::heat;
use super::remarks::Remark;
use maud::{Markup, html};
use scalescope_golden::diagnosis::cost::causes;
use scalescope_golden::diagnosis::cost::loss::Text;
use scalescope_golden::diagnosis::cost::sites::{Costs, Options, SiteCost, attribute};
use scalescope_golden::diagnosis::finding::{Finding, Severity};
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use serde::Serialize;

/// Losses are measured at every fourth position.
const STRIDE: usize = 4;

/// Findings that the page has room for; errors are always told.
const NAMED: usize = 6;

/// What each site costs, and what stands out.
#[derive(Clone, Debug, Serialize)]
pub struct Attribution {
    /// Every site.
    #[serde(flatten)]
    pub costs: Costs,
    /// The costliest, and scales that do not fit.
    pub remarks: Vec<Remark>,
}

/// Switches every site of a mode, on the beginnings of the first sequences.
pub fn attribution<'m>(
    path: &Datapath<'m>,
    reference: &Datapath<'m>,
    depth: &Depth,
    done: &(dyn Fn(usize, usize) + Sync),
) -> Result<Attribution> {
    let beginning = |s: &Vec<u32>| s[..s.len().min(depth.site_tokens)].to_vec();
    let sequences = depth.sequences.iter().take(SITE_SEQUENCES);
    let text = Text {
        sequences: sequences.map(beginning).collect(),
        stride: STRIDE,
    };
    let costs = attribute(path, reference, &text, Options::default(), done)?;
    let findings = causes::find(path, reference, &text, &costs)?;
    let told = |(i, finding): &(usize, &Finding)| *i < NAMED || finding.severity == Severity::Error;
    let findings = findings.iter().enumerate().filter(told);
    Ok(Attribution {
        costs,
        remarks: findings.map(|(_, finding)| Remark::from(finding)).collect(),
    })
}

/// The map block × site of shares.
pub fn map(attribution: &Attribution) -> Markup {
    let costs = &attribution.costs;
    let layers = costs
        .sites
        .iter()
        .map(|s| s.layer)
        .max()
        .map_or(0, |l| l + 1);
    let of = |layer: usize| costs.sites.iter().filter(move |s| s.layer == layer);
    let mut columns: Vec<&SiteCost> = of(0).collect();
    columns.sort_by_key(|s| s.part);
    html! {
        p .note {
            "Each site alone is switched to the reference's precision, and to the mode's in the reference. The share is the mean of both changes of the KL, "
            "weighted by their precision, over the mode's KL (" (format!("{:.5}", costs.kl)) " nats a token on " (costs.tokens) " tokens of this text, "
            (costs.positions) " positions). Shaded is what costs more than three standard errors; the rest may be chance. Sites act together, so that shares need not add up to 100 %. "
            code { "scalescope attribute" } " measures on more text, with Shapley values."
        }
        h4 { "Share of the KL, in %" }
        div .scroll { table .heat {
            thead { tr {
                th { "block" }
                @for site in &columns { th { (heat::wrapped(site.site)) } }
            } }
            tbody { @for layer in 0..layers { tr {
                td .layer { (layer) }
                @for column in &columns {
                    @match of(layer).find(|s| s.site == column.site) {
                        Some(site) => (cell(site)),
                        None => td .none { "·" },
                    }
                }
            } } }
        } }
    }
}

fn cell(site: &SiteCost) -> Markup {
    let title = format!(
        "block {} {}: one off {:.5}, one on {:.5} nats a token",
        site.layer, site.site, site.one_off_kl, site.one_on_kl
    );
    // A shade is a claim: none for what may be chance.
    let shade = if site.cost_kl.stands_out() {
        site.share
    } else {
        0.0
    };
    heat::shaded(shade, &format!("{:.1}", 100.0 * site.share), &title)
}
