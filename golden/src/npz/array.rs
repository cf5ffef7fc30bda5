//! Arrays of every element type that the files of this project use.

use half::f16;
use ndarray::ArrayD;

/// A type that an array of a file may have.
pub trait Element:
    npyz::AutoSerialize + Copy + PartialEq + std::fmt::Debug + Send + Sync + 'static
{
    /// Its tag.
    const DTYPE: DType;
    /// Bytes in a file.
    const SIZE: usize = size_of::<Self>();
    /// The array, tagged.
    fn wrap(array: ArrayD<Self>) -> Array;
    /// The array within, or the same array if it is of another type.
    fn unwrap(array: Array) -> Result<ArrayD<Self>, Array>;
    /// The array within, if it is of this type.
    fn get(array: &Array) -> Option<&ArrayD<Self>>;
    /// From `SIZE` bytes, least significant first.
    fn from_le(bytes: &[u8]) -> Self;
    /// From `SIZE` bytes, most significant first.
    fn from_be(bytes: &[u8]) -> Self;
    /// Appends `SIZE` bytes, least significant first.
    fn put_le(self, bytes: &mut Vec<u8>);
}

macro_rules! elements {
    ($($variant:ident $type:ty, $name:literal, $descr:literal, $doc:literal;)*) => {
        /// The element type of an array.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum DType {
            $(#[doc = $doc] $variant,)*
        }

        impl DType {
            /// Every element type.
            pub const ALL: &[DType] = &[$(DType::$variant,)*];

            /// The short name: `i8`, `f16`, `bool`.
            pub fn name(self) -> &'static str {
                match self { $(DType::$variant => $name,)* }
            }

            /// NumPy's description, little endian.
            pub fn descr(self) -> &'static str {
                match self { $(DType::$variant => $descr,)* }
            }

            /// Bytes of one element.
            pub fn item_size(self) -> usize {
                match self { $(DType::$variant => size_of::<$type>(),)* }
            }
        }

        /// An array of a file: any shape, row-major, tagged with its element type.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Array {
            $(#[doc = $doc] $variant(ArrayD<$type>),)*
        }

        impl Array {
            /// Lengths of the axes; empty for a scalar.
            pub fn shape(&self) -> &[usize] {
                match self { $(Array::$variant(array) => array.shape(),)* }
            }

            /// The element type.
            pub fn dtype(&self) -> DType {
                match self { $(Array::$variant(_) => DType::$variant,)* }
            }

            /// Number of elements.
            pub fn len(&self) -> usize {
                match self { $(Array::$variant(array) => array.len(),)* }
            }

            /// Whether there is no element.
            pub fn is_empty(&self) -> bool {
                self.len() == 0
            }
        }

        $(impl From<ArrayD<$type>> for Array {
            fn from(array: ArrayD<$type>) -> Self {
                Array::$variant(array)
            }
        })*

        /// Runs an expression with `$array` bound to the typed array inside.
        macro_rules! with_array {
            ($value:expr, $array:ident => $body:expr) => {
                match $value { $($crate::npz::Array::$variant($array) => $body,)* }
            };
        }
        /// Runs an expression with `$t` bound to the type of a [`DType`].
        macro_rules! with_type {
            ($value:expr, $t:ident => $body:expr) => {
                match $value { $($crate::npz::DType::$variant => { type $t = $type; $body })* }
            };
        }
    };
}

macro_rules! element_impl {
    ($variant:ident, $type:ty) => {
        element_impl!(
            $variant,
            $type,
            |bytes| <$type>::from_le_bytes(bytes.try_into().expect("SIZE bytes")),
            |bytes| <$type>::from_be_bytes(bytes.try_into().expect("SIZE bytes")),
            |value: $type| value.to_le_bytes()
        );
    };
    ($variant:ident, $type:ty, $le:expr, $be:expr, $to:expr) => {
        impl Element for $type {
            const DTYPE: DType = DType::$variant;
            fn wrap(array: ArrayD<Self>) -> Array {
                Array::$variant(array)
            }
            fn unwrap(array: Array) -> Result<ArrayD<Self>, Array> {
                match array {
                    Array::$variant(array) => Ok(array),
                    other => Err(other),
                }
            }
            fn get(array: &Array) -> Option<&ArrayD<Self>> {
                match array {
                    Array::$variant(array) => Some(array),
                    _ => None,
                }
            }
            #[inline(always)]
            fn from_le(bytes: &[u8]) -> Self {
                let decode: fn(&[u8]) -> $type = $le;
                decode(bytes)
            }
            #[inline(always)]
            fn from_be(bytes: &[u8]) -> Self {
                let decode: fn(&[u8]) -> $type = $be;
                decode(bytes)
            }
            #[inline(always)]
            fn put_le(self, bytes: &mut Vec<u8>) {
                bytes.extend_from_slice(&($to)(self));
            }
        }
    };
}

elements! {
    Bool bool, "bool", "|b1", "Truth values, one byte each.";
    I8 i8, "i8", "|i1", "INT8 codes.";
    U8 u8, "u8", "|u1", "Bytes.";
    I16 i16, "i16", "<i2", "16-bit integers.";
    U16 u16, "u16", "<u2", "16-bit naturals.";
    I32 i32, "i32", "<i4", "32-bit integers.";
    U32 u32, "u32", "<u4", "32-bit naturals.";
    I64 i64, "i64", "<i8", "64-bit integers.";
    U64 u64, "u64", "<u8", "64-bit naturals.";
    F16 half::f16, "f16", "<f2", "Binary16.";
    F32 f32, "f32", "<f4", "Binary32.";
    F64 f64, "f64", "<f8", "Binary64.";
}
pub(crate) use {with_array, with_type};

element_impl!(Bool, bool, |b| b[0] != 0, |b| b[0] != 0, |v: bool| [
    u8::from(v)
]);
element_impl!(I8, i8);
element_impl!(U8, u8);
element_impl!(I16, i16);
element_impl!(U16, u16);
element_impl!(I32, i32);
element_impl!(U32, u32);
element_impl!(I64, i64);
element_impl!(U64, u64);
element_impl!(F16, f16);
element_impl!(F32, f32);
element_impl!(F64, f64);

impl Array {
    /// One value without axes.
    pub fn scalar<T: Element>(value: T) -> Self {
        T::wrap(ArrayD::from_elem(ndarray::IxDyn(&[]), value))
    }

    /// Type and shape in words: `i8 [1, 171, 192]`.
    pub fn describe(&self) -> String {
        format!("{} {:?}", self.dtype().name(), self.shape())
    }

    /// Integers (not bool) one by one, row by row; `None` for other types.
    pub fn integers(&self) -> Option<Box<dyn Iterator<Item = i128> + '_>> {
        Some(match self {
            Array::I8(a) => Box::new(a.iter().map(|v| i128::from(*v))),
            Array::U8(a) => Box::new(a.iter().map(|v| i128::from(*v))),
            Array::I16(a) => Box::new(a.iter().map(|v| i128::from(*v))),
            Array::U16(a) => Box::new(a.iter().map(|v| i128::from(*v))),
            Array::I32(a) => Box::new(a.iter().map(|v| i128::from(*v))),
            Array::U32(a) => Box::new(a.iter().map(|v| i128::from(*v))),
            Array::I64(a) => Box::new(a.iter().map(|v| i128::from(*v))),
            Array::U64(a) => Box::new(a.iter().map(|v| i128::from(*v))),
            Array::Bool(_) | Array::F16(_) | Array::F32(_) | Array::F64(_) => return None,
        })
    }

    /// Integers (not bool) widened to i64; `None` for other types and for values over i64.
    pub fn to_i64(&self) -> Option<ArrayD<i64>> {
        match self {
            Array::I8(a) => Some(a.mapv(i64::from)),
            Array::U8(a) => Some(a.mapv(i64::from)),
            Array::I16(a) => Some(a.mapv(i64::from)),
            Array::U16(a) => Some(a.mapv(i64::from)),
            Array::I32(a) => Some(a.mapv(i64::from)),
            Array::U32(a) => Some(a.mapv(i64::from)),
            Array::I64(a) => Some(a.clone()),
            Array::U64(a) => {
                let fits = a.iter().all(|v| i64::try_from(*v).is_ok());
                fits.then(|| a.mapv(|v| v as i64))
            }
            Array::Bool(_) | Array::F16(_) | Array::F32(_) | Array::F64(_) => None,
        }
    }
}
