//! Buffers of rows that are read with another stride than they were written with.

use super::Operand;
use ndarray::Array2;

/// How a buffer is addressed.
#[derive(Clone, Copy, PartialEq)]
pub enum Stride {
    /// Rows are read so many elements apart.
    Read(usize),
    /// Rows were written so many elements apart, with zeros between, and are read as if they were close.
    Written(usize),
    /// Rows are read as if they were columns.
    Turned,
    /// Columns were written one after another, and are read as rows.
    Poured,
}

impl Stride {
    /// Every other stride of a buffer of `width` columns, of which `part` are read.
    pub fn all(width: usize, part: usize) -> Vec<Self> {
        let padded = [8usize, 16, 32, 64, 128, 256].map(|to| width.next_multiple_of(to));
        let near = [1, 2, 4, 8, 16].into_iter();
        let near = near.flat_map(|by| [width + by, width.saturating_sub(by)]);
        let parts = [part, width.saturating_sub(part), 2 * width, width / 2];
        let mut strides: Vec<usize> = padded.into_iter().chain(near).chain(parts).collect();
        strides.retain(|s| *s > 0 && *s != width);
        strides.sort_unstable();
        strides.dedup();
        let wider = |s: &usize| (*s > width).then_some(Self::Written(*s));
        let written: Vec<Self> = strides.iter().filter_map(wider).collect();
        let read = strides.into_iter().map(Self::Read);
        [Self::Turned, Self::Poured]
            .into_iter()
            .chain(read)
            .chain(written)
            .collect()
    }

    /// In words.
    pub fn words(self, what: &str) -> String {
        match self {
            Self::Read(stride) => format!("rows of {what} are read {stride} elements apart"),
            Self::Written(stride) => {
                format!("rows of {what} lie {stride} elements apart and are read as if close")
            }
            Self::Turned => format!("rows of {what} are read as if they were columns"),
            Self::Poured => format!("the buffer of {what} is read transposed"),
        }
    }

    /// What is read of a buffer, so many columns from the first on; zero beyond its end.
    pub fn of(self, all: &Array2<f32>, first: usize, count: usize) -> Array2<f32> {
        let (rows, width) = all.dim();
        let at = |i: usize| all.get((i / width, i % width)).copied().unwrap_or(0.0);
        Array2::from_shape_fn((rows, count), |(t, c)| match self {
            Self::Read(stride) => at(t * stride + first + c),
            Self::Turned => at((first + c) * rows + t),
            Self::Poured => {
                let i = t * width + first + c;
                all[(i % rows, i / rows)]
            }
            Self::Written(stride) => {
                let i = t * width + first + c;
                all.get((i / stride, i % stride)).copied().unwrap_or(0.0)
            }
        })
    }

    /// Of a whole buffer.
    pub fn of_all(self, all: &Array2<f32>) -> Array2<f32> {
        self.of(all, 0, all.ncols())
    }

    /// Of an operand, which may be a part of a wider buffer.
    pub fn of_operand(self, x: &mut Operand) {
        x.values = match &x.whole {
            Some(whole) => self.of(&whole.0, whole.1, x.values.ncols()),
            None => self.of_all(&x.values),
        };
    }

    /// Every other stride of an operand.
    pub fn of_each(x: &Operand) -> Vec<Self> {
        let part = x.values.ncols();
        let width = x.whole.as_ref().map_or(part, |whole| whole.0.ncols());
        Self::all(width, part)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_is_read_at_the_places_of_another_stride() {
        let all = Array2::from_shape_fn((3, 4), |(r, c)| (4 * r + c) as f32);
        let read = |stride: Stride| stride.of(&all, 2, 2).into_iter().collect::<Vec<f32>>();
        assert_eq!(read(Stride::Read(2)), [2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        assert_eq!(read(Stride::Read(8)), [2.0, 3.0, 10.0, 11.0, 0.0, 0.0]);
        assert_eq!(read(Stride::Turned), [6.0, 9.0, 7.0, 10.0, 8.0, 11.0]);
        assert_eq!(read(Stride::Poured), [8.0, 1.0, 2.0, 6.0, 7.0, 11.0]);
        // Written 5 apart: 0 1 2 3 _ 4 5 6 7 _ 8 9 …
        assert_eq!(read(Stride::Written(5)), [2.0, 3.0, 5.0, 6.0, 8.0, 9.0]);
        assert!(Stride::all(44, 44).contains(&Stride::Written(48)));
        assert!(Stride::all(768, 384).contains(&Stride::Read(384)));
    }
}
