//! The envelope of every message after start-up: type byte, then a `u32` length (big-endian,
//! counting itself but not the type byte), then the body.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::ProtocolError;

/// Bytes of type and length in front of a body.
pub const HEADER_LEN: usize = 5;

/// Longest message (value of the length field) that our servers and clients accept unless they set
/// another limit. WAL comes in pieces of 128 KiB; the largest legitimate message is a query text.
pub const MESSAGE_BYTES_MAX: u32 = 16 * 1024 * 1024;

/// What the head of a buffer holds.
#[derive(Debug, Clone, Copy, Eq, PartialEq)]
pub enum Head {
    /// A whole message is there: [`take`] may be called.
    Complete,
    /// At least this many more bytes are needed to make any progress.
    Missing(usize),
}

/// Looks at the head of `buffer` without consuming it. `max` bounds the length field.
pub fn peek(buffer: &[u8], max: u32) -> Result<Head, ProtocolError> {
    let Some(header) = buffer.first_chunk::<HEADER_LEN>() else {
        return Ok(Head::Missing(HEADER_LEN - buffer.len()));
    };
    let [_, length @ ..] = *header;
    let len = u32::from_be_bytes(length);
    if !(4..=max).contains(&len) {
        return Err(ProtocolError::Length {
            what: "message",
            len,
            min: 4,
            max,
        });
    }
    let total = len as usize + 1;
    Ok(match total.checked_sub(buffer.len()) {
        None | Some(0) => Head::Complete,
        Some(missing) => Head::Missing(missing),
    })
}

/// Splits the message off the head of `buffer`: its type byte and its body, which shares memory
/// with the buffer. Only after [`peek`] said [`Head::Complete`].
pub fn take(buffer: &mut BytesMut) -> (u8, Bytes) {
    assert!(buffer.len() >= HEADER_LEN, "peek said that a message is there");
    let tag = buffer.get_u8();
    let len = buffer.get_u32() as usize;
    assert!(
        len >= 4 && buffer.len() >= len - 4,
        "peek said that the message is whole"
    );
    (tag, buffer.split_to(len - 4).freeze())
}

/// Appends a message whose body is what `body` writes.
pub fn put(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    put_sized(out, body);
}

/// Appends a `u32` length that counts itself, and what `body` writes.
pub(crate) fn put_sized(out: &mut BytesMut, body: impl FnOnce(&mut BytesMut)) {
    let start = out.len();
    out.put_u32(0);
    body(out);
    let len = i32::try_from(out.len() - start).expect("our own messages are below 2 GiB");
    out[start..start + 4].copy_from_slice(&len.to_be_bytes());
}

/// Appends a `CopyData` message whose payload is what `payload` writes. Same in both directions.
pub fn put_copy_data(out: &mut BytesMut, payload: impl FnOnce(&mut BytesMut)) {
    put(out, b'd', payload);
}

/// Appends `text` and its terminating NUL.
///
/// A NUL inside the text would end it early and corrupt the message: it is written as `?`.
pub(crate) fn put_string(out: &mut BytesMut, text: &str) {
    if text.contains('\0') {
        out.put_slice(text.replace('\0', "?").as_bytes());
    } else {
        out.put_slice(text.as_bytes());
    }
    out.put_u8(0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peek_tells_what_is_missing() {
        let mut whole = BytesMut::new();
        put(&mut whole, b'Q', |out| put_string(out, "select 1"));
        for len in 0..HEADER_LEN {
            assert_eq!(peek(&whole[..len], 100), Ok(Head::Missing(HEADER_LEN - len)));
        }
        for len in HEADER_LEN..whole.len() {
            assert_eq!(peek(&whole[..len], 100), Ok(Head::Missing(whole.len() - len)));
        }
        assert_eq!(peek(&whole, 100), Ok(Head::Complete));
        assert_eq!(take(&mut whole), (b'Q', Bytes::from_static(b"select 1\0")));
        assert!(whole.is_empty());
    }

    #[test]
    fn impossible_lengths_are_refused_before_anything_is_read() {
        for len in [0, 1, 3, 101, u32::MAX] {
            let mut raw = vec![b'Q'];
            raw.extend(len.to_be_bytes());
            assert!(
                matches!(peek(&raw, 100), Err(ProtocolError::Length { .. })),
                "{len}"
            );
        }
    }
}
