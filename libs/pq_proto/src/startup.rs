//! The first packet of a connection: no type byte, a length, then a 4-byte code.

use bytes::{BufMut, Bytes, BytesMut};

use crate::ProtocolError;
use crate::frame::{put_sized, put_string};
use crate::input::Input;

/// Greatest length of a first packet, the length field included.
pub const STARTUP_BYTES_MAX: u32 = 10000;
/// Protocol version 3.0, the only one spoken here.
pub const PROTOCOL_VERSION: u32 = 3 << 16;

const CANCEL_CODE: u32 = 1234 << 16 | 5678;
const SSL_CODE: u32 = 1234 << 16 | 5679;
const GSSENC_CODE: u32 = 1234 << 16 | 5680;

/// What a client may open a connection with.
#[derive(Debug, Clone, Eq, PartialEq)]
pub enum StartupPacket {
    /// Wants TLS; answered with one byte, then another first packet follows.
    SslRequest,
    /// Wants GSSAPI encryption; as above.
    GssEncRequest,
    /// Asks to cancel what another connection does.
    CancelRequest {
        /// Process id from `BackendKeyData`.
        process_id: i32,
        /// Secret from `BackendKeyData`.
        secret_key: i32,
    },
    /// Start of a session.
    Startup(StartupParameters),
}

/// Parameters of a session in the order given. A later one replaces an earlier one of its name.
#[derive(Debug, Clone, Default, Eq, PartialEq)]
pub struct StartupParameters(Vec<(String, String)>);

impl StartupParameters {
    /// Value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().rev().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    }

    /// Adds a parameter.
    pub fn push(&mut self, name: &str, value: &str) {
        self.0.push((name.to_owned(), value.to_owned()));
    }

    /// The words of the `options` parameter. They are separated by unescaped blanks; a backslash
    /// makes the next character part of a word.
    pub fn options(&self) -> Vec<String> {
        split_options(self.get("options").unwrap_or(""))
    }
}

/// Splits the value of an `options` parameter into its words, see [`StartupParameters::options`].
pub fn split_options(options: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut in_word = false;
    let mut escaped = false;
    for character in options.chars() {
        if !escaped && character == '\\' {
            escaped = true;
            in_word = true;
        } else if !escaped && character.is_ascii_whitespace() {
            if in_word {
                words.push(std::mem::take(&mut word));
            }
            in_word = false;
        } else {
            word.push(character);
            escaped = false;
            in_word = true;
        }
    }
    if in_word {
        words.push(word);
    }
    words
}

impl StartupPacket {
    /// Checks the length field of a first packet and returns the length of what follows it.
    pub fn body_len(length: [u8; 4]) -> Result<usize, ProtocolError> {
        let len = u32::from_be_bytes(length);
        // The code is part of every packet, so 8 would be the least useful length; one below it is
        // reported as truncated by `parse`.
        if !(4..=STARTUP_BYTES_MAX).contains(&len) {
            return Err(ProtocolError::Length {
                what: "startup packet",
                len,
                min: 4,
                max: STARTUP_BYTES_MAX,
            });
        }
        Ok(len as usize - 4)
    }

    /// Parses what follows the length field. The version number of a session is not checked.
    pub fn parse(body: Bytes) -> Result<Self, ProtocolError> {
        let mut input = Input::new("startup", body);
        let packet = match input.u32()? {
            SSL_CODE => StartupPacket::SslRequest,
            GSSENC_CODE => StartupPacket::GssEncRequest,
            CANCEL_CODE => StartupPacket::CancelRequest {
                process_id: input.i32()?,
                secret_key: input.i32()?,
            },
            _ => {
                let mut parameters = StartupParameters::default();
                loop {
                    let name = input.string()?;
                    if name.is_empty() {
                        break;
                    }
                    let value = input.string()?;
                    parameters.0.push((name, value));
                }
                StartupPacket::Startup(parameters)
            }
        };
        input.done(packet)
    }

    /// Appends the packet, length included.
    pub fn encode(&self, out: &mut BytesMut) {
        put_sized(out, |out| match self {
            StartupPacket::SslRequest => out.put_u32(SSL_CODE),
            StartupPacket::GssEncRequest => out.put_u32(GSSENC_CODE),
            StartupPacket::CancelRequest {
                process_id,
                secret_key,
            } => {
                out.put_u32(CANCEL_CODE);
                out.put_i32(*process_id);
                out.put_i32(*secret_key);
            }
            StartupPacket::Startup(parameters) => {
                out.put_u32(PROTOCOL_VERSION);
                for (name, value) in &parameters.0 {
                    put_string(out, name);
                    put_string(out, value);
                }
                out.put_u8(0);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(packet: StartupPacket) {
        let mut out = BytesMut::new();
        packet.encode(&mut out);
        let length = *out.first_chunk::<4>().unwrap();
        let body = out.freeze().slice(4..);
        assert_eq!(StartupPacket::body_len(length), Ok(body.len()));
        assert_eq!(StartupPacket::parse(body.clone()), Ok(packet));
        for len in 0..body.len() {
            assert!(StartupPacket::parse(body.slice(..len)).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn round_trips() {
        let mut parameters = StartupParameters::default();
        parameters.push("user", "cloud_admin");
        parameters.push("options", "-c timeline_id=11 tenant_id=22");
        round_trip(StartupPacket::Startup(parameters));
        round_trip(StartupPacket::SslRequest);
        round_trip(StartupPacket::GssEncRequest);
        round_trip(StartupPacket::CancelRequest {
            process_id: 7,
            secret_key: -1,
        });
    }

    #[test]
    fn lengths() {
        for (len, ok) in [
            (0u32, false),
            (3, false),
            (4, true),
            (10000, true),
            (10001, false),
            (u32::MAX, false),
        ] {
            assert_eq!(StartupPacket::body_len(len.to_be_bytes()).is_ok(), ok, "{len}");
        }
    }

    #[test]
    fn option_words() {
        let check = |options: &str, words: &[&str]| assert_eq!(split_options(options), words, "{options}");
        check("", &[]);
        check("  ", &[]);
        check("-c a=b  tenant_id=1 ", &["-c", "a=b", "tenant_id=1"]);
        check(r"one\ word back\\slash", &["one word", r"back\slash"]);
    }
}
