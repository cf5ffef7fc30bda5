//! Codes whose bits are read otherwise.

use crate::diagnosis::diagnose::kind::Kind;
use ndarray::{Array2, Axis};

/// A code as a byte without a sign.
pub(super) fn unsigned(code: f32) -> f32 {
    if code < 0.0 { code + 256.0 } else { code }
}

/// A code some of whose bits are stuck.
pub(super) fn stuck(code: f32, mask: u8, set: bool) -> f32 {
    let byte = code as i8 as u8;
    f32::from((if set { byte | mask } else { byte & !mask }) as i8)
}

/// Codes of an operand that lack something.
#[derive(Clone, Copy)]
pub(super) enum Narrowed {
    /// A bit is stuck.
    Stuck(u8, bool),
    /// A bit is inverted; the sign's bit is an offset of 128 that wraps.
    Inverted(u8),
    /// Rounded to so many bits.
    Rounded(u8),
    /// End at those of so many bits.
    Ended(u8),
    /// End at ± so much.
    Clipped(u8),
    /// The upper four bits and the lower ones have changed places.
    Nibbles,
    /// The other sign.
    Negated,
    /// Negative ones are zero.
    Positive,
    /// The sign is lost.
    Magnitude,
}

impl Narrowed {
    pub(super) fn all() -> Vec<Self> {
        let stuck = (0..8).flat_map(|bit| {
            [
                Self::Stuck(bit, false),
                Self::Stuck(bit, true),
                Self::Inverted(bit),
            ]
        });
        let bits = [4, 5, 6].into_iter();
        let narrow = bits.flat_map(|bits| [Self::Rounded(bits), Self::Ended(bits)]);
        let signs = [Self::Negated, Self::Positive, Self::Magnitude];
        let clipped = [32u8, 48, 64, 80, 96, 100, 112, 120].map(Self::Clipped);
        let narrow = narrow.chain(clipped).chain([Self::Nibbles]);
        stuck.chain(narrow).chain(signs).collect()
    }

    pub(super) fn of(self, v: f32) -> f32 {
        match self {
            Self::Stuck(bit, set) => stuck(v, 1 << bit, set),
            Self::Inverted(bit) => f32::from((v as i8 as u8 ^ 1 << bit) as i8),
            Self::Rounded(bits) => {
                let (step, top) = (f32::from(1u8 << (8 - bits)), f32::from(1u8 << (bits - 1)));
                (v / step).round_ties_even().clamp(-top, top - 1.0) * step
            }
            Self::Ended(bits) => {
                let top = f32::from(1u8 << (bits - 1));
                v.clamp(-top, top - 1.0)
            }
            Self::Clipped(top) => v.clamp(-f32::from(top), top.into()),
            Self::Nibbles => f32::from((v as i8 as u8).rotate_left(4) as i8),
            Self::Negated => -v,
            Self::Positive => v.max(0.0),
            Self::Magnitude => v.abs(),
        }
    }

    /// Whether it needs codes.
    pub(super) fn is_of_codes(self) -> bool {
        matches!(
            self,
            Self::Stuck(..)
                | Self::Inverted(_)
                | Self::Rounded(_)
                | Self::Ended(_)
                | Self::Clipped(_)
                | Self::Nibbles
        )
    }

    pub(super) fn kind(self) -> Kind {
        match self {
            Self::Stuck(..) => Kind::StuckBit,
            Self::Inverted(7) => Kind::ZeroPoint,
            Self::Inverted(_) => Kind::FlippedBit,
            Self::Rounded(_) => Kind::Width,
            Self::Ended(_) | Self::Clipped(_) => Kind::Overflow,
            Self::Nibbles => Kind::Order,
            Self::Negated => Kind::Sign,
            Self::Positive | Self::Magnitude => Kind::Function,
        }
    }

    pub(super) fn rank(self) -> usize {
        match self {
            Self::Negated => 5,
            _ => 6,
        }
    }

    pub(super) fn words(self, name: &str) -> String {
        match self {
            Self::Stuck(bit, set) => {
                format!("bit {bit} of {name} is stuck at {}", u8::from(set))
            }
            Self::Inverted(7) => format!("{name} are offset by 128: the sign's bit is inverted"),
            Self::Inverted(bit) => format!("bit {bit} of {name} is inverted"),
            Self::Rounded(bits) => format!("{name} are rounded to {bits} bits"),
            Self::Ended(bits) => format!("{name} end at those of {bits} bits"),
            Self::Clipped(top) => format!("{name} end at ±{top}"),
            Self::Nibbles => format!("the two halves of the bytes of {name} are swapped"),
            Self::Negated => format!("{name} have the other sign"),
            Self::Positive => format!("negative {name} are zero"),
            Self::Magnitude => format!("{name} have lost their sign"),
        }
    }
}

/// Bytes that are put together to words as integers with a sign, which spill over into the bytes above.
#[derive(Clone, Copy)]
pub(super) struct Packing {
    /// Bytes of a word.
    bytes: usize,
    /// Whether they are added, and not joined by or.
    added: bool,
}

impl Packing {
    pub(super) const ALL: [Packing; 6] = [
        Packing {
            bytes: 4,
            added: false,
        },
        Packing {
            bytes: 4,
            added: true,
        },
        Packing {
            bytes: 2,
            added: false,
        },
        Packing {
            bytes: 2,
            added: true,
        },
        Packing {
            bytes: 8,
            added: false,
        },
        Packing {
            bytes: 8,
            added: true,
        },
    ];

    pub(super) fn words(self, name: &str) -> String {
        let how = if self.added { "added" } else { "joined by or" };
        format!(
            "{} codes of {name} are {how} to a word without a mask: the signs of the lower ones spill over",
            self.bytes
        )
    }

    /// Rows of codes, packed and unpacked.
    pub(super) fn of(self, codes: &Array2<f32>) -> Array2<f32> {
        let mut out = codes.clone();
        for mut row in out.rows_mut() {
            for mut word in row.axis_chunks_iter_mut(Axis(0), self.bytes) {
                let all = word.iter().enumerate();
                let packed = all.fold(0i64, |packed, (i, code)| {
                    let byte = (*code as i64) << (8 * i);
                    if self.added {
                        packed.wrapping_add(byte)
                    } else {
                        packed | byte
                    }
                });
                for (i, code) in word.iter_mut().enumerate() {
                    *code = f32::from((packed >> (8 * i)) as i8);
                }
            }
        }
        out
    }
}

/// Codes that differ from one in a bit, zero, and the other sign, with words for the bit.
pub(super) fn turned_bits(code: f32) -> Vec<(f32, String)> {
    let byte = code as i8 as u8;
    let bits = (0..8u8).map(|bit| {
        let after = f32::from((byte ^ 1 << bit) as i8);
        (after, format!(", bit {bit}"))
    });
    let others = [0.0, -code].map(|after| (after, String::new()));
    let all = bits.chain(others);
    all.filter(|(after, _)| *after != code && (-128.0..=127.0).contains(after))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_spill_over() {
        let codes = Array2::from_shape_vec((1, 5), vec![3.0, -2.0, 7.0, 5.0, 1.0]).unwrap();
        let [joined, added, ..] = Packing::ALL;
        assert_eq!(
            joined.of(&codes).row(0).to_vec(),
            [3.0, -2.0, -1.0, -1.0, 1.0]
        );
        assert_eq!(added.of(&codes).row(0).to_vec(), [3.0, -2.0, 6.0, 5.0, 1.0]);
    }
}
