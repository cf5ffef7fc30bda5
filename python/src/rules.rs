//! Modes and profiles by name or by their text.

use crate::errors::raise;
use pyo3::prelude::*;
use scalescope::kept::Kept;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::mode::{ModeSpec, ModeTable};
use scalescope_sim::profile::Profile;

/// A name, and the TOML that states it where it is not built in.
pub type Named = (String, Option<String>);

/// The mode of a name, with further rows of a TOML text.
pub fn find_mode((name, text): &Named, kept: Option<&Kept>) -> Result<ModeSpec> {
    let mut table = match kept {
        Some(kept) => kept.modes()?,
        None => ModeTable::default(),
    };
    if let Some(text) = text {
        table.add_toml(text)?;
    }
    table.get(name).cloned()
}

/// The profile of a name or a text.
pub fn find_profile((name, text): &Named) -> Result<Profile> {
    match text {
        None => Profile::get(name),
        Some(text) => Profile::from_toml(name, text),
    }
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("rules are plain data")
}

/// The fields of a mode as JSON.
#[pyfunction]
#[pyo3(signature = (name, text = None))]
pub fn mode(name: String, text: Option<String>) -> PyResult<String> {
    let mode = find_mode(&(name, text), None).map_err(raise)?;
    Ok(json(&mode))
}

/// Every built-in mode as JSON, those that are called by name alone last.
#[pyfunction]
pub fn modes() -> String {
    let table = ModeTable::default();
    let all: Vec<&ModeSpec> = table.rows().iter().chain(table.references()).collect();
    json(&all)
}

/// The text of a profile, its rules as JSON, and their hash.
#[pyfunction]
#[pyo3(signature = (name, text = None))]
pub fn profile(name: String, text: Option<String>) -> PyResult<(String, String, String)> {
    let named = (name, text);
    let profile = find_profile(&named).map_err(raise)?;
    let text = match named {
        (_, Some(text)) => text,
        (name, None) => Profile::text(&name).map_err(raise)?,
    };
    Ok((text, json(&profile), profile.hash()))
}

/// The names of the built-in profiles.
#[pyfunction]
pub fn profiles() -> Vec<&'static str> {
    Profile::names()
}

fn bad_toml(e: impl std::fmt::Display) -> PyErr {
    let found = e.to_string();
    raise(SimError::value(
        "text",
        "TOML",
        found.lines().collect::<Vec<_>>().join(" "),
    ))
}

/// JSON as TOML.
#[pyfunction]
pub fn to_toml(json: &str) -> PyResult<String> {
    let value: serde_json::Value = serde_json::from_str(json).map_err(bad_toml)?;
    toml::to_string(&value).map_err(bad_toml)
}

/// TOML as JSON.
#[pyfunction]
pub fn from_toml(text: &str) -> PyResult<String> {
    let value: toml::Table = toml::from_str(text).map_err(bad_toml)?;
    Ok(json(&value))
}
