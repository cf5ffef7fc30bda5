//! Buffers that begin on a cache line, so that a vector is one line and never parts of two. Allocators
//! promise 16 bytes, and a 64-byte load across two lines costs two.

use std::ops::{Deref, DerefMut};

/// Bytes of a cache line.
const LINE: usize = 64;

/// `count` arrays of N scalars, the first of them on a cache line.
#[derive(Debug, Default)]
pub(crate) struct Lines<S, const N: usize> {
    scalars: Vec<S>,
    start: usize,
    count: usize,
}

impl<S: Copy, const N: usize> Lines<S, N> {
    /// All of one value.
    pub fn new(value: S, count: usize) -> Self {
        let scalars = vec![value; count * N + LINE / size_of::<S>()];
        // Nothing but speed depends on it.
        let start = scalars
            .as_ptr()
            .align_offset(LINE)
            .min(LINE / size_of::<S>());
        Self {
            scalars,
            start,
            count,
        }
    }

    /// With what it holds if that is enough, or all of one value.
    pub fn at_least(self, value: S, count: usize) -> Self {
        match self.count < count {
            true => Self::new(value, count),
            false => self,
        }
    }
}

impl<S, const N: usize> Deref for Lines<S, N> {
    type Target = [[S; N]];

    #[inline(always)]
    fn deref(&self) -> &[[S; N]] {
        self.scalars[self.start..][..self.count * N].as_chunks().0
    }
}

impl<S, const N: usize> DerefMut for Lines<S, N> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut [[S; N]] {
        self.scalars[self.start..][..self.count * N]
            .as_chunks_mut()
            .0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_begin_where_a_line_does() {
        for count in [0, 1, 3, 64, 1000] {
            let mut lines = Lines::<f32, 16>::new(0.5, count);
            assert_eq!(lines.len(), count);
            assert!(lines.as_ptr().addr().is_multiple_of(LINE));
            assert!(lines.iter_mut().all(|line| *line == [0.5; 16]));
            let words = Lines::<i32, 32>::new(7, count);
            assert_eq!(words.as_flattened(), vec![7; 32 * count]);
            assert!(words.as_ptr().addr().is_multiple_of(LINE));
            let more = words.at_least(8, 3);
            assert_eq!(more.len(), count.max(3));
            assert_eq!(more[0][0], if count < 3 { 8 } else { 7 });
        }
    }
}
