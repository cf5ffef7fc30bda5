//! A trace written while it is made. Its file has a tensor of all sequences as one member, and the datapath
//! makes all tensors of a sequence: so each goes to a spool in the folder of the file as it comes, and the
//! file is put together from there. Memory holds one tensor of one sequence a thread.

use super::{Meta, allowed_rows, in_data_order};
use crate::npz::{Compression, DType, Element, NpzWriter};
use ndarray::Array2;
use scalescope_sim::arith::saturate::Status;
use scalescope_sim::error::{Result, SimError};
use scalescope_sim::quant::Scale;
use scalescope_sim::trace::{Place, Probe, Selection, Tensor};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// Tensors of prefills on their way to a file.
#[derive(Debug)]
pub struct TraceSpool {
    path: PathBuf,
    spool: Mutex<Spool>,
}

#[derive(Debug)]
struct Spool {
    /// Has no name in its folder, so nothing is left however the program ends.
    file: File,
    end: u64,
    /// By sequence.
    pieces: BTreeMap<Place, BTreeMap<usize, Piece>>,
    scales: BTreeMap<Place, Scale>,
}

/// A tensor in the spool.
#[derive(Clone, Copy, Debug)]
struct Piece {
    start: u64,
    dtype: DType,
    dim: (usize, usize),
}

impl Piece {
    fn bytes(self) -> u64 {
        (self.dim.0 * self.dim.1 * self.dtype.item_size()) as u64
    }

    fn describe(self) -> String {
        format!("{} [{}, {}]", self.dtype.name(), self.dim.0, self.dim.1)
    }
}

impl TraceSpool {
    /// A spool for a file, which appears in [`finish`](Self::finish).
    ///
    /// # Errors
    ///
    /// A folder that cannot be written.
    pub fn create(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let folder = match path.parent() {
            Some(folder) if folder != Path::new("") => folder,
            _ => Path::new("."),
        };
        let file = tempfile::tempfile_in(folder).map_err(|e| SimError::io(&path, e))?;
        let spool = Mutex::new(Spool {
            file,
            end: 0,
            pieces: BTreeMap::new(),
            scales: BTreeMap::new(),
        });
        Ok(Self { path, spool })
    }

    /// Somebody who puts the selected tensors of a sequence's prefill into the spool, and counts.
    pub fn sequence(&self, sequence: usize, selection: Selection) -> SequenceProbe<'_> {
        SequenceProbe {
            to: self,
            sequence,
            selection,
            counts: BTreeMap::new(),
        }
    }

    fn add(&self, sequence: usize, place: Place, tensor: &Tensor) -> Result<()> {
        let mut spool = self.spool.lock().expect("writing does not panic");
        let piece = spool
            .append(tensor)
            .map_err(|e| SimError::io(&self.path, e))?;
        if let Some(scale) = tensor.scale() {
            let known = *spool.scales.entry(place).or_insert(scale);
            if known != scale {
                return Err(SimError::value(
                    place,
                    format_args!("the scale of the other sequences, {known:?}"),
                    format_args!("{scale:?}"),
                ));
            }
        }
        let sequences = spool.pieces.entry(place).or_default();
        sequences.insert(sequence, piece);
        Ok(())
    }

    /// Writes the file: tokens `[B, L]` first, then every place of all sequences, in the order of the data,
    /// scales and `meta`. The same trace gives the bytes that [`TraceFile::write`](super::TraceFile::write)
    /// gives.
    ///
    /// # Errors
    ///
    /// Sequences that differ in their places, types or shapes, or have other than one row a token; the
    /// system's, on the file.
    pub fn finish(self, tokens: &Array2<u32>, meta: &Meta, compression: Compression) -> Result<()> {
        let mut spool = self.spool.into_inner().expect("writing does not panic");
        let mut npz = NpzWriter::create(&self.path, compression)?;
        let in_file = |e: SimError| e.in_file(&self.path);
        super::write::tokens(&mut npz, "tokens", tokens).map_err(in_file)?;
        for place in in_data_order(spool.pieces.keys().copied()) {
            let pieces = (spool.pieces[&place].values().copied()).collect::<Vec<_>>();
            let first = same_pieces(place, &pieces, tokens.dim()).map_err(in_file)?;
            let shape = [pieces.len(), first.dim.0, first.dim.1];
            let mut data = Pieces {
                file: &mut spool.file,
                rest: pieces.iter().map(|p| (p.start, p.bytes())).collect(),
            };
            npz.add_from(&place.key(), first.dtype, &shape, &mut data)?;
        }
        super::write::scales(&mut npz, &spool.scales)?;
        super::write::meta(&mut npz, meta).map_err(in_file)?;
        npz.finish()
    }
}

/// The pieces of a place are of one type and shape, one a sequence, with a row a token.
fn same_pieces(place: Place, pieces: &[Piece], (batch, length): (usize, usize)) -> Result<Piece> {
    let first = pieces[0];
    if pieces.len() != batch {
        return Err(SimError::value(
            place,
            format_args!("a tensor of each of {batch} sequences"),
            pieces.len(),
        ));
    }
    let alike = |p: &Piece| (p.dtype, p.dim) == (first.dtype, first.dim);
    if let Some((number, other)) = pieces.iter().enumerate().find(|(_, p)| !alike(p)) {
        let item = format!("{place} of sequence {number}");
        return Err(SimError::value(item, first.describe(), other.describe()));
    }
    match allowed_rows(place, first.dim.0, length) {
        true => Ok(first),
        false => Err(SimError::value(
            place,
            format_args!("one row for each of {length} tokens"),
            format_args!("{} rows", first.dim.0),
        )),
    }
}

impl Spool {
    fn append(&mut self, tensor: &Tensor) -> io::Result<Piece> {
        let start = self.end;
        let mut out = BufWriter::with_capacity(1 << 16, &mut self.file);
        let (dtype, dim) = match tensor {
            Tensor::I8(q) => put(&mut out, &q.codes)?,
            Tensor::Codes(a) => put(&mut out, a)?,
            Tensor::F16(a) => put(&mut out, a)?,
            Tensor::F32(a) => put(&mut out, a)?,
        };
        out.flush()?;
        let piece = Piece { start, dtype, dim };
        self.end += piece.bytes();
        Ok(piece)
    }
}

/// Row-major whatever the memory layout.
fn put<T: Element>(
    out: &mut impl Write,
    values: &Array2<T>,
) -> io::Result<(DType, (usize, usize))> {
    let mut bytes = Vec::with_capacity(1 << 16);
    for value in values {
        value.put_le(&mut bytes);
        if bytes.len() >= 1 << 16 {
            out.write_all(&bytes)?;
            bytes.clear();
        }
    }
    out.write_all(&bytes)?;
    Ok((T::DTYPE, values.dim()))
}

/// Pieces of the spool, one behind the other.
struct Pieces<'a> {
    file: &'a mut File,
    /// Start and length.
    rest: std::collections::VecDeque<(u64, u64)>,
}

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((start, length)) = self.rest.pop_front() else {
            return Ok(0);
        };
        self.file.seek(SeekFrom::Start(start))?;
        let read = (&mut *self.file).take(length).read(buffer)? as u64;
        if read > 0 && read < length {
            self.rest.push_front((start + read, length - read));
        }
        Ok(read as usize)
    }
}

/// Puts tensors of one sequence into a [`TraceSpool`].
#[derive(Debug)]
pub struct SequenceProbe<'a> {
    to: &'a TraceSpool,
    sequence: usize,
    selection: Selection,
    /// Counters of every quantizer that ran.
    pub counts: BTreeMap<Place, Status>,
}

impl Probe for SequenceProbe<'_> {
    fn wants(&self, place: Place) -> bool {
        self.selection.keeps(place)
    }

    fn visit(&mut self, place: Place, value: &mut Tensor) -> Result<()> {
        self.to.add(self.sequence, place, value)
    }

    fn count(&mut self, place: Place, status: Status) {
        *self.counts.entry(place).or_default() += status;
    }
}
