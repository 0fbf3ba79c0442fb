//! Checked reading of message fields.

use bytes::{Buf, Bytes};

use crate::ProtocolError;

/// The unread rest of one message, with the message's name for errors.
pub(crate) struct Input {
    what: &'static str,
    rest: Bytes,
}

impl Input {
    pub(crate) fn new(what: &'static str, body: Bytes) -> Self {
        Input { what, rest: body }
    }

    fn need(&self, len: usize) -> Result<(), ProtocolError> {
        if self.rest.len() < len {
            return Err(ProtocolError::Truncated(self.what));
        }
        Ok(())
    }

    pub(crate) fn malformed(&self, why: &'static str) -> ProtocolError {
        ProtocolError::Malformed(self.what, why)
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn u8(&mut self) -> Result<u8, ProtocolError> {
        self.need(1)?;
        Ok(self.rest.get_u8())
    }

    pub(crate) fn u16(&mut self) -> Result<u16, ProtocolError> {
        self.need(2)?;
        Ok(self.rest.get_u16())
    }

    pub(crate) fn u32(&mut self) -> Result<u32, ProtocolError> {
        self.need(4)?;
        Ok(self.rest.get_u32())
    }

    pub(crate) fn i32(&mut self) -> Result<i32, ProtocolError> {
        self.u32().map(|raw| raw as i32)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, ProtocolError> {
        self.need(8)?;
        Ok(self.rest.get_u64())
    }

    pub(crate) fn i64(&mut self) -> Result<i64, ProtocolError> {
        self.u64().map(|raw| raw as i64)
    }

    pub(crate) fn bytes(&mut self, len: usize) -> Result<Bytes, ProtocolError> {
        self.need(len)?;
        Ok(self.rest.split_to(len))
    }

    /// Everything that is left.
    pub(crate) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    /// A NUL-terminated string that must be UTF-8.
    pub(crate) fn string(&mut self) -> Result<String, ProtocolError> {
        let raw = self.raw_string()?;
        String::from_utf8(raw.to_vec()).map_err(|_| self.malformed("text is not UTF-8"))
    }

    /// A NUL-terminated string whose bytes that are not UTF-8 are replaced: for text from servers
    /// that may use another encoding before the client has set its own.
    pub(crate) fn lossy_string(&mut self) -> Result<String, ProtocolError> {
        Ok(String::from_utf8_lossy(&self.raw_string()?).into_owned())
    }

    fn raw_string(&mut self) -> Result<Bytes, ProtocolError> {
        let nul = self.rest.iter().position(|&byte| byte == 0);
        let nul = nul.ok_or(ProtocolError::Truncated(self.what))?;
        let raw = self.rest.split_to(nul);
        self.rest.advance(1);
        Ok(raw)
    }

    /// Checks that everything was read and gives `message` back.
    pub(crate) fn done<T>(self, message: T) -> Result<T, ProtocolError> {
        if self.rest.is_empty() {
            Ok(message)
        } else {
            Err(ProtocolError::TrailingBytes(self.what))
        }
    }
}
