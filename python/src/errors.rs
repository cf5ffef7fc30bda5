//! Errors of the crates as Python exceptions.

use pyo3::PyErr;
use pyo3::exceptions::{PyKeyboardInterrupt, PyRuntimeError, PyValueError};
use scalescope_sim::error::SimError;
use std::any::Any;

pyo3::create_exception!(
    scalescope,
    Error,
    PyValueError,
    "An input that cannot be used; the text is the line that the command prints."
);
pyo3::create_exception!(
    scalescope,
    Panic,
    PyRuntimeError,
    "A defect inside scalescope. The process goes on; the text says where it happened."
);

/// The exception of an error.
pub fn raise(error: SimError) -> PyErr {
    match error {
        SimError::Interrupted => PyKeyboardInterrupt::new_err(()),
        other => Error::new_err(other.to_string()),
    }
}

/// The exception of a panic.
pub fn panicked(what: &(dyn Any + Send)) -> PyErr {
    let text = what
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| what.downcast_ref::<&str>().copied());
    let text = text.unwrap_or("no words");
    Panic::new_err(format!(
        "scalescope panicked, which is a defect of scalescope: {text}"
    ))
}
