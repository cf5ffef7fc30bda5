//! The outcome of every sample in every mode, one JSON object a line, after one line of settings.
//!
//! The records of a sample are appended together in one write, so a run that stops at any moment
//! leaves a file of which all but the last, half-written group is good.

use super::settings::{Difference, Settings};
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::text;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// Version of the format.
const FORMAT: u32 = 1;
/// The most tokens or bytes of one sample: sums over all samples stay far from the end of their type.
const MOST: usize = u32::MAX as usize;

/// How one sample went in one mode.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Line of the data file, from 0.
    pub id: usize,
    /// Window of that line's text, from 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub part: usize,
    /// Name of the mode.
    pub mode: String,
    /// Whether every target was the greedy choice.
    pub greedy: bool,
    /// Sum over the targets, natural logarithm.
    pub log_likelihood: f64,
    /// Number of targets.
    pub target_tokens: usize,
    /// Targets that were the greedy choice.
    pub greedy_tokens: usize,
    /// Bytes of text the targets stand for.
    pub bytes: usize,
    /// Sum over the targets of KL(reference ‖ mode), nats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Targets at which the greedy choice is the reference's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreed_tokens: Option<usize>,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl Record {
    /// Which sample it is about.
    pub fn sample(&self) -> (usize, usize) {
        (self.id, self.part)
    }
}

#[derive(Serialize, Deserialize)]
struct Header {
    scalescope_samples: u32,
    settings: Settings,
}

/// What a sample file holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Samples {
    /// Its first line.
    pub settings: Settings,
    /// Every complete sample's records, together and in the order of the modes.
    pub records: Vec<Record>,
    /// Bytes of the file that hold these.
    good: usize,
}

impl Samples {
    /// Reads a file. A half-written end is left out, damage elsewhere is an error.
    pub fn read(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|e| SimError::io(path, e))?;
        let bytes = text::to_utf8(&bytes)
            .map_err(|found| SimError::file(path, "text", "UTF-8 or UTF-16", found))?;
        Self::parse(path, &bytes)?.ok_or_else(|| {
            SimError::file(path, "line 1", "the settings of a run", "no complete line")
        })
    }

    /// `None` if not even the first line is complete.
    fn parse(path: &Path, bytes: &[u8]) -> Result<Option<Self>> {
        let mut lines = bytes
            .split_inclusive(|b| *b == b'\n')
            .filter(|line| line.ends_with(b"\n"));
        let Some(first) = lines.next() else {
            return Ok(None);
        };
        let header: Header = serde_json::from_slice(first).map_err(|e| {
            SimError::file(
                path,
                "line 1",
                "the settings of a run: {\"scalescope_samples\": …}",
                e,
            )
        })?;
        if header.scalescope_samples != FORMAT {
            let expected = format_args!("version {FORMAT} of the format").to_string();
            return Err(SimError::file(
                path,
                "line 1",
                expected,
                header.scalescope_samples,
            ));
        }
        let bad = |item: &str, expected: &str, found: String| {
            SimError::file(path, format_args!("line 1: {item}"), expected, found)
        };
        let modes = header.settings.mode_names();
        if modes.is_empty() {
            return Err(bad("modes", "at least one", "none".into()));
        }
        let shard = header.settings.shard;
        if shard.index >= shard.count {
            let found = format!("{} of {}", shard.index, shard.count);
            return Err(bad("shard", "an index below the count", found));
        }
        let mut samples = Self {
            settings: header.settings,
            records: vec![],
            good: first.len(),
        };
        let mut seen = HashSet::new();
        let (mut end, mut complete) = (first.len(), 0);
        for (i, line) in lines.enumerate() {
            let bad = |expected: String, found: String| {
                SimError::file(path, format_args!("line {}", i + 2), expected, found)
            };
            let record: Record = serde_json::from_slice(line)
                .map_err(|e| bad("the outcome of a sample".into(), e.to_string()))?;
            let counts = [record.target_tokens, record.greedy_tokens, record.bytes]
                .into_iter()
                .chain(record.agreed_tokens);
            if let Some(count) = counts.max().filter(|count| *count > MOST) {
                return Err(bad(format!("counts of at most {MOST}"), count.to_string()));
            }
            end += line.len();
            let place = samples.records.len() - complete;
            if record.mode != modes[place] {
                return Err(bad(format!("mode {}", modes[place]), record.mode));
            }
            if place > 0 && record.sample() != samples.records[complete].sample() {
                let id = samples.records[complete].id;
                return Err(bad(format!("sample {id}"), record.id.to_string()));
            }
            if place == 0 && !seen.insert(record.sample()) {
                return Err(bad("a sample once".into(), format!("{} again", record.id)));
            }
            samples.records.push(record);
            if place + 1 == modes.len() {
                complete = samples.records.len();
                samples.good = end;
            }
        }
        samples.records.truncate(complete);
        Ok(Some(samples))
    }

    /// The run of which `shards` (names and contents) are the parts: each part once, all of them,
    /// nothing missing. Samples are in the order of the data file.
    pub fn merge(shards: Vec<(String, Self)>) -> Result<Self> {
        let Some((first_name, first)) = shards.first() else {
            return Err(SimError::value("shards", "at least one", "none"));
        };
        let settings = first.settings.whole();
        let count = first.settings.shard.count;
        // The count is a file's own word: nothing is as long as that.
        let mut names = BTreeMap::new();
        for (name, shard) in &shards {
            let own = shard.settings.shard;
            let counted = settings.difference(&shard.settings.whole());
            if let Some(Difference { field, here, there }) = counted {
                let expected = format_args!("{here} as in {first_name}").to_string();
                return Err(SimError::file(name, field, expected, there));
            }
            if own.count != count {
                return Err(SimError::file(
                    name,
                    "shard",
                    format_args!("one of {count}"),
                    format_args!("one of {}", own.count),
                ));
            }
            if let Some(other) = names.insert(own.index, name) {
                return Err(SimError::file(
                    name,
                    "shard",
                    format_args!("one not in {other}"),
                    format_args!("{}/{count} again", own.index),
                ));
            }
        }
        if let Some(missing) = (0..count).find(|index| !names.contains_key(index)) {
            return Err(SimError::value(
                "shards",
                format_args!("all {count}"),
                format_args!("no shard {missing}/{count}"),
            ));
        }
        let mut records: Vec<Record> = shards.into_iter().flat_map(|(_, s)| s.records).collect();
        records.sort_by_key(Record::sample);
        let samples = records.len() / settings.modes.len().max(1);
        if samples != settings.samples {
            return Err(SimError::value(
                "shards",
                format_args!("{} samples", settings.samples),
                format_args!("{samples} (a shard is not finished; --resume it)"),
            ));
        }
        Ok(Self {
            settings,
            records,
            good: 0,
        })
    }
}

/// A sample file being written. No other run can write it meanwhile.
#[derive(Debug)]
pub struct SampleFile {
    path: PathBuf,
    file: File,
}

impl SampleFile {
    /// Starts a file; one that exists is not overwritten.
    pub fn create(path: &Path, settings: &Settings) -> Result<Self> {
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .open(path)
            .map_err(|e| match e.kind() {
                std::io::ErrorKind::AlreadyExists => SimError::file(
                    path,
                    "--samples",
                    "a new file, or --resume to go on",
                    "a file",
                ),
                _ => SimError::io(path, e),
            })?;
        Self::locked(path, file)?.start(settings)
    }

    /// Goes on with a file that the same settings began, or starts it. Returns what it holds.
    pub fn resume(path: &Path, settings: &Settings) -> Result<(Self, Vec<Record>)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .map_err(|e| SimError::io(path, e))?;
        let mut own = Self::locked(path, file)?;
        let bytes = std::fs::read(path).map_err(|e| SimError::io(path, e))?;
        let Some(samples) = Samples::parse(path, &bytes)? else {
            own.cut(0)?;
            return Ok((own.start(settings)?, vec![]));
        };
        if let Some(Difference { field, here, there }) = settings.difference(&samples.settings) {
            return Err(SimError::file(
                path,
                format_args!("settings: {field}"),
                here,
                there,
            ));
        }
        own.cut(samples.good)?;
        Ok((own, samples.records))
    }

    fn locked(path: &Path, file: File) -> Result<Self> {
        match file.try_lock() {
            Err(std::fs::TryLockError::WouldBlock) => Err(SimError::file(
                path,
                "--samples",
                "a file no other run writes",
                "one in use",
            )),
            // A file system without locks.
            Ok(()) | Err(std::fs::TryLockError::Error(_)) => Ok(Self {
                path: path.to_path_buf(),
                file,
            }),
        }
    }

    fn cut(&mut self, length: usize) -> Result<()> {
        self.file
            .set_len(length as u64)
            .and_then(|()| self.file.seek(SeekFrom::End(0)))
            .map(|_| ())
            .map_err(|e| SimError::io(&self.path, e))
    }

    fn start(mut self, settings: &Settings) -> Result<Self> {
        let header = Header {
            scalescope_samples: FORMAT,
            settings: settings.clone(),
        };
        self.write(&line(&header))?;
        Ok(self)
    }

    /// Adds the records of one sample, or of several, in one write.
    pub fn append(&mut self, records: &[Record]) -> Result<()> {
        let text: String = records.iter().map(line).collect();
        self.write(&text)
    }

    fn write(&mut self, text: &str) -> Result<()> {
        self.file
            .write_all(text.as_bytes())
            .and_then(|()| self.file.flush())
            .map_err(|e| SimError::io(&self.path, e))
    }
}

fn line(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string(value).expect("outcomes are plain data");
    text.push('\n');
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::settings::Shard;
    use super::super::settings::tests::settings;
    use super::super::summary::EvalReport;
    use super::*;
    use proptest::prelude::*;

    /// A record with one target, of a made-up run.
    pub fn record(id: usize, mode: &str, greedy: bool, log_likelihood: f64) -> Record {
        Record {
            id,
            part: 0,
            mode: mode.into(),
            greedy,
            log_likelihood,
            target_tokens: 1,
            greedy_tokens: usize::from(greedy),
            bytes: 4,
            kl: Some(0.0),
            agreed_tokens: Some(1),
        }
    }

    fn pair(id: usize) -> [Record; 2] {
        let a = record(id, "0", true, -0.1 - 1.0 / (id + 3) as f64);
        let b = Record {
            kl: None,
            agreed_tokens: None,
            ..record(id, "1", false, -2.0)
        };
        [a, b]
    }

    #[test]
    fn any_cut_is_resumed_without_losing_a_whole_sample() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let settings = settings(&["0", "1"], 3);
        let mut file = SampleFile::create(&path, &settings).unwrap();
        for id in 0..3 {
            file.append(&pair(id)).unwrap();
        }
        drop(file);
        let whole = std::fs::read(&path).unwrap();
        assert_eq!(
            Samples::read(&path).unwrap().records,
            [pair(0), pair(1), pair(2)].concat()
        );
        for cut in 0..=whole.len() {
            std::fs::write(&path, &whole[..cut]).unwrap();
            let (mut file, kept) = SampleFile::resume(&path, &settings).unwrap();
            assert_eq!(kept.len() % 2, 0);
            for id in kept.len() / 2..3 {
                file.append(&pair(id)).unwrap();
            }
            drop(file);
            assert_eq!(std::fs::read(&path).unwrap(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn other_settings_existing_files_and_second_writers_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let mine = settings(&["0", "1"], 3);
        let file = SampleFile::create(&path, &mine).unwrap();
        let busy = SampleFile::resume(&path, &mine).unwrap_err();
        assert!(busy.to_string().contains("in use"), "{busy}");
        drop(file);
        let exists = SampleFile::create(&path, &mine).unwrap_err();
        assert!(exists.to_string().contains("--resume"), "{exists}");
        let mut other = mine.clone();
        other.profile = "torch".into();
        let refused = SampleFile::resume(&path, &other).unwrap_err();
        assert!(refused.to_string().contains("profile"), "{refused}");
    }

    fn shards(samples: usize, count: usize) -> Vec<(String, Samples)> {
        (0..count)
            .map(|index| {
                let mut settings = settings(&["0", "1"], samples);
                settings.shard = Shard { index, count };
                let records = (0..samples).filter(|id| id % count == index).flat_map(pair);
                let samples = Samples {
                    settings,
                    records: records.collect(),
                    good: 0,
                };
                (format!("shard{index}"), samples)
            })
            .collect()
    }

    proptest! {
        /// Any number of shards, in any order, gives the report of the whole, byte for byte.
        #[test]
        fn merged_shards_are_the_whole(samples in 1usize..30, count in 1usize..9, turn in 0usize..9) {
            let report = |samples: Samples| {
                let report = EvalReport::new(samples.settings, samples.records, 3).unwrap();
                serde_json::to_string(&report).unwrap()
            };
            let whole = Samples::merge(shards(samples, 1)).unwrap();
            let mut parts = shards(samples, count);
            parts.rotate_left(turn % count);
            prop_assert_eq!(report(Samples::merge(parts).unwrap()), report(whole));
        }
    }

    #[test]
    fn shards_that_do_not_fit_are_refused() {
        let error = |parts: Vec<(String, Samples)>| Samples::merge(parts).unwrap_err().to_string();
        let mut parts = shards(7, 3);
        parts.pop();
        assert!(error(parts.clone()).contains("no shard 2/3"));
        parts.push(parts[0].clone());
        assert!(error(parts.clone()).contains("0/3 again"));
        parts[2] = shards(7, 4)[2].clone();
        assert!(error(parts.clone()).contains("one of 4"));
        parts = shards(7, 3);
        parts[1].1.records.truncate(2);
        assert!(error(parts.clone()).contains("not finished"));
        parts[1].1.settings.profile = "torch".into();
        assert!(error(parts).contains("shard1: profile"));
        assert!(error(vec![]).contains("at least one"));
    }

    #[test]
    fn damage_is_named_by_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.jsonl");
        let mine = settings(&["0", "1"], 3);
        let lines = |records: &[Record]| {
            std::fs::remove_file(&path).ok();
            SampleFile::create(&path, &mine)
                .unwrap()
                .append(records)
                .unwrap();
            Samples::read(&path).unwrap_err().to_string()
        };
        let [a, b] = pair(0);
        assert!(lines(std::slice::from_ref(&b)).contains("line 2: expected mode 0, found 1"));
        assert!(lines(&[a.clone(), pair(1)[1].clone()]).contains("line 3: expected sample 0"));
        assert!(lines(&[a.clone(), b, a]).contains("0 again"));
        let mut huge = pair(0);
        huge[1].bytes = usize::MAX;
        assert!(lines(&huge).contains("line 3: expected counts of at most 4294967295"));
        let settings_of = |change: &dyn Fn(&mut Settings)| {
            let mut settings = mine.clone();
            change(&mut settings);
            std::fs::remove_file(&path).ok();
            let mut file = SampleFile::create(&path, &settings).unwrap();
            file.append(&pair(0)).unwrap();
            Samples::read(&path)
        };
        let error = |change: &dyn Fn(&mut Settings)| settings_of(change).unwrap_err().to_string();
        assert!(error(&|s| s.modes.clear()).contains("line 1: modes: expected at least one"));
        assert!(error(&|s| s.shard.count = 0).contains("line 1: shard: expected an index below"));
        let part = settings_of(&|s| s.shard.count = usize::MAX).unwrap();
        let lonely = Samples::merge(vec![("a".into(), part)]).unwrap_err();
        assert!(lonely.to_string().contains("no shard 1/"), "{lonely}");
        std::fs::write(&path, "{\"text\": \"not ours\"}\n").unwrap();
        assert!(
            Samples::read(&path)
                .unwrap_err()
                .to_string()
                .contains("line 1")
        );
    }
}
