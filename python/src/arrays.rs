//! Arrays between Rust and NumPy.

use half::f16;
use numpy::{Element, IntoPyArray, PyArrayDyn, PyArrayMethods, PyReadonlyArrayDyn};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use scalescope_golden::npz::{Array, Element as FileElement};
use scalescope_golden::value::Value;
use scalescope_sim::trace::Tensor;

/// The arrays of a sequence or of several as one of NumPy's, `[B, rows, columns]`; of one sequence without a copy.
pub fn stacked(py: Python<'_>, mut parts: Vec<Value>) -> Bound<'_, PyAny> {
    macro_rules! stack {
        ($variant:path) => {{
            let part = |value| match value {
                $variant(array) => array,
                _ => unreachable!("a trace holds one type a place"),
            };
            if parts.len() == 1 {
                let one = part(parts.remove(0));
                return whole(py, one.insert_axis(ndarray::Axis(0)).into_dyn());
            }
            let parts: Vec<_> = parts.into_iter().map(part).collect();
            let views: Vec<_> = parts.iter().map(|part| part.view()).collect();
            let all = ndarray::stack(ndarray::Axis(0), &views).expect("one shape a place");
            whole(py, all.into_dyn())
        }};
    }
    match parts[0] {
        Value::I8(_) => stack!(Value::I8),
        Value::F16(_) => stack!(Value::F16),
        Value::F32(_) => stack!(Value::F32),
    }
}

/// NumPy takes the memory of an array.
pub fn whole<T: Element, D: ndarray::Dimension>(
    py: Python<'_>,
    array: ndarray::Array<T, D>,
) -> Bound<'_, PyAny> {
    array.into_pyarray(py).into_any()
}

/// A tensor of the datapath.
pub fn tensor(py: Python<'_>, tensor: Tensor) -> Bound<'_, PyAny> {
    match tensor {
        Tensor::I8(q) => whole(py, q.codes),
        Tensor::Codes(codes) => whole(py, codes),
        Tensor::F16(values) => whole(py, values),
        Tensor::F32(values) => whole(py, values),
    }
}

/// A copy of an array in any layout, for a file.
pub fn for_file(array: &Bound<'_, PyAny>) -> PyResult<Array> {
    fn of<T: Element + FileElement>(array: &Bound<'_, PyAny>) -> Option<Array> {
        let array = array.cast::<PyArrayDyn<T>>().ok()?;
        let view: PyReadonlyArrayDyn<T> = array.try_readonly().ok()?;
        // Row-major, whatever the strides are.
        let view = view.as_array();
        let values: Vec<T> = view.iter().copied().collect();
        let array = ndarray::ArrayD::from_shape_vec(view.raw_dim(), values);
        Some(T::wrap(array.expect("one value an element")))
    }
    of::<i8>(array)
        .or_else(|| of::<f16>(array))
        .or_else(|| of::<f32>(array))
        .or_else(|| of::<u8>(array))
        .or_else(|| of::<i32>(array))
        .or_else(|| of::<i64>(array))
        .or_else(|| of::<f64>(array))
        .or_else(|| of::<i16>(array))
        .or_else(|| of::<u16>(array))
        .or_else(|| of::<u32>(array))
        .or_else(|| of::<u64>(array))
        .or_else(|| of::<bool>(array))
        .ok_or_else(|| {
            let dtype = array.getattr("dtype").map(|d| d.to_string());
            let found = dtype.unwrap_or_else(|_| array.get_type().to_string());
            PyTypeError::new_err(format!(
                "array: expected numbers of a type that traces have, found {found}"
            ))
        })
}
