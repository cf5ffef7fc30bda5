//! What a trace is read from: arrays by name, in an `.npz`, in a dict of tensors that `torch.save` wrote, or
//! in a folder of vectors.

use crate::npz::{Array, DType, Element, NpzReader};
use crate::rtl::manifest::{StepVectors, is_vectors};
use half::f16;
use ndarray::{ArrayD, IxDyn};
use scalescope_sim::checkpoint::tensor::Dtype;
use scalescope_sim::checkpoint::torch::{Found, TorchFile};
use scalescope_sim::error::{Result, SimError};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

/// Arrays by name: an `.npz`, or a folder of vectors.
pub(super) trait Arrays: Send {
    fn names(&self) -> Vec<String>;
    /// Type and shape, without the data where the file lets it.
    fn header(&mut self, name: &str) -> Result<(DType, Vec<usize>)> {
        let array = self.read(name)?;
        Ok((array.dtype(), array.shape().to_vec()))
    }
    fn read(&mut self, name: &str) -> Result<Array>;
}

/// Opens whatever holds a trace: content decides, then the extension.
pub(super) fn open(path: &Path) -> Result<Box<dyn Arrays>> {
    Ok(if is_vectors(path) {
        Box::new(Folder::open(path)?)
    } else if is_torch(path) {
        Box::new(TorchFile::open(path)?)
    } else {
        Box::new(NpzReader::open(path)?)
    })
}

/// How names of files of `torch.save` end.
const TORCH: [&str; 3] = ["pt", "pth", "bin"];

/// Whether a file is one of `torch.save`: a zip with a pickle, or no zip and called so.
fn is_torch(path: &Path) -> bool {
    let zip = File::open(path).ok().map(BufReader::new);
    match zip.and_then(|file| zip::ZipArchive::new(file).ok()) {
        Some(zip) => zip
            .file_names()
            .any(|name| name.is_ok_and(|name| name.ends_with("/data.pkl"))),
        None => path
            .extension()
            .is_some_and(|e| TORCH.iter().any(|known| e == *known)),
    }
}

impl Arrays for NpzReader {
    fn names(&self) -> Vec<String> {
        NpzReader::names(self).map(str::to_owned).collect()
    }

    fn header(&mut self, name: &str) -> Result<(DType, Vec<usize>)> {
        let header = NpzReader::header(self, name)?;
        Ok((header.dtype, header.shape))
    }

    fn read(&mut self, name: &str) -> Result<Array> {
        NpzReader::read(self, name)
    }
}

impl Arrays for &mut NpzReader {
    fn names(&self) -> Vec<String> {
        Arrays::names(&**self)
    }

    fn header(&mut self, name: &str) -> Result<(DType, Vec<usize>)> {
        Arrays::header(&mut **self, name)
    }

    fn read(&mut self, name: &str) -> Result<Array> {
        Arrays::read(&mut **self, name)
    }
}

/// A dict of tensors that `torch.save` wrote; bfloat16 becomes f32, which is exact.
impl Arrays for TorchFile<'_> {
    fn names(&self) -> Vec<String> {
        self.entries().map(|(name, _)| name.to_owned()).collect()
    }

    fn read(&mut self, name: &str) -> Result<Array> {
        match self.get(name) {
            Some(Found::Number(value)) if f64::from(*value as f32) == *value => {
                return Ok(Array::scalar(*value as f32));
            }
            Some(Found::Integer(value)) => return Ok(Array::scalar(*value)),
            _ => {}
        }
        let tensor = self.any_tensor(name)?;
        let (bytes, shape) = (tensor.bytes(), IxDyn(tensor.shape()));
        fn array<T: Element>(bytes: &[u8], shape: IxDyn) -> Array {
            let values = bytes.chunks_exact(T::SIZE).map(T::from_le).collect();
            T::wrap(ArrayD::from_shape_vec(shape, values).expect("as many elements"))
        }
        Ok(match tensor.dtype() {
            Dtype::BOOL => array::<bool>(&bytes, shape),
            Dtype::I8 => array::<i8>(&bytes, shape),
            Dtype::U8 => array::<u8>(&bytes, shape),
            Dtype::I16 => array::<i16>(&bytes, shape),
            Dtype::I32 => array::<i32>(&bytes, shape),
            Dtype::I64 => array::<i64>(&bytes, shape),
            Dtype::F16 => array::<f16>(&bytes, shape),
            Dtype::F32 => array::<f32>(&bytes, shape),
            Dtype::F64 => array::<f64>(&bytes, shape),
            Dtype::BF16 => {
                let values = ArrayD::from_shape_vec(shape, tensor.to_f32()?);
                Array::F32(values.expect("as many elements"))
            }
            other => return Err(SimError::value(name, "integers or reals", other)),
        })
    }
}

/// The arrays of a folder of vectors that are tensors of a trace, their scales, and where they come
/// from.
struct Folder(BTreeMap<String, Array>);

impl Folder {
    fn open(path: &Path) -> Result<Self> {
        let (step, _) = StepVectors::read(path)?;
        let mut arrays = BTreeMap::new();
        for vector in step.vectors {
            let Some(key) = vector.key else { continue };
            if let Some(scale) = vector.scale {
                arrays.insert(format!("scale/{key}"), Array::scalar(scale));
            }
            arrays.insert(key, vector.array);
        }
        let meta = serde_json::json!({
            "mode": step.mode, "profile": step.profile.name,
            "profile_hash": step.profile.hash, "model": step.model,
        });
        let bytes = ndarray::Array1::from_vec(meta.to_string().into_bytes());
        arrays.insert("meta".into(), Array::U8(bytes.into_dyn()));
        Ok(Self(arrays))
    }
}

impl Arrays for Folder {
    fn names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn read(&mut self, name: &str) -> Result<Array> {
        let array = self.0.get(name).cloned();
        array.ok_or_else(|| SimError::value(name, "an array of the folder", "none"))
    }
}
