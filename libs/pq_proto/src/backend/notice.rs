//! Fields of an error or notice.

use std::fmt;

use bytes::{BufMut, BytesMut};

use crate::ProtocolError;
use crate::frame::put_string;
use crate::input::Input;

/// An error or notice of a server. Fields not listed are dropped when received.
#[derive(Debug, Clone, Default, Eq, PartialEq)]
pub struct Notice {
    /// `ERROR`, `FATAL`, `NOTICE`, ... (field `S`).
    pub severity: String,
    /// SQLSTATE, five characters (field `C`).
    pub code: String,
    /// Primary message (field `M`).
    pub message: String,
    /// Detail (field `D`).
    pub detail: Option<String>,
    /// Hint (field `H`).
    pub hint: Option<String>,
}

impl Notice {
    /// An error with SQLSTATE `code`.
    pub fn error(code: &str, message: impl Into<String>) -> Self {
        Notice {
            severity: "ERROR".to_owned(),
            code: code.to_owned(),
            message: message.into(),
            ..Notice::default()
        }
    }

    pub(super) fn parse(input: &mut Input) -> Result<Self, ProtocolError> {
        let mut notice = Notice::default();
        loop {
            let field = input.u8()?;
            if field == 0 {
                return Ok(notice);
            }
            let value = input.lossy_string()?;
            match field {
                b'S' => notice.severity = value,
                b'C' => notice.code = value,
                b'M' => notice.message = value,
                b'D' => notice.detail = Some(value),
                b'H' => notice.hint = Some(value),
                _ => {}
            }
        }
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        let fields = [
            (b'S', Some(&self.severity)),
            (b'C', Some(&self.code)),
            (b'M', Some(&self.message)),
            (b'D', self.detail.as_ref()),
            (b'H', self.hint.as_ref()),
        ];
        for (field, value) in fields {
            if let Some(value) = value {
                out.put_u8(field);
                put_string(out, value);
            }
        }
        out.put_u8(0);
    }
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} ({})", self.severity, self.message, self.code)?;
        if let Some(detail) = &self.detail {
            write!(f, "; {detail}")?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}
