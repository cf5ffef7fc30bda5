//! A profile file's choices one at a time: what each of its tables is by itself, and what the others
//! are without it.

use super::file::File;
use super::{CHIP_PROFILES, Profile};
use crate::error::{Result, SimError};
use std::borrow::Cow;

/// A table of a profile file: `requant`, `accumulator`, `nonlinearity.exp`, `scan`, ….
#[derive(Clone, Debug)]
pub struct Choice {
    /// The table's name.
    pub name: String,
    /// The rules of kernels with this table alone.
    pub alone: Profile,
    /// The profile without this table.
    pub without: Profile,
}

/// The choices of a profile.
#[derive(Clone, Debug)]
pub struct Choices {
    /// The profile of kernels that it goes back to.
    pub base: Profile,
    /// The profile.
    pub whole: Profile,
    /// Its tables and those of the chip's profile that it extends.
    pub tables: Vec<Choice>,
}

/// The files that make up a profile, the one that goes first first, and the profile of kernels below.
fn files(name: &str, text: &str) -> Result<(Profile, Vec<toml::Table>)> {
    // Names the key of whatever is wrong, which the parser of plain tables does not.
    File::read(text)?;
    let table: toml::Table =
        toml::from_str(text).map_err(|e| SimError::value(name, "a profile file", e.message()))?;
    let base = table.get("extends").and_then(toml::Value::as_str);
    let base = base.unwrap_or("exact");
    let chip = CHIP_PROFILES.iter().find(|(known, _)| *known == base);
    let (kernels, mut below) = match chip {
        Some((name, text)) => files(name, text)?,
        None => (Profile::get(base)?, Vec::new()),
    };
    below.push(table);
    Ok((kernels, below))
}

/// The tables of a file; each function of `nonlinearity` is one.
fn tables_of(file: &toml::Table) -> Vec<(String, Option<String>)> {
    let mut tables = Vec::new();
    for (name, value) in file {
        match value.as_table() {
            Some(functions) if name == "nonlinearity" => {
                let functions = functions.keys().cloned();
                tables.extend(functions.map(|function| (name.clone(), Some(function))));
            }
            Some(_) => tables.push((name.clone(), None)),
            None => {}
        }
    }
    tables
}

fn label_of(table: &str, function: Option<&str>) -> String {
    match function {
        Some(function) => format!("{table}.{function}"),
        None => table.to_owned(),
    }
}

fn remove(file: &mut toml::Table, table: &str, function: Option<&str>) {
    match (function, file.get_mut(table)) {
        (Some(function), Some(toml::Value::Table(functions))) => {
            functions.remove(function);
        }
        _ => {
            file.remove(table);
        }
    }
}

impl Profile {
    /// The choices of a profile file's text.
    ///
    /// # Errors
    ///
    /// Those of [`Profile::from_toml`]; a table that cannot stand without another.
    pub fn choices(name: &str, text: &str) -> Result<Choices> {
        let (base, files) = files(name, text)?;
        let with = |label: String, wanted: &dyn Fn(&str) -> bool| -> Result<Profile> {
            let mut profile = base.clone();
            for file in &files {
                // The tables of a file are applied together: one may mean something for another.
                let mut part = file.clone();
                part.remove("extends");
                for (name, function) in tables_of(file) {
                    if !wanted(&label_of(&name, function.as_deref())) {
                        remove(&mut part, &name, function.as_deref());
                    }
                }
                let text = toml::to_string(&part)
                    .map_err(|e| SimError::value("profile", "tables of a profile", e))?;
                File::read(&text)?.apply(&mut profile)?;
            }
            profile.name = Cow::Owned(label);
            Ok(profile)
        };
        let mut names: Vec<String> = Vec::new();
        for (name, function) in files.iter().flat_map(tables_of) {
            let label = label_of(&name, function.as_deref());
            if !names.contains(&label) {
                names.push(label);
            }
        }
        let tables = names.into_iter().map(|name| {
            Ok(Choice {
                alone: with(format!("{} with {name}", base.name), &|table| table == name)?,
                without: with(format!("without {name}"), &|table| table != name)?,
                name,
            })
        });
        Ok(Choices {
            tables: tables.collect::<Result<_>>()?,
            whole: with(name.to_owned(), &|_| true)?,
            base,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::profile::unit::StateFormat;

    #[test]
    fn all_choices_together_are_the_profile() {
        for (name, text) in CHIP_PROFILES {
            let choices = Profile::choices(name, text).unwrap();
            assert_eq!(choices.base.name, "exact");
            assert_eq!(
                choices.whole.hash(),
                Profile::get(name).unwrap().hash(),
                "{name}"
            );
        }
        let (_, text) = CHIP_PROFILES[0];
        let choices = Profile::choices("asic-int8", text).unwrap();
        let mut names: Vec<&str> = choices.tables.iter().map(|c| &c.name[..]).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accumulator",
                "hadamard",
                "nonlinearity.exp",
                "nonlinearity.silu",
                "nonlinearity.softplus",
                "requant",
                "scan"
            ]
        );
        let choice = |name: &str| choices.tables.iter().find(|c| c.name == name).unwrap();
        let only =
            "version = 1\n[scan]\nstate = \"int16\"\nheadroom = 2\nrounding = \"nearest-ties-up\"";
        let only = Profile::from_toml("only", only).unwrap();
        assert_eq!(choice("scan").alone.hash(), only.hash());
        let but = Profile::from_toml(
            "but",
            &text
                .replace("form = \"integer\"", "form = \"f32\"")
                .replace("bits = 16\nfraction = 4\ngrowth = 8", ""),
        );
        assert_eq!(choice("hadamard").without.hash(), but.unwrap().hash());
    }

    /// A file over a chip's: its tables go over those of the same name.
    #[test]
    fn tables_of_one_name_are_one_choice() {
        let text =
            "version = 1\nextends = \"asic-int8\"\n[scan]\nstate = \"f16\"\n[weights]\nbits = 4\n";
        let choices = Profile::choices("mine", text).unwrap();
        assert_eq!(choices.tables.len(), 8);
        let whole = Profile::from_toml("mine", text).unwrap();
        assert_eq!(choices.whole.hash(), whole.hash());
        let scan = choices.tables.iter().find(|c| c.name == "scan").unwrap();
        let unit = scan.alone.cuda.prefill.scan.unit.unwrap();
        assert_eq!(unit.state, StateFormat::F16);
    }
}
