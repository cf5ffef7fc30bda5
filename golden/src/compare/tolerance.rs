//! What a comparison forgives. Nothing, unless somebody said so.

use crate::npz::shown;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::trace::{Place, TracePoint};
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;

/// How far a result may be from its reference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tolerance {
    /// Not at all: the same bits.
    Exact,
    /// By this absolute difference; codes count in steps.
    Atol(f64),
    /// By this many representable values of the float type. Codes must be identical.
    Ulp(u64),
    /// One unit in the last place of binary16, or 1e-4: the reference leaves the order of the
    /// head's sums open. `docs/arithmetic.md`.
    LogitsF16,
}

impl Tolerance {
    /// What the reference leaves open at a point: nothing, except for logits.
    pub fn of(point: TracePoint) -> Self {
        match point == TracePoint::Logits {
            true => Tolerance::LogitsF16,
            false => Tolerance::Exact,
        }
    }

    /// Whether two finite values that are not identical may stand for each other.
    pub(super) fn accepts(self, x: f64, y: f64, ulp: Option<u64>) -> bool {
        match self {
            Tolerance::Exact => false,
            Tolerance::Atol(limit) => (x - y).abs() <= limit,
            Tolerance::Ulp(limit) => ulp.is_some_and(|ulp| ulp <= limit),
            Tolerance::LogitsF16 => ulp.is_some_and(|ulp| ulp <= 1) || (x - y).abs() <= 1e-4,
        }
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Tolerance::Exact => f.write_str("exact"),
            Tolerance::Atol(limit) => write!(f, "atol {limit:e}"),
            Tolerance::Ulp(limit) => write!(f, "{limit} ulp"),
            Tolerance::LogitsF16 => f.write_str("1 ulp of f16 or 1e-4"),
        }
    }
}

impl Serialize for Tolerance {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// The tolerance of every point: what the reference leaves open, unless set otherwise.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tolerances {
    points: BTreeMap<TracePoint, Tolerance>,
    places: BTreeMap<Place, Tolerance>,
}

impl Tolerances {
    /// Reads settings such as `ssm_y:1e-3` (all blocks) and `layer_07/ssm_y:0.5` (one).
    pub fn parse<S: AsRef<str>>(settings: impl IntoIterator<Item = S>) -> Result<Self> {
        let mut tolerances = Self::default();
        for setting in settings {
            tolerances.set_atol(setting.as_ref())?;
        }
        Ok(tolerances)
    }

    /// Sets the tolerance of a point in every block.
    pub fn set(&mut self, point: TracePoint, tolerance: Tolerance) {
        self.points.insert(point, tolerance);
    }

    /// The tolerance of a place.
    pub fn of(&self, place: Place) -> Tolerance {
        self.set_for(place)
            .unwrap_or_else(|| Tolerance::of(place.point))
    }

    /// The tolerance that was set for a place, if any was.
    pub fn set_for(&self, place: Place) -> Option<Tolerance> {
        let set = self
            .places
            .get(&place)
            .or_else(|| self.points.get(&place.point));
        set.copied()
    }

    fn set_atol(&mut self, setting: &str) -> Result<()> {
        let fault = |expected: &str, found: &str| SimError::value("--atol", expected, shown(found));
        let (name, number) = setting
            .rsplit_once(':')
            .ok_or_else(|| fault("POINT:NUMBER, such as ssm_y:1e-3", setting))?;
        let limit: f64 = number.trim().parse().unwrap_or(f64::NAN);
        if !(limit >= 0.0 && limit.is_finite()) {
            return Err(fault("a finite number from 0", number));
        }
        let tolerance = Tolerance::Atol(limit);
        if let Some(point) = TracePoint::from_name(name) {
            self.points.insert(point, tolerance);
        } else if let Some(place) = Place::from_key(name) {
            self.places.insert(place, tolerance);
        } else {
            return Err(fault(
                "a trace point, such as ssm_y or layer_07/ssm_y",
                name,
            ));
        }
        Ok(())
    }
}
