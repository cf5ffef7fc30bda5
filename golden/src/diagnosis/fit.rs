//! Does a scale fit what meets it? One rule for `lineage`, `attribute` and the report.
//!
//! A severity stands for harm. Clipping what the observer of a scale was told to clip is none, and neither
//! is a grid whose ends a short text does not reach. The limits come from the sample model with one
//! calibrated scale multiplied in every block (docs/diagnosis.md has the table).

use crate::diagnosis::finding::Severity;
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::calibrate::promised_clipping;
use scalescope_sim::model::ScaleKey;
use serde::Serialize;

/// Clipped values, as a share of all, beyond what the observer promised: more is a warning. Calibrated
/// models clip up to 0.12 % more on other texts; 0.25 % more can double the KL of the whole model.
pub const CLIPPED_WARNING: f64 = 0.0025;
/// More is an error.
pub const CLIPPED_ERROR: f64 = 0.01;
/// absmax/(127·scale) below this leaves three of the eight bits unused, which doubles the KL or more.
pub const UNUSED: f64 = 0.125;
/// On fewer tokens nothing is said of the ends of a grid that are not reached.
pub const UNUSED_TOKENS: usize = 256;
/// A value that wraps is off by this many steps.
const WRAP: f64 = 256.0;
/// What rounding adds to a value, in steps squared.
const ROUNDING_NOISE: f64 = 1.0 / 12.0;

/// The verdict on a scale.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Fit {
    /// Harm.
    pub severity: Severity,
    /// Share of values that the scale's observer was told to clip.
    pub promised: f64,
    /// What is the matter, in words; empty if nothing is.
    pub words: String,
}

impl Fit {
    /// Of a scale and what a quantizer with it counted over so many tokens.
    pub fn of(key: ScaleKey, status: &Status, tokens: usize) -> Self {
        let promised = promised_clipping(key);
        let info = |words| (Severity::Info, words);
        let found = [
            wrapped(status),
            clipped(status, promised),
            unused(status, tokens),
        ];
        let worst = (found.into_iter().flatten()).max_by_key(|(severity, _)| *severity);
        let (severity, words) = worst.unwrap_or_else(|| info(String::new()));
        Self {
            severity,
            promised,
            words,
        }
    }
}

/// Wrapping is harm where it adds more noise than rounding does.
fn wrapped(status: &Status) -> Option<(Severity, String)> {
    let rate = share(status.wrapped, status);
    let severity = match rate * WRAP * WRAP > ROUNDING_NOISE {
        true => Severity::Error,
        false => Severity::Info,
    };
    (status.wrapped > 0).then(|| {
        let words = format!(
            "{} of {} values lost their high bits and changed sign (wrapped)",
            status.wrapped, status.values
        );
        (severity, words)
    })
}

/// Clipping is harm where it goes beyond the promise by more than three standard errors of the count.
fn clipped(status: &Status, promised: f64) -> Option<(Severity, String)> {
    let count = status.saturated as f64;
    let surely = (count - 3.0 * count.sqrt()) / status.values.max(1) as f64;
    let severity = match surely - promised {
        more if more > CLIPPED_ERROR => Severity::Error,
        more if more > CLIPPED_WARNING => Severity::Warning,
        _ => return None,
    };
    let promise = match promised {
        0.0 => "its scale was calibrated to clip none".to_owned(),
        some => format!("its scale was calibrated to clip {}", percent(some)),
    };
    let words = format!(
        "{} of the values are clipped, up to {:.2} times the grid's reach; {promise}",
        percent(share(status.saturated, status)),
        status.scale_ratio()
    );
    Some((severity, words))
}

fn unused(status: &Status, tokens: usize) -> Option<(Severity, String)> {
    let ratio = status.scale_ratio();
    (status.values > 0 && tokens >= UNUSED_TOKENS && ratio < UNUSED).then(|| {
        let words = format!(
            "the largest value reaches {} of the grid: three bits or more are never used",
            percent(ratio)
        );
        (Severity::Warning, words)
    })
}

fn share(count: u64, status: &Status) -> f64 {
    count as f64 / status.values.max(1) as f64
}

/// A share in percent, `0.05 %`, in two digits below one.
pub fn percent(share: f64) -> String {
    match 100.0 * share {
        0.0 => "0 %".to_owned(),
        v if v < 0.001 => format!("{v:.0e} %"),
        v if v < 0.1 => format!("{v:.3} %"),
        v if v < 10.0 => format!("{v:.2} %"),
        v => format!("{v:.1} %"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use scalescope_sim::arith::saturate::Overflow;

    fn fit(key: ScaleKey, overflows: u64, peak: f32, rule: Overflow, tokens: usize) -> Fit {
        let status = Status::counted(1_000_000, overflows, peak, rule);
        Fit::of(key, &status, tokens)
    }

    #[test]
    fn severity_is_harm() {
        use Overflow::{Saturate, Wrap};
        use ScaleKey::{InProjInput, XProjInput};
        use Severity::{Error, Info, Warning};
        for (key, overflows, peak, rule, tokens, severity) in [
            // What a percentile promised, however far it reaches, and a little more on another text.
            (XProjInput, 500, 2000.0, Saturate, 2048, Info),
            (XProjInput, 1_700, 324.0, Saturate, 2048, Info),
            (XProjInput, 5_000, 324.0, Saturate, 2048, Warning),
            (XProjInput, 20_000, 324.0, Saturate, 2048, Error),
            // A minmax scale promises nothing.
            (InProjInput, 20, 133.0, Saturate, 2048, Info),
            (InProjInput, 5_000, 133.0, Saturate, 2048, Warning),
            (InProjInput, 20_000, 508.0, Saturate, 2048, Error),
            // One value in a million adds less noise than rounding; ten add more.
            (InProjInput, 1, 130.0, Wrap, 2048, Info),
            (InProjInput, 10, 130.0, Wrap, 2048, Error),
            // A short text says nothing of the ends of the grid.
            (InProjInput, 0, 12.0, Saturate, 2048, Warning),
            (InProjInput, 0, 12.0, Saturate, 17, Info),
            (InProjInput, 0, 40.0, Saturate, 2048, Info),
        ] {
            let found = fit(key, overflows, peak, rule, tokens);
            let case = format!("{key:?} {overflows} {peak} {rule:?} {tokens}: {found:?}");
            assert_eq!(found.severity, severity, "{case}");
            let silent = found.words.is_empty();
            assert!(silent == (severity == Info && rule == Saturate), "{case}");
        }
    }

    #[test]
    fn few_values_prove_nothing() {
        // One value of 88 is more than a hundredth, and may be chance.
        let status = Status::counted(88, 1, 129.0, Overflow::Saturate);
        let found = Fit::of(ScaleKey::XProjOutput, &status, 2);
        assert_eq!(found.severity, Severity::Info);
    }
}
