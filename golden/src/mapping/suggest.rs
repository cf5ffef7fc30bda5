//! A mapping file to start from.

use super::DumpedLayout;
use super::dump::Dump;
use scalescope_sim::error::Result;
use scalescope_sim::trace::{Place, TracePoint};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Words in a name that speak for a point, the more telling first.
const WORDS: &[(&str, TracePoint)] = &[
    ("out_proj", TracePoint::OutProjOut),
    ("in_proj", TracePoint::InProjOut),
    ("dt_proj", TracePoint::DtProjOut),
    ("x_proj", TracePoint::XProjOut),
    ("conv", TracePoint::ConvOut),
    ("had", TracePoint::HadOut),
    ("ssm_state", TracePoint::SsmState),
    ("last_state", TracePoint::SsmState),
    ("selective_scan", TracePoint::SsmY),
    ("scan", TracePoint::SsmY),
    ("ssm", TracePoint::SsmY),
    ("norm", TracePoint::NormOut),
    ("logits", TracePoint::Logits),
    ("lm_head", TracePoint::Logits),
];

/// What a name may mean.
enum Guess {
    Tokens,
    Point(TracePoint, Option<usize>, String),
    Nothing,
}

fn guess(name: &str) -> Guess {
    if let Some(place) = Place::from_key(name) {
        return numbered(name, place.point);
    }
    let small = name.to_lowercase();
    if small.contains("input_ids") || small.contains("tokens") {
        return Guess::Tokens;
    }
    if small.contains("scale") || small.contains("weight") || small.contains("input") {
        return Guess::Nothing;
    }
    let exact = TracePoint::ALL
        .into_iter()
        .filter(|point| small.contains(point.name()));
    let exact = exact.max_by_key(|point| point.name().len());
    let by_word = || {
        WORDS
            .iter()
            .find(|(word, _)| small.contains(word))
            .map(|(_, point)| *point)
    };
    match exact.or_else(by_word) {
        Some(point) => numbered(name, point),
        None => Guess::Nothing,
    }
}

/// The number of the block in a name, and the name with `{layer}` in its place.
fn numbered(name: &str, point: TracePoint) -> Guess {
    if !point.in_layer() {
        return Guess::Point(point, None, name.to_owned());
    }
    let words = ["layers.", "layer_", "layer", "blocks.", "block"];
    for word in words {
        let Some(at) = name.find(word).map(|at| at + word.len()) else {
            continue;
        };
        let digits = name[at..].bytes().take_while(u8::is_ascii_digit).count();
        if let Ok(layer) = name[at..at + digits].parse() {
            let source = format!("{}{{layer}}{}", &name[..at], &name[at + digits..]);
            return Guess::Point(point, Some(layer), source);
        }
    }
    Guess::Point(point, None, name.to_owned())
}

/// The text of a mapping file for a dump: what names speak for, and the rest as comments.
///
/// # Errors
///
/// A dump that cannot be read.
pub fn suggest(path: &Path) -> Result<String> {
    let mut dump = Dump::open(path)?;
    let names: Vec<String> = dump.names().map(str::to_owned).collect();
    let mut tokens = None;
    let mut tensors: BTreeMap<(String, &'static str), (Vec<usize>, String)> = BTreeMap::new();
    let mut others = Vec::new();
    for name in &names {
        let what = dump
            .read(name, &DumpedLayout::default())
            .map(|array| array.describe());
        let what = what.unwrap_or_else(|_| "raw: say its dtype and shape".into());
        match guess(name) {
            Guess::Tokens if tokens.is_none() => tokens = Some((name, what)),
            Guess::Point(point, layer, source) => {
                let known = tensors
                    .entry((source, point.name()))
                    .or_insert((vec![], what));
                known.0.extend(layer);
            }
            _ => others.push((name, what)),
        }
    }
    let first = tensors
        .values()
        .flat_map(|(layers, _)| layers)
        .min()
        .copied()
        .unwrap_or(0);
    let mut out = format!(
        "# {} arrays. Check every point: it was guessed from the array's name.\nversion = 1\nfirst_layer = {first}\n",
        names.len()
    );
    match tokens {
        Some((name, what)) => {
            let _ = write!(out, "\n[tokens] # {what}\nsource = {name:?}\n");
        }
        None => out.push_str("\n# [tokens]\n# ids = [[5, 6, 7]]\n"),
    }
    for ((source, point), (layers, what)) in &tensors {
        let blocks = match layers.len() {
            0 | 1 => String::new(),
            count => format!(", {count} blocks"),
        };
        let _ = write!(
            out,
            "\n[[tensor]] # {what}{blocks}\nsource = {source:?}\npoint = \"{point}\"\n"
        );
        if layers.is_empty() && TracePoint::from_name(point).is_some_and(TracePoint::in_layer) {
            out.push_str("layer = 0\n");
        }
        out.push_str("# layout = \"bdl\"\n# scale = 0.1\n");
    }
    if !others.is_empty() {
        out.push_str("\n# not recognised:\n");
        for (name, what) in others {
            let _ = writeln!(out, "# {name}: {what}");
        }
    }
    Ok(out)
}
