//! What quantizers on the device counted.

use super::args::{Pointer, Status as Counted};
use super::device::{Buffer, Device};
use crate::arith::saturate::{Overflow, Status};
use crate::error::Result;
use crate::trace::{Place, Probe};
use std::sync::Arc;

/// Counters of quantizers, read when a run is over: reading one would wait for the device.
pub struct Counts {
    slots: Option<Arc<Buffer>>,
    pending: Vec<Pending>,
    /// Slots given out.
    used: usize,
}

/// What a slot, or three of them, will hold.
struct Pending {
    place: Place,
    values: usize,
    overflow: Overflow,
    /// Whether two slots more count the values of segments.
    segments: bool,
}

/// Slots of the quantizers of a block, at most.
const SLOTS: usize = 16;
/// Slots that a quantizer with segments has.
const SEGMENTED: usize = 3;

impl Counts {
    /// Counters for a run through `layers` blocks, if the probe asks for them.
    pub fn new(device: &Arc<Device>, layers: usize, probe: &dyn Probe) -> Result<Self> {
        let slots = match probe.counts() {
            true => {
                // One more for the final norm.
                let bytes = (layers * SLOTS + 1) * size_of::<Counted>();
                let buffer = device.allocate(bytes)?;
                device.zero(&buffer, bytes)?;
                Some(buffer)
            }
            false => None,
        };
        Ok(Self {
            slots,
            pending: Vec::new(),
            used: 0,
        })
    }

    /// Where a quantizer of `values` values counts; 0 for nowhere.
    pub fn slot(&mut self, place: Place, values: usize, overflow: Overflow) -> Pointer {
        self.give(Pending {
            place,
            values,
            overflow,
            segments: false,
        })
    }

    /// Where a quantizer with segments counts; 0 for nowhere.
    pub fn segmented_slot(&mut self, place: Place, values: usize) -> Pointer {
        self.give(Pending {
            place,
            values,
            overflow: Overflow::Saturate,
            segments: true,
        })
    }

    fn give(&mut self, pending: Pending) -> Pointer {
        let Some(slots) = &self.slots else { return 0 };
        let at = self.used * size_of::<Counted>();
        self.used += if pending.segments { SEGMENTED } else { 1 };
        self.pending.push(pending);
        slots.pointer() + at as u64
    }

    /// Tells the probe what was counted.
    pub fn tell(self, probe: &mut dyn Probe) -> Result<()> {
        let Some(slots) = self.slots else {
            return Ok(());
        };
        let counted: Vec<Counted> = slots.device().download(slots.pointer(), self.used)?;
        let mut counted = &counted[..];
        for pending in self.pending {
            let (first, rest) = counted.split_first().expect("as many as were given out");
            let peak = f32::from_bits(first.peak);
            let mut status =
                Status::counted(pending.values, first.overflows, peak, pending.overflow);
            counted = rest;
            if pending.segments {
                let (segments, rest) = rest.split_at(SEGMENTED - 1);
                status
                    .segments
                    .copy_from_slice(bytemuck::cast_slice(segments));
                counted = rest;
            }
            probe.count(pending.place, status);
        }
        Ok(())
    }
}
