//! The extension module `scalescope._scalescope`: what the package's Python files stand on. It calls the
//! public face of the crates and adds no rule of its own.

mod arrays;
mod decode;
mod errors;
mod model;
mod ops;
mod rules;
mod score;
mod simulator;
mod trace;
mod work;

use pyo3::prelude::*;
use scalescope_sim::trace::TracePoint;

/// Runs a command line, the program's name first; its exit code.
#[pyfunction]
fn main(py: Python<'_>, arguments: Vec<String>) -> u8 {
    py.detach(|| scalescope::main_of(arguments.into_iter().map(Into::into)))
}

/// Runs a command and gives what it prints, and whether all it compared was equal.
#[pyfunction]
#[pyo3(signature = (arguments, progress = None))]
fn call(
    py: Python<'_>,
    arguments: Vec<String>,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<(bool, String)> {
    let answer = work::long(py, progress.as_ref(), || {
        scalescope::embed::call(&arguments, None)
    })?;
    Ok((answer.equal, answer.printed))
}

/// The names of the trace points, in the order of the datapath.
#[pyfunction]
fn points() -> Vec<&'static str> {
    TracePoint::ALL.map(TracePoint::name).to_vec()
}

/// Panics, for the tests.
#[pyfunction]
fn panic_on_purpose(py: Python<'_>) -> PyResult<()> {
    work::long(py, None, || panic!("on purpose"))
}

#[pymodule]
fn _scalescope(module: &Bound<'_, PyModule>) -> PyResult<()> {
    scalescope_sim::kernels::pages::keep_freed();
    scalescope::embed::embed();
    let py = module.py();
    module.add("Error", py.get_type::<errors::Error>())?;
    module.add("Panic", py.get_type::<errors::Panic>())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<model::Model>()?;
    module.add_class::<decode::Decoder>()?;
    module.add_class::<score::Scorer>()?;
    module.add_function(wrap_pyfunction!(main, module)?)?;
    module.add_function(wrap_pyfunction!(call, module)?)?;
    module.add_function(wrap_pyfunction!(points, module)?)?;
    module.add_function(wrap_pyfunction!(panic_on_purpose, module)?)?;
    module.add_function(wrap_pyfunction!(score::windows, module)?)?;
    module.add_function(wrap_pyfunction!(trace::read_trace, module)?)?;
    module.add_function(wrap_pyfunction!(trace::write_npz, module)?)?;
    module.add_function(wrap_pyfunction!(rules::mode, module)?)?;
    module.add_function(wrap_pyfunction!(rules::modes, module)?)?;
    module.add_function(wrap_pyfunction!(rules::profile, module)?)?;
    module.add_function(wrap_pyfunction!(rules::profiles, module)?)?;
    module.add_function(wrap_pyfunction!(rules::to_toml, module)?)?;
    module.add_function(wrap_pyfunction!(rules::from_toml, module)?)?;
    module.add_function(wrap_pyfunction!(ops::quantize, module)?)?;
    module.add_function(wrap_pyfunction!(ops::requantize, module)?)?;
    module.add_function(wrap_pyfunction!(ops::multiplier, module)?)?;
    module.add_function(wrap_pyfunction!(ops::linear_step, module)?)?;
    module.add_function(wrap_pyfunction!(ops::conv1d_silu, module)?)?;
    module.add_function(wrap_pyfunction!(ops::scan, module)?)?;
    module.add_function(wrap_pyfunction!(ops::rmsnorm_quantize, module)?)?;
    module.add_function(wrap_pyfunction!(ops::hadamard_quantize, module)?)?;
    module.add_function(wrap_pyfunction!(ops::function, module)?)?;
    Ok(())
}
