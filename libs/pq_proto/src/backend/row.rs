//! Row descriptions and rows, in text format.

use bytes::{BufMut, Bytes, BytesMut};

use crate::ProtocolError;
use crate::frame::put_string;
use crate::input::Input;

/// Type of a column our servers return.
#[derive(Debug, Clone, Copy, Eq, PartialEq)]
pub enum ColumnType {
    /// `text`.
    Text,
    /// `int4`.
    Int4,
    /// `int8`.
    Int8,
    /// Any other, by its OID; our servers have none.
    Other(u32),
}

impl ColumnType {
    /// OID in `pg_type`.
    pub fn oid(self) -> u32 {
        match self {
            ColumnType::Text => 25,
            ColumnType::Int4 => 23,
            ColumnType::Int8 => 20,
            ColumnType::Other(oid) => oid,
        }
    }

    fn from_oid(oid: u32) -> Self {
        match oid {
            25 => ColumnType::Text,
            23 => ColumnType::Int4,
            20 => ColumnType::Int8,
            other => ColumnType::Other(other),
        }
    }

    fn len(self) -> i16 {
        match self {
            ColumnType::Int4 => 4,
            ColumnType::Int8 => 8,
            ColumnType::Text | ColumnType::Other(_) => -1,
        }
    }
}

/// Name and type of a result column.
#[derive(Debug, Clone, Eq, PartialEq)]
pub struct Column {
    /// Name.
    pub name: String,
    /// Type.
    pub kind: ColumnType,
}

impl Column {
    /// A column of this name and type.
    pub fn new(name: &str, kind: ColumnType) -> Self {
        Column {
            name: name.to_owned(),
            kind,
        }
    }
}

pub(super) fn parse_columns(input: &mut Input) -> Result<Vec<Column>, ProtocolError> {
    let count = input.u16()?;
    let mut columns = Vec::new();
    for _ in 0..count {
        let name = input.lossy_string()?;
        let _table_and_attribute = input.bytes(6)?;
        let kind = ColumnType::from_oid(input.u32()?);
        let _len_typmod_format = input.bytes(8)?;
        columns.push(Column { name, kind });
    }
    Ok(columns)
}

pub(super) fn put_columns(out: &mut BytesMut, columns: &[Column]) {
    out.put_u16(u16::try_from(columns.len()).expect("our results have few columns"));
    for column in columns {
        put_string(out, &column.name);
        out.put_u32(0); // table
        out.put_u16(0); // attribute
        out.put_u32(column.kind.oid());
        out.put_i16(column.kind.len());
        out.put_i32(-1); // type modifier
        out.put_u16(0); // text format
    }
}

pub(super) fn parse_values(input: &mut Input) -> Result<Vec<Option<Bytes>>, ProtocolError> {
    let count = input.u16()?;
    let mut values = Vec::new();
    for _ in 0..count {
        values.push(match input.i32()? {
            -1 => None,
            len => {
                let len = usize::try_from(len).map_err(|_| input.malformed("negative value length"))?;
                Some(input.bytes(len)?)
            }
        });
    }
    Ok(values)
}

pub(super) fn put_values(out: &mut BytesMut, values: &[Option<Bytes>]) {
    out.put_u16(u16::try_from(values.len()).expect("our results have few columns"));
    for value in values {
        match value {
            None => out.put_i32(-1),
            Some(value) => {
                out.put_i32(i32::try_from(value.len()).expect("our values are below 2 GiB"));
                out.put_slice(value);
            }
        }
    }
}
