//! A row-major matrix whose columns are shared out among threads.

use ndarray::Array2;
use std::marker::PhantomData;

/// Hands out segments of rows. Threads that keep to their own columns never meet.
pub struct SplitColumns<'a, T> {
    start: *mut T,
    rows: usize,
    columns: usize,
    matrix: PhantomData<&'a mut [T]>,
}

// SAFETY: the pointer is an exclusive borrow of `T`s, and `segment` asks its caller to keep the
// segments of different threads apart.
unsafe impl<T: Send> Send for SplitColumns<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for SplitColumns<'_, T> {}

impl<'a, T> SplitColumns<'a, T> {
    /// Borrows a matrix for writing.
    pub fn new(matrix: &'a mut Array2<T>) -> Self {
        let (rows, columns) = matrix.dim();
        let values = matrix.as_slice_mut().expect("outputs are row-major");
        Self {
            start: values.as_mut_ptr(),
            rows,
            columns,
            matrix: PhantomData,
        }
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the matrix.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Columns `first..first + width` of a row.
    ///
    /// # Safety
    ///
    /// No two segments alive at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn segment(&self, row: usize, first: usize, width: usize) -> &mut [T] {
        assert!(row < self.rows && first <= self.columns && width <= self.columns - first);
        // SAFETY: inside the matrix by the assertion, unshared by this function's contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.columns + first), width) }
    }
    /// Rows `first..first + count`, whole.
    ///
    /// # Safety
    ///
    /// No two segments alive at the same time may overlap.
    #[allow(clippy::mut_from_ref)]
    #[inline(always)]
    pub unsafe fn rows_from(&self, first: usize, count: usize) -> &mut [T] {
        assert!(first <= self.rows && count <= self.rows - first);
        let (from, length) = (first * self.columns, count * self.columns);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), length) }
    }
}
