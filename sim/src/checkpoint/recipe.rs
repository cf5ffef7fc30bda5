//! How a float checkpoint becomes a quantized model, where implementations differ: data that [`fold`](super::fold)
//! and [`quantize`](super::quantize) read.

use crate::arith::requant::AbsmaxDivision;
use crate::error::{Result, SimError};

/// In which order weights are multiplied by a Hadamard matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightRotation {
    /// The butterflies of [`crate::arith::hadamard`] in f32, one multiplication by f32(1/√n), binary16.
    Butterflies,
    /// A dense f32 product with the matrix whose entries are ±f32(1/√n).
    DenseProduct,
}

/// In which precision A_log and D are quantized.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScanPrecision {
    /// FP32 values and scale.
    F32,
    /// Rounded to binary16 first, then by the rule of all other weights.
    F16,
}

/// A set of rules, by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// The name on the command line.
    pub name: &'static str,
    /// Order of the rotation.
    pub rotation: WeightRotation,
    /// Precision of A_log and D.
    pub scan: ScanPrecision,
    /// From the largest weight to the scale.
    pub step: AbsmaxDivision,
}

impl Recipe {
    /// What Quamba's conversion does, to the last bit.
    pub const QUAMBA: Recipe = Recipe {
        name: "quamba",
        rotation: WeightRotation::Butterflies,
        scan: ScanPrecision::F32,
        step: AbsmaxDivision::Reciprocal,
    };

    /// What made the model behind the golden traces, and so the sample model that is built in.
    pub const GOLDEN: Recipe = Recipe {
        name: "golden",
        rotation: WeightRotation::DenseProduct,
        scan: ScanPrecision::F16,
        step: AbsmaxDivision::Division,
    };

    /// Every recipe, the usual one first.
    pub const ALL: [Recipe; 2] = [Recipe::QUAMBA, Recipe::GOLDEN];

    /// The recipe of a name.
    ///
    /// # Errors
    ///
    /// An unknown name; the line lists the known ones.
    pub fn named(name: &str) -> Result<Recipe> {
        let found = Recipe::ALL.into_iter().find(|recipe| recipe.name == name);
        found.ok_or_else(|| {
            let names = Recipe::ALL.map(|recipe| recipe.name).join(", ");
            SimError::value("recipe", names, super::input::shown(name))
        })
    }
}
