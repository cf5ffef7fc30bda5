//! A probe that counts codes and what came to quantizers, and keeps no tensor.

use super::flows;
use ndarray::{ArrayView2, s};
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::dataflow::Columns;
use scalescope_sim::datapath::Datapath;
use scalescope_sim::error::Result;
use scalescope_sim::model::Config;
use scalescope_sim::trace::{Place, Probe, Tensor, TracePoint};
use std::collections::BTreeMap;

/// How often each code occurs.
#[derive(Clone)]
pub(in crate::diagnosis) struct Grid {
    /// Counts of codes −128 to 127.
    pub counts: [u64; 256],
}

impl Grid {
    const EMPTY: Self = Self { counts: [0; 256] };

    fn add_codes(&mut self, codes: ArrayView2<i8>) {
        for code in codes {
            self.counts[(i16::from(*code) + 128) as usize] += 1;
        }
    }

    /// Distinct codes / 256.
    pub fn occupancy(&self) -> f64 {
        self.counts.iter().filter(|n| **n > 0).count() as f64 / 256.0
    }

    /// Largest |code|.
    pub fn reach(&self) -> u32 {
        let used = (0..256u32).filter(|i| self.counts[*i as usize] > 0);
        used.map(|i| i.abs_diff(128)).max().unwrap_or(0)
    }
}

/// What passed.
pub(in crate::diagnosis) struct Watch {
    /// What readers take of each tensor.
    parts: Vec<(TracePoint, Columns)>,
    config: Config,
    grids: BTreeMap<(Place, Columns), Grid>,
    counts: BTreeMap<Place, Status>,
    /// The smallest and the largest scale of dynamic quantizers.
    dynamic: BTreeMap<Place, (f64, f64)>,
}

impl Watch {
    pub fn new(path: &Datapath) -> Self {
        let mut parts: Vec<_> = (flows(path).iter())
            .map(|flow| (flow.point, flow.columns))
            .collect();
        parts.dedup();
        Self {
            parts,
            config: path.config().clone(),
            grids: BTreeMap::new(),
            counts: BTreeMap::new(),
            dynamic: BTreeMap::new(),
        }
    }

    /// Adds what another saw.
    pub fn add(&mut self, other: Self) {
        for (key, grid) in other.grids {
            let mine = self.grids.entry(key).or_insert(Grid::EMPTY);
            for (sum, count) in mine.counts.iter_mut().zip(grid.counts) {
                *sum += count;
            }
        }
        for (place, status) in other.counts {
            *self.counts.entry(place).or_default() += status;
        }
        for (place, (low, high)) in other.dynamic {
            self.add_dynamic(place, low, high);
        }
    }

    fn add_dynamic(&mut self, place: Place, low: f64, high: f64) {
        let range = self.dynamic.entry(place).or_insert((low, high));
        *range = (range.0.min(low), range.1.max(high));
    }

    /// The codes of a part of a tensor.
    pub fn grid(&self, layer: usize, point: TracePoint, part: Columns) -> &Grid {
        let key = (Place::layer(layer, point), part);
        self.grids.get(&key).unwrap_or(&Grid::EMPTY)
    }

    /// What came to the quantizer of a tensor.
    pub fn status(&self, layer: usize, point: TracePoint) -> Status {
        let status = self.counts.get(&Place::layer(layer, point));
        status.copied().unwrap_or_default()
    }

    /// The smallest and the largest scale of the dynamic quantizer that makes a point.
    pub fn dynamic_scales(&self, layer: usize, point: TracePoint) -> (f64, f64) {
        let place = point.scales().map(|scales| Place::layer(layer, scales));
        let range = place.and_then(|place| self.dynamic.get(&place));
        range.copied().unwrap_or((1.0, 1.0))
    }
}

impl Probe for Watch {
    fn wants(&self, place: Place) -> bool {
        place.layer.is_some()
            && (place.point.is_scale()
                || self.parts.iter().any(|(point, ..)| *point == place.point))
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        let codes = match &*value {
            Tensor::I8(q) => q.codes.view(),
            Tensor::Codes(codes) => codes.view(),
            Tensor::F32(scales) if place.point.is_scale() => {
                for scale in scales {
                    self.add_dynamic(place, f64::from(*scale), f64::from(*scale));
                }
                return Ok(());
            }
            _ => return Ok(()),
        };
        for (point, part) in &self.parts {
            if *point == place.point {
                let grid = self.grids.entry((place, *part)).or_insert(Grid::EMPTY);
                let columns = part.range(&self.config, codes.ncols());
                grid.add_codes(codes.slice(s![.., columns]));
            }
        }
        Ok(())
    }

    fn count(&mut self, place: Place, status: Status) {
        *self.counts.entry(place).or_default() += status;
    }
}
