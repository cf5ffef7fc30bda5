//! The arrays of a dump, by the names that a mapping calls them.

use super::{Dtype, DumpedLayout};
use crate::npz::{Array, Element, NpzReader, read_npy};
use half::f16;
use ndarray::{ArrayD, IxDyn};
use scalescope_sim::checkpoint::container::Container;
use scalescope_sim::checkpoint::tensor::{Dtype as Stored, FileTensor};
use scalescope_sim::checkpoint::torch::{Found, TorchFile};
use scalescope_sim::error::{Result, SimError};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A file of arrays.
enum Store {
    Npz(NpzReader),
    Npy(PathBuf),
    Torch(TorchFile<'static>),
    Safetensors(Container<'static>),
    Raw(PathBuf),
}

/// A dump: one file, or every file of a folder. An array is called as its file has it; in a folder `file` where the
/// file is one array, and `file:name` where it holds several.
pub(super) struct Dump {
    path: PathBuf,
    stores: Vec<Store>,
    /// Store and name in it.
    names: BTreeMap<String, (usize, String)>,
}

impl Dump {
    pub fn open(path: &Path) -> Result<Self> {
        let mut dump = Self {
            path: path.to_path_buf(),
            stores: Vec::new(),
            names: BTreeMap::new(),
        };
        if !path.is_dir() {
            dump.add(path, None)?;
            return Ok(dump);
        }
        let mut files: Vec<PathBuf> = fs::read_dir(path)
            .and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect())
            .map_err(|e| SimError::io(path, e))?;
        files.sort();
        for file in files.iter().filter(|file| file.is_file()) {
            let name = file
                .file_name()
                .map(|name| name.to_string_lossy().into_owned());
            dump.add(file, name)?;
        }
        Ok(dump)
    }

    fn add(&mut self, file: &Path, called: Option<String>) -> Result<()> {
        let number = self.stores.len();
        let ending = file.extension().map(|e| e.to_string_lossy().to_lowercase());
        let mut inner: Vec<String> = Vec::new();
        let store = match ending.as_deref() {
            Some("npz") => {
                let npz = NpzReader::open(file)?;
                inner.extend(npz.names().map(str::to_owned));
                Store::Npz(npz)
            }
            Some("npy") => Store::Npy(file.to_path_buf()),
            Some("safetensors") => {
                let container = Container::open(file)?;
                inner.extend(container.names());
                Store::Safetensors(container)
            }
            Some("pt" | "pth") => {
                let torch = TorchFile::open(file)?;
                inner.extend(torch.entries().map(|(name, _)| name.to_owned()));
                Store::Torch(torch)
            }
            // A torch file may be called so too; what is none is raw.
            Some("bin") => match TorchFile::open(file) {
                Ok(torch) => {
                    inner.extend(torch.entries().map(|(name, _)| name.to_owned()));
                    Store::Torch(torch)
                }
                Err(_) => Store::Raw(file.to_path_buf()),
            },
            _ if called.is_some() => return Ok(()),
            _ => {
                let expected = ".npz, .npy, .pt, .pth, .safetensors, .bin, or a folder of such";
                return Err(SimError::file(file, "dump", expected, "another ending"));
            }
        };
        let single = matches!(store, Store::Npy(_) | Store::Raw(_));
        self.stores.push(store);
        let own = file
            .file_name()
            .map_or(String::new(), |n| n.to_string_lossy().into_owned());
        match (&called, single) {
            (_, true) => {
                self.names
                    .insert(called.unwrap_or(own), (number, String::new()));
            }
            (None, false) => {
                for name in inner {
                    self.names.insert(name.clone(), (number, name));
                }
            }
            (Some(file), false) => {
                for name in inner {
                    let full = match name.is_empty() {
                        true => file.clone(),
                        false => format!("{file}:{name}"),
                    };
                    self.names.insert(full, (number, name));
                }
            }
        }
        Ok(())
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    /// Some names that share most with one that is not there.
    pub fn near(&self, name: &str) -> String {
        let parts: Vec<&str> = name
            .split(|c: char| !c.is_alphanumeric())
            .filter(|p| !p.is_empty())
            .collect();
        let score = |other: &str| parts.iter().filter(|part| other.contains(**part)).count();
        let mut names: Vec<&str> = self.names().collect();
        names.sort_by_key(|other| (std::cmp::Reverse(score(other)), other.len()));
        names.truncate(3);
        match names.is_empty() {
            true => "nothing, the dump is empty".into(),
            false => names.join(", "),
        }
    }

    /// An array by its name, in the shape that the mapping gives it.
    pub fn read(&mut self, name: &str, layout: &DumpedLayout) -> Result<Array> {
        let (store, inner) = self.names[name].clone();
        let array = match &mut self.stores[store] {
            Store::Npz(npz) => npz.read(&inner)?,
            Store::Npy(path) => read_npy(path)?,
            Store::Safetensors(container) => {
                let shape = container.shape(&inner).to_vec();
                typed(&container.tensor(&inner, &shape)?, name)?
            }
            Store::Torch(torch) => match torch.get(&inner) {
                Some(Found::Number(value)) => Array::scalar(*value),
                Some(Found::Integer(value)) => Array::scalar(*value),
                _ => typed(&torch.any_tensor(&inner)?, name)?,
            },
            Store::Raw(path) => raw(path, name, layout)?,
        };
        match &layout.shape {
            Some(shape) => shaped(array, shape, name).map_err(|e| e.in_file(&self.path)),
            None => Ok(array),
        }
    }
}

fn shaped(array: Array, shape: &[usize], name: &str) -> Result<Array> {
    let described = array.describe();
    let fits = shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n)) == Some(array.len());
    if !fits {
        return Err(SimError::value(
            name,
            format_args!("elements for the shape {shape:?}"),
            described,
        ));
    }
    macro_rules! each {
        ($($variant:ident)*) => {
            match array {
                $(Array::$variant(a) => Array::$variant(a.into_shape_with_order(IxDyn(shape)).expect("as many elements")),)*
            }
        };
    }
    Ok(each!(Bool I8 U8 I16 U16 I32 U32 I64 U64 F16 F32 F64))
}

fn array<T: Element>(bytes: &[u8], shape: &[usize]) -> Array {
    let values = bytes.chunks_exact(T::SIZE).map(T::from_le).collect();
    T::wrap(ArrayD::from_shape_vec(IxDyn(shape), values).expect("as many elements"))
}

/// A tensor of a torch or safetensors file; bfloat16 becomes f32, which is exact.
fn typed(tensor: &FileTensor, name: &str) -> Result<Array> {
    let (bytes, shape) = (tensor.bytes(), tensor.shape());
    Ok(match tensor.dtype() {
        Stored::BOOL => array::<bool>(&bytes, shape),
        Stored::I8 => array::<i8>(&bytes, shape),
        Stored::U8 => array::<u8>(&bytes, shape),
        Stored::I16 => array::<i16>(&bytes, shape),
        Stored::I32 => array::<i32>(&bytes, shape),
        Stored::I64 => array::<i64>(&bytes, shape),
        Stored::F16 => array::<f16>(&bytes, shape),
        Stored::F32 => array::<f32>(&bytes, shape),
        Stored::F64 => array::<f64>(&bytes, shape),
        Stored::BF16 => {
            let values = ArrayD::from_shape_vec(IxDyn(shape), tensor.to_f32()?);
            Array::F32(values.expect("as many elements"))
        }
        other => return Err(SimError::value(name, "integers or reals", other)),
    })
}

/// A raw file, little endian, of the type and shape that the mapping states.
fn raw(path: &Path, name: &str, layout: &DumpedLayout) -> Result<Array> {
    let (Some(dtype), Some(shape)) = (layout.dtype, &layout.shape) else {
        return Err(SimError::file(
            path,
            name,
            "dtype and shape in the mapping, since it is a raw file",
            "none",
        ));
    };
    let bytes = fs::read(path).map_err(|e| SimError::io(path, e))?;
    let size = match dtype {
        Dtype::I8 => 1,
        Dtype::F16 => 2,
        Dtype::F32 | Dtype::I32 => 4,
        Dtype::I64 => 8,
    };
    let needed = shape
        .iter()
        .try_fold(size, |all: usize, n| all.checked_mul(*n));
    if needed != Some(bytes.len()) {
        let expected = format_args!("{size} bytes for each element of {shape:?}").to_string();
        return Err(SimError::file(
            path,
            name,
            expected,
            format_args!("{} bytes", bytes.len()),
        ));
    }
    Ok(match dtype {
        Dtype::I8 => array::<i8>(&bytes, shape),
        Dtype::F16 => array::<f16>(&bytes, shape),
        Dtype::F32 => array::<f32>(&bytes, shape),
        Dtype::I32 => array::<i32>(&bytes, shape),
        Dtype::I64 => array::<i64>(&bytes, shape),
    })
}
