//! C structs in files and WAL: declared once, with offsets, and from that declaration read, written and
//! compared with what the C compiler says.
//!
//! Numbers are little-endian, as on every platform we run PostgreSQL on. Padding is passed over in reading
//! and zero in writing.

use utils::lsn::Lsn;

use crate::cursor::{Cursor, Truncated};

/// A value with a fixed length in a C struct.
pub trait CValue: Sized {
    /// Length in bytes.
    const LEN: usize;
    /// Reads the value from the start of `raw`, which has at least [`Self::LEN`] bytes.
    fn get(raw: &[u8]) -> Self;
    /// Writes the value to the start of `raw`, which has at least [`Self::LEN`] bytes.
    fn put(&self, raw: &mut [u8]);
}

/// A struct declared with [`c_struct!`](crate::c_struct).
pub trait CStruct: CValue {
    /// Its C name, size and members.
    const LAYOUT: Layout;

    /// Reads the struct from `raw`; bytes behind it are ignored.
    fn decode(raw: &[u8]) -> Result<Self, Truncated> {
        Self::read(&mut Cursor::new(raw))
    }

    /// Reads the struct at the cursor.
    fn read(input: &mut Cursor<'_>) -> Result<Self, Truncated> {
        Ok(Self::get(input.bytes(Self::LEN)?))
    }

    /// The struct's bytes.
    fn encode(&self) -> Vec<u8> {
        let mut raw = vec![0; Self::LEN];
        self.put(&mut raw);
        raw
    }
}

/// What a declaration says, to be compared with the C headers.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Name of the C type.
    pub c_name: &'static str,
    /// C expression for the length.
    pub c_len: &'static str,
    /// Length in bytes.
    pub len: usize,
    /// Members that we read.
    pub members: &'static [Member],
}

/// A member of a C struct.
#[derive(Clone, Copy, Debug)]
pub struct Member {
    /// Its C name.
    pub c_name: &'static str,
    /// Offset in bytes.
    pub offset: usize,
    /// Length in bytes.
    pub len: usize,
}

macro_rules! number {
    ($($number:ty),*) => {$(
        impl CValue for $number {
            const LEN: usize = size_of::<$number>();

            fn get(raw: &[u8]) -> Self {
                let raw = raw.first_chunk().expect("the caller gives a whole value");
                <$number>::from_le_bytes(*raw)
            }

            fn put(&self, raw: &mut [u8]) {
                raw[..Self::LEN].copy_from_slice(&self.to_le_bytes());
            }
        }
    )*};
}

number!(u8, u16, u32, u64, i32, i64, f64);

impl CValue for bool {
    const LEN: usize = 1;

    fn get(raw: &[u8]) -> Self {
        raw[0] != 0
    }

    fn put(&self, raw: &mut [u8]) {
        raw[0] = u8::from(*self);
    }
}

impl CValue for Lsn {
    const LEN: usize = 8;

    fn get(raw: &[u8]) -> Self {
        Lsn(u64::get(raw))
    }

    fn put(&self, raw: &mut [u8]) {
        self.0.put(raw);
    }
}

impl<const N: usize> CValue for [u8; N] {
    const LEN: usize = N;

    fn get(raw: &[u8]) -> Self {
        *raw.first_chunk().expect("the caller gives a whole value")
    }

    fn put(&self, raw: &mut [u8]) {
        raw[..N].copy_from_slice(self);
    }
}

/// Declares a C struct: a Rust struct with public fields that implements [`CStruct`].
///
/// Behind the name stand the C type, the C expression for its length on disk and that length; behind each
/// field its offset and C name.
#[macro_export]
macro_rules! c_struct {
    (
        $(#[$attribute:meta])*
        pub struct $name:ident($c_name:literal, $c_len:literal = $len:literal) {
            $($(#[$field_attribute:meta])* $field:ident: $kind:ty = $offset:literal $c_field:literal,)*
        }
    ) => {
        $(#[$attribute])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $name {
            $($(#[$field_attribute])* pub $field: $kind,)*
        }

        impl $crate::c_struct::CValue for $name {
            const LEN: usize = $len;

            fn get(raw: &[u8]) -> Self {
                Self { $($field: <$kind as $crate::c_struct::CValue>::get(&raw[$offset..]),)* }
            }

            fn put(&self, raw: &mut [u8]) {
                raw[..$len].fill(0);
                $($crate::c_struct::CValue::put(&self.$field, &mut raw[$offset..]);)*
            }
        }

        impl $crate::c_struct::CStruct for $name {
            const LAYOUT: $crate::c_struct::Layout = $crate::c_struct::Layout {
                c_name: $c_name,
                c_len: $c_len,
                len: $len,
                members: &[$($crate::c_struct::Member {
                    c_name: $c_field,
                    offset: $offset,
                    len: <$kind as $crate::c_struct::CValue>::LEN,
                },)*],
            };
        }
    };
}
