//! The grid of a sweep: keys of a profile file and the values each takes.

use scalescope_sim::error::{Result, SimError};
use serde_json::Value;
use std::str::FromStr;

/// A key and its values: `requant.multiplier_bits=8..16`, `scan.state=int8,int16,f16`,
/// `nonlinearity.exp.entries=64..1024*2`.
#[derive(Clone, Debug, PartialEq)]
pub struct Vary {
    /// The key of the profile file.
    pub key: String,
    /// Its values, in the order given.
    pub values: Vec<Value>,
}

/// Values of one range, at most.
const MOST: usize = 4096;

impl FromStr for Vary {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, list) = text
            .split_once('=')
            .ok_or("KEY=VALUES, such as scan.state=int8,int16 or requant.multiplier_bits=8..16")?;
        let mut values = Vec::new();
        for part in list.split(',').map(str::trim) {
            match part.split_once("..") {
                Some((first, rest)) => range(first, rest, &mut values)
                    .ok_or_else(|| format!("{part}: expected FIRST..LAST, FIRST..LAST+STEP or FIRST..LAST*FACTOR of whole numbers, at most {MOST} of them"))?,
                None if part.is_empty() => return Err("a value after each comma and =".to_owned()),
                None => values.push(single(part)),
            }
        }
        Ok(Vary {
            key: key.trim().to_owned(),
            values,
        })
    }
}

fn single(text: &str) -> Value {
    match (text.parse::<i64>(), text.parse::<bool>()) {
        (Ok(number), _) => number.into(),
        (_, Ok(flag)) => flag.into(),
        _ => text.into(),
    }
}

fn range(first: &str, rest: &str, values: &mut Vec<Value>) -> Option<()> {
    let (last, step, factor) = match (rest.split_once('+'), rest.split_once('*')) {
        (Some((last, step)), _) => (last, step.parse::<i64>().ok()?, 1),
        (_, Some((last, factor))) => (last, 0, factor.parse::<i64>().ok()?),
        _ => (rest, 1, 1),
    };
    let (mut value, last) = (first.parse::<i64>().ok()?, last.parse::<i64>().ok()?);
    let grows = step > 0 || (factor > 1 && value > 0);
    if !grows || value > last {
        return None;
    }
    while value <= last {
        if values.len() >= MOST {
            return None;
        }
        values.push(value.into());
        value = value.checked_mul(factor)?.checked_add(step)?;
    }
    Some(())
}

/// The values of one design, key by key.
pub type Values = Vec<(String, Value)>;

/// Every combination, the last key fastest.
pub fn designs(vary: &[Vary]) -> Result<Vec<Values>> {
    let mut designs: Vec<Values> = vec![Vec::new()];
    for one in vary {
        if designs.len() * one.values.len() > 1 << 20 {
            return Err(SimError::value("--vary", "at most 1048576 designs", "more"));
        }
        designs = designs
            .iter()
            .flat_map(|design| {
                one.values.iter().map(|value| {
                    let mut design = design.clone();
                    design.push((one.key.clone(), value.clone()));
                    design
                })
            })
            .collect();
    }
    Ok(designs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn values_of_every_form() {
        let values = |text: &str| Value::from(text.parse::<Vary>().unwrap().values);
        assert_eq!(values("a.b=8..12"), json!([8, 9, 10, 11, 12]));
        assert_eq!(values("a=8..32+8,40"), json!([8, 16, 24, 32, 40]));
        assert_eq!(values("a=64..1024*4"), json!([64, 256, 1024]));
        assert_eq!(values("a=int8, f16,true"), json!(["int8", "f16", true]));
        for bad in [
            "a",
            "a=",
            "a=8..",
            "a=9..8",
            "a=1..9+0",
            "a=0..9*2",
            "a=1..9999999",
        ] {
            assert!(bad.parse::<Vary>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_grid_is_every_combination() {
        let vary: Vec<Vary> = ["a=1..3", "b=x,y"]
            .iter()
            .map(|t| t.parse().unwrap())
            .collect();
        let designs = designs(&vary).unwrap();
        assert_eq!(designs.len(), 6);
        assert_eq!(
            designs[1],
            [("a".to_owned(), json!(1)), ("b".to_owned(), json!("y"))]
        );
    }
}
