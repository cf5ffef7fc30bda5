//! The scales of a block, one for each use.

pub use crate::dataflow::ScaleUse;
use crate::error::Result;
use crate::model::ActivationScales;
use crate::quant::Scale;

/// The scales of a block, one for each use.
#[derive(Clone, Debug, PartialEq)]
pub struct ScalePlan([Scale; ScaleUse::ALL.len()]);

impl ScalePlan {
    /// Every use gets its calibrated scale.
    pub fn new(scales: &ActivationScales) -> Self {
        Self(ScaleUse::ALL.map(|scale_use| scales.get(scale_use.key())))
    }

    /// The scale of a use.
    pub fn get(&self, scale_use: ScaleUse) -> Scale {
        self.0[scale_use as usize]
    }

    /// Multiplies one use's scale (a fault, or a recommendation to try).
    pub fn multiply(&mut self, scale_use: ScaleUse, factor: f32) -> Result<()> {
        let scale = &mut self.0[scale_use as usize];
        *scale = scale.times(factor)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ScaleKey;

    #[test]
    fn uses_index_their_own_entry_and_every_key_has_a_producer_and_a_consumer() {
        for (i, scale_use) in ScaleUse::ALL.into_iter().enumerate() {
            assert_eq!(scale_use as usize, i);
        }
        for key in ScaleKey::ALL {
            for produces in [true, false] {
                assert!(
                    ScaleUse::ALL
                        .into_iter()
                        .any(|u| u.key() == key && u.produces() == produces)
                );
            }
        }
    }
}
