//! The modes a run can name: the built-in rows and those of TOML files.

use super::*;
use crate::arith::quantizer::{QUANTIZERS, QuantizerTable};
use crate::error::{Result, SimError};
use crate::text;
use std::path::Path;

/// The modes a run can name: the built-in rows and those of a TOML file.
#[derive(Clone, Debug)]
pub struct ModeTable {
    rows: Vec<ModeSpec>,
    references: Vec<ModeSpec>,
    quantizers: Vec<Quantizer>,
}

impl Default for ModeTable {
    fn default() -> Self {
        Self {
            rows: MODES.to_vec(),
            references: REFERENCE_MODES.to_vec(),
            quantizers: QUANTIZERS.to_vec(),
        }
    }
}

/// A row of a TOML file: a base row and the fields it overrides.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeRow {
    base: Option<String>,
    summary: Option<String>,
    weights: Option<Precision>,
    norm_out: Option<Precision>,
    x: Option<XOutput>,
    z: Option<Precision>,
    conv_in: Option<ConvInput>,
    conv_in_quotient: Option<QuotientType>,
    conv_out: Option<Precision>,
    x_proj_from: Option<RouteA>,
    x_proj_in: Option<Precision>,
    x_proj_out: Option<Precision>,
    dt_proj_out: Option<Precision>,
    projected: Option<Projected>,
    scan_bc: Option<ScanBc>,
    u: Option<ScanInput>,
    /// The name of a quantizer, or `none`.
    u_quantizer: Option<String>,
    requantize_rounding: Option<Rounding>,
    state: Option<Precision>,
    stream: Option<Stream>,
    had_out: Option<Precision>,
    conv: Option<Implementation>,
    scan: Option<Implementation>,
    rotated: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeFile {
    #[serde(default)]
    mode: toml::Table,
    #[serde(default)]
    quantizer: toml::Table,
}

impl ModeTable {
    /// Every row that `all` means, built-in first.
    pub fn rows(&self) -> &[ModeSpec] {
        &self.rows
    }

    /// The rows that only their name selects: [`REFERENCE_MODES`].
    pub fn references(&self) -> &[ModeSpec] {
        &self.references
    }

    fn every(&self) -> impl Iterator<Item = &ModeSpec> {
        self.rows.iter().chain(&self.references)
    }

    /// The row of a name.
    pub fn get(&self, name: &str) -> Result<&ModeSpec> {
        self.every().find(|row| row.name == name).ok_or_else(|| {
            let known: Vec<&str> = self.every().map(|row| &*row.name).collect();
            SimError::unknown("mode", &known, name)
        })
    }

    /// Adds the rows of a TOML file: `[mode."2-4d"]` with `base = "2-4"` and any fields of
    /// [`ModeSpec`] to override. A row named like an existing one overrides that row's fields.
    pub fn add_file(&mut self, path: &Path) -> Result<()> {
        let text = text::read(path)?;
        self.add_toml(&text).map_err(|e| e.in_file(path))
    }

    /// Adds the rows of a TOML text; see [`ModeTable::add_file`]. `[quantizer.NAME]` states a quantizer that rows
    /// name in `u_quantizer`, before any of them is read.
    pub fn add_toml(&mut self, text: &str) -> Result<()> {
        let bad = |item: String, e: toml::de::Error| {
            SimError::value(item, "a table of modes", e.message().replace('\n', " "))
        };
        let file: ModeFile = toml::from_str(text).map_err(|e| bad("modes file".into(), e))?;
        for (name, table) in file.quantizer {
            let table: QuantizerTable = table
                .try_into()
                .map_err(|e| bad(format!("quantizer \"{name}\""), e))?;
            let quantizer = table.named(&name)?;
            self.quantizers.retain(|known| known.name != name);
            self.quantizers.push(quantizer);
        }
        for (name, row) in file.mode {
            let row: ModeRow = row
                .try_into()
                .map_err(|e| bad(format!("mode \"{name}\""), e))?;
            self.add_row(name, row)?;
        }
        Ok(())
    }

    fn add_row(&mut self, name: String, row: ModeRow) -> Result<()> {
        let existing = self.every().find(|r| r.name == name);
        let mut spec = match (&row.base, existing) {
            (Some(base), _) => self
                .get(base)
                .map_err(|e| match e {
                    SimError::Value {
                        expected, found, ..
                    } => SimError::value(format_args!("mode \"{name}\": base"), expected, found),
                    other => other,
                })?
                .clone(),
            (None, Some(row)) => row.clone(),
            (None, None) => {
                return Err(SimError::value(
                    format_args!("mode \"{name}\""),
                    "a `base` mode to start from",
                    "none",
                ));
            }
        };
        macro_rules! override_fields {
            ($($field:ident),*) => { $( if let Some(value) = row.$field { spec.$field = value; } )* };
        }
        override_fields!(
            weights,
            norm_out,
            x,
            z,
            conv_in,
            conv_in_quotient,
            conv_out,
            x_proj_from,
            x_proj_in,
            x_proj_out,
            dt_proj_out,
            projected,
            scan_bc,
            u,
            state,
            stream,
            had_out,
            conv,
            scan,
            rotated
        );
        if let Some(rounding) = row.requantize_rounding {
            if rounding.lfsr().is_some() {
                let item = format!("mode \"{name}\": requantize_rounding");
                return Err(SimError::value(
                    item,
                    "a rule without random bits",
                    "stochastic",
                ));
            }
            spec.requantize_rounding = Some(rounding);
        }
        match row.u_quantizer.as_deref() {
            None => {}
            Some("none") => spec.u_quantizer = None,
            Some(wanted) => {
                let known = self.quantizers.iter().find(|known| known.name == wanted);
                let known = known.ok_or_else(|| {
                    let names: Vec<&str> = self.quantizers.iter().map(|q| &*q.name).collect();
                    let item = format!("mode \"{name}\": u_quantizer");
                    SimError::value(item, format_args!("none, {}", names.join(", ")), wanted)
                })?;
                spec.u_quantizer = Some(known.clone());
            }
        }
        if spec.u_quantizer.is_some() && spec.u != ScanInput::Float {
            let item = format!("mode \"{name}\": u");
            let found = "codes, which go through no other quantizer";
            return Err(SimError::value(item, "float beside a u_quantizer", found));
        }
        spec.summary = match row.summary {
            Some(summary) => Cow::Owned(summary),
            None => Cow::Owned(format!("{} with overrides", spec.name)),
        };
        spec.name = Cow::Owned(name);
        let existing = (self.rows.iter_mut())
            .chain(&mut self.references)
            .find(|r| r.name == spec.name);
        match existing {
            Some(row) => *row = spec,
            None => self.rows.push(spec),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_rows_differ() {
        let rows: Vec<&ModeSpec> = MODES.iter().chain(REFERENCE_MODES).collect();
        for (i, a) in rows.iter().enumerate() {
            for b in &rows[i + 1..] {
                assert_ne!(a.name, b.name);
                let mut renamed = (*b).clone();
                renamed.name = a.name.clone();
                renamed.summary = a.summary.clone();
                assert_ne!(**a, renamed, "{} and {} assign the same", a.name, b.name);
            }
        }
    }

    #[test]
    fn every_mode_is_in_one_family() {
        let rows = families().flat_map(|(_, rows)| rows);
        assert!(rows.eq(MODES));
    }

    #[test]
    fn quantizers_are_stated_and_named() {
        let mut table = ModeTable::default();
        let text = "
            [quantizer.mine]
            rounding = \"nearest-ties-to-even\"
            beyond = \"keep\"
            [[quantizer.mine.segment]]
            step = 1
            codes = [-128, 127]
            until = { code = 127 }
            [mode.a]
            base = \"5-2\"
            u_quantizer = \"mine\"
            [mode.b]
            base = \"5-2\"
            u_quantizer = \"none\"
        ";
        table.add_toml(text).unwrap();
        let mine = table.get("a").unwrap().u_quantizer.clone().unwrap();
        let even = Quantizer {
            name: "mine".into(),
            ..quantizer::KEEP_EVEN
        };
        assert_eq!(mine, even);
        assert_eq!(table.get("b").unwrap().u_quantizer, None);
        for (text, part) in [
            ("[mode.c]\nbase = \"5-2\"\nu_quantizer = \"theirs\"", "mine"),
            (
                "[mode.c]\nbase = \"2-3\"\nu_quantizer = \"keep\"",
                "mode \"c\": u",
            ),
            ("[quantizer.d]\nsegment = []", "quantizer \"d\": segments"),
            ("[quantizer.d]\nsegment = 1", "quantizer \"d\""),
        ] {
            let error = table.add_toml(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn toml_rows_override_and_add() {
        let mut table = ModeTable::default();
        table
            .add_toml("[mode.\"2-4d\"]\nbase = \"2-4\"\nconv_in = \"dynamic-token\"\n[mode.0]\nstate = \"float\"\n")
            .unwrap();
        assert_eq!(table.get("2-4d").unwrap().conv_in, ConvInput::DynamicToken);
        assert_eq!(table.get("2-4d").unwrap().u, ScanInput::Float);
        assert_eq!(table.get("0").unwrap().state, Precision::Float);
        assert_eq!(table.rows().len(), MODES.len() + 1);
    }

    #[test]
    fn reference_rows_are_found_by_name_only() {
        let mut table = ModeTable::default();
        table
            .add_toml("[mode.original]\nstream = \"f16\"\n[mode.mine]\nbase = \"original\"\n")
            .unwrap();
        assert_eq!(table.get("original").unwrap().stream, Stream::F16);
        assert!(!table.get("mine").unwrap().rotated);
        assert_eq!(table.references().len(), REFERENCE_MODES.len());
        assert_eq!(table.rows().len(), MODES.len() + 1);
        assert!(table.rows().iter().all(|row| row.name != "original"));
    }

    #[test]
    fn bad_rows_are_refused_by_name() {
        for (text, part) in [
            ("[mode.a]\nbase = \"9\"", "mode \"a\": base"),
            ("[mode.a]\nstate = \"int8\"", "a `base` mode"),
            ("[mode.a]\nbase = \"0\"\nstaet = \"int8\"", "staet"),
            ("[mode.a]\nbase = \"0\"\nstate = \"int7\"", "int7"),
            ("[modes.a]\nbase = \"0\"", "modes"),
        ] {
            let error = ModeTable::default().add_toml(text).unwrap_err().to_string();
            assert!(error.contains(part), "{text:?} gave {error}");
            assert!(!error.contains('\n'));
        }
    }

    #[test]
    fn needs_follow_the_fields() {
        let table = ModeTable::default();
        assert!(!table.get("1").unwrap().needs_quantized());
        // One INT8 tensor, or one grid, needs scales.
        for field in [
            "norm_out = \"int8\"",
            "x = \"int8\"",
            "z = \"int8\"",
            "conv_in = \"static\"",
            "conv_out = \"int8\"",
            "x_proj_in = \"int8\"",
            "x_proj_out = \"int8\"",
            "projected = \"grid\"",
            "scan_bc = \"int8\"",
            "dt_proj_out = \"int8\"",
            "u = \"int8\"",
            "u_quantizer = \"int8\"",
            "state = \"int8\"",
            "had_out = \"int8\"",
        ] {
            let mut table = ModeTable::default();
            let one = format!("[mode.one]\nbase = \"1\"\n{field}\n");
            table.add_toml(&one).unwrap();
            assert!(table.get("one").unwrap().needs_quantized(), "{field}");
        }
        assert!(table.get("1").unwrap().needs_float());
        assert!(table.get("2-4").unwrap().needs_quantized());
        assert!(!table.get("2-4").unwrap().needs_float());
    }
}
