//! Messages a server sends.

use bytes::{BufMut, Bytes, BytesMut};

use crate::ProtocolError;
use crate::frame::{put, put_string};
use crate::input::Input;

mod authentication;
mod notice;
mod row;

pub use authentication::Authentication;
pub use notice::Notice;
pub use row::{Column, ColumnType};

/// Whether the session is in a transaction.
#[derive(Debug, Clone, Copy, Eq, PartialEq)]
pub enum TransactionStatus {
    /// Not in a transaction.
    Idle,
    /// In one.
    InTransaction,
    /// In one that has failed.
    Failed,
}

/// Format a `COPY` announces: `text` is a matter of the columns' format and means nothing to us.
#[derive(Debug, Clone, Copy, Eq, PartialEq)]
pub struct CopyFormat {
    /// 0 text, 1 binary.
    pub format: u8,
    /// Number of columns; their formats all equal `format`.
    pub columns: u16,
}

/// A message from a server.
#[derive(Debug, Clone, Eq, PartialEq)]
pub enum BackendMessage {
    /// A step of authentication.
    Authentication(Authentication),
    /// Current value of a setting.
    ParameterStatus {
        /// Setting.
        name: String,
        /// Value.
        value: String,
    },
    /// What a cancel request must carry.
    BackendKeyData {
        /// Process id.
        process_id: i32,
        /// Secret.
        secret_key: i32,
    },
    /// The server waits for the next command.
    ReadyForQuery(TransactionStatus),
    /// Shape of the rows that follow.
    RowDescription(Vec<Column>),
    /// One row, values in text format; `None` is NULL.
    DataRow(Vec<Option<Bytes>>),
    /// A command has ended well; its tag.
    CommandComplete(String),
    /// The query text was empty.
    EmptyQueryResponse,
    /// A command, or the connection, has failed.
    ErrorResponse(Notice),
    /// Something worth knowing.
    NoticeResponse(Notice),
    /// A `NOTIFY` of another session.
    NotificationResponse {
        /// Sender's process id.
        process_id: i32,
        /// Channel.
        channel: String,
        /// Payload.
        payload: String,
    },
    /// The server expects a COPY stream.
    CopyInResponse(CopyFormat),
    /// The server sends a COPY stream.
    CopyOutResponse(CopyFormat),
    /// Both directions carry a COPY stream.
    CopyBothResponse(CopyFormat),
    /// A piece of a COPY stream.
    CopyData(Bytes),
    /// Regular end of a COPY stream.
    CopyDone,
    /// A statement was prepared.
    ParseComplete,
    /// A portal was made.
    BindComplete,
    /// A statement or portal was forgotten.
    CloseComplete,
    /// The row limit of an `Execute` was reached.
    PortalSuspended,
    /// The statement returns no rows.
    NoData,
    /// Types of a statement's parameters.
    ParameterDescription(Vec<u32>),
    /// The server does not know the minor version or some options asked for.
    NegotiateProtocolVersion,
}

impl BackendMessage {
    /// Parses the body of a message of type `tag`.
    pub fn parse(tag: u8, body: Bytes) -> Result<Self, ProtocolError> {
        let mut input = Input::new(name(tag)?, body);
        let message = match tag {
            b'd' => BackendMessage::CopyData(input.rest()),
            b'D' => BackendMessage::DataRow(row::parse_values(&mut input)?),
            b'R' => BackendMessage::Authentication(Authentication::parse(&mut input)?),
            b'S' => BackendMessage::ParameterStatus {
                name: input.lossy_string()?,
                value: input.lossy_string()?,
            },
            b'K' => BackendMessage::BackendKeyData {
                process_id: input.i32()?,
                secret_key: input.i32()?,
            },
            b'Z' => BackendMessage::ReadyForQuery(parse_status(&mut input)?),
            b'T' => BackendMessage::RowDescription(row::parse_columns(&mut input)?),
            b'C' => BackendMessage::CommandComplete(input.lossy_string()?),
            b'E' => BackendMessage::ErrorResponse(Notice::parse(&mut input)?),
            b'N' => BackendMessage::NoticeResponse(Notice::parse(&mut input)?),
            b'A' => BackendMessage::NotificationResponse {
                process_id: input.i32()?,
                channel: input.lossy_string()?,
                payload: input.lossy_string()?,
            },
            b'G' => BackendMessage::CopyInResponse(parse_copy_format(&mut input)?),
            b'H' => BackendMessage::CopyOutResponse(parse_copy_format(&mut input)?),
            b'W' => BackendMessage::CopyBothResponse(parse_copy_format(&mut input)?),
            b't' => BackendMessage::ParameterDescription(parse_parameter_types(&mut input)?),
            b'v' => {
                input.rest();
                BackendMessage::NegotiateProtocolVersion
            }
            _ => without_body(tag).ok_or(ProtocolError::UnknownType(tag))?,
        };
        input.done(message)
    }

    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            BackendMessage::CopyData(data) => put(out, b'd', |out| out.put_slice(data)),
            BackendMessage::DataRow(values) => put(out, b'D', |out| row::put_values(out, values)),
            BackendMessage::Authentication(step) => put(out, b'R', |out| step.encode(out)),
            BackendMessage::ParameterStatus { name, value } => put(out, b'S', |out| {
                put_string(out, name);
                put_string(out, value);
            }),
            BackendMessage::BackendKeyData {
                process_id,
                secret_key,
            } => put(out, b'K', |out| {
                out.put_i32(*process_id);
                out.put_i32(*secret_key);
            }),
            BackendMessage::ReadyForQuery(status) => put(out, b'Z', |out| out.put_u8(status_byte(*status))),
            BackendMessage::RowDescription(columns) => put(out, b'T', |out| row::put_columns(out, columns)),
            BackendMessage::CommandComplete(tag) => put(out, b'C', |out| put_string(out, tag)),
            BackendMessage::ErrorResponse(notice) => put(out, b'E', |out| notice.encode(out)),
            BackendMessage::NoticeResponse(notice) => put(out, b'N', |out| notice.encode(out)),
            BackendMessage::NotificationResponse {
                process_id,
                channel,
                payload,
            } => put(out, b'A', |out| {
                out.put_i32(*process_id);
                put_string(out, channel);
                put_string(out, payload);
            }),
            BackendMessage::CopyInResponse(format) => put(out, b'G', |out| put_copy_format(out, *format)),
            BackendMessage::CopyOutResponse(format) => put(out, b'H', |out| put_copy_format(out, *format)),
            BackendMessage::CopyBothResponse(format) => put(out, b'W', |out| put_copy_format(out, *format)),
            BackendMessage::ParameterDescription(types) => put(out, b't', |out| {
                out.put_u16(u16::try_from(types.len()).expect("a statement has few parameters"));
                types.iter().for_each(|oid| out.put_u32(*oid));
            }),
            BackendMessage::NegotiateProtocolVersion => put(out, b'v', |out| out.put_u64(0)),
            BackendMessage::EmptyQueryResponse => put(out, b'I', |_| {}),
            BackendMessage::CopyDone => put(out, b'c', |_| {}),
            BackendMessage::ParseComplete => put(out, b'1', |_| {}),
            BackendMessage::BindComplete => put(out, b'2', |_| {}),
            BackendMessage::CloseComplete => put(out, b'3', |_| {}),
            BackendMessage::PortalSuspended => put(out, b's', |_| {}),
            BackendMessage::NoData => put(out, b'n', |_| {}),
        }
    }
}

fn name(tag: u8) -> Result<&'static str, ProtocolError> {
    Ok(match tag {
        b'R' => "Authentication",
        b'S' => "ParameterStatus",
        b'K' => "BackendKeyData",
        b'Z' => "ReadyForQuery",
        b'T' => "RowDescription",
        b'D' => "DataRow",
        b'C' => "CommandComplete",
        b'I' => "EmptyQueryResponse",
        b'E' => "ErrorResponse",
        b'N' => "NoticeResponse",
        b'A' => "NotificationResponse",
        b'G' => "CopyInResponse",
        b'H' => "CopyOutResponse",
        b'W' => "CopyBothResponse",
        b'd' => "CopyData",
        b'c' => "CopyDone",
        b'1' => "ParseComplete",
        b'2' => "BindComplete",
        b'3' => "CloseComplete",
        b's' => "PortalSuspended",
        b'n' => "NoData",
        b't' => "ParameterDescription",
        b'v' => "NegotiateProtocolVersion",
        _ => return Err(ProtocolError::UnknownType(tag)),
    })
}

fn without_body(tag: u8) -> Option<BackendMessage> {
    Some(match tag {
        b'I' => BackendMessage::EmptyQueryResponse,
        b'c' => BackendMessage::CopyDone,
        b'1' => BackendMessage::ParseComplete,
        b'2' => BackendMessage::BindComplete,
        b'3' => BackendMessage::CloseComplete,
        b's' => BackendMessage::PortalSuspended,
        b'n' => BackendMessage::NoData,
        _ => return None,
    })
}

fn parse_status(input: &mut Input) -> Result<TransactionStatus, ProtocolError> {
    match input.u8()? {
        b'I' => Ok(TransactionStatus::Idle),
        b'T' => Ok(TransactionStatus::InTransaction),
        b'E' => Ok(TransactionStatus::Failed),
        _ => Err(input.malformed("unknown transaction status")),
    }
}

fn status_byte(status: TransactionStatus) -> u8 {
    match status {
        TransactionStatus::Idle => b'I',
        TransactionStatus::InTransaction => b'T',
        TransactionStatus::Failed => b'E',
    }
}

fn parse_copy_format(input: &mut Input) -> Result<CopyFormat, ProtocolError> {
    let format = input.u8()?;
    let columns = input.u16()?;
    input.bytes(2 * usize::from(columns))?;
    Ok(CopyFormat { format, columns })
}

fn put_copy_format(out: &mut BytesMut, format: CopyFormat) {
    out.put_u8(format.format);
    out.put_u16(format.columns);
    for _ in 0..format.columns {
        out.put_u16(format.format.into());
    }
}

fn parse_parameter_types(input: &mut Input) -> Result<Vec<u32>, ProtocolError> {
    let count = input.u16()?;
    (0..count).map(|_| input.u32()).collect()
}

#[cfg(test)]
mod tests;
