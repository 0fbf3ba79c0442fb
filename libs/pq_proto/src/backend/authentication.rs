//! Steps of authentication, told apart by a number.

use bytes::{BufMut, Bytes, BytesMut};

use crate::ProtocolError;
use crate::frame::put_string;
use crate::input::Input;

/// A step of authentication as the server sees it.
#[derive(Debug, Clone, Eq, PartialEq)]
pub enum Authentication {
    /// The client is who it says it is.
    Ok,
    /// The server wants the password as it is.
    CleartextPassword,
    /// The server wants the password hashed with MD5 and this salt.
    Md5Password([u8; 4]),
    /// The server offers these SASL mechanisms.
    Sasl(Vec<String>),
    /// The server's SASL challenge.
    SaslContinue(Bytes),
    /// The server's SASL outcome.
    SaslFinal(Bytes),
    /// A method that is not known here.
    Other(u32),
}

impl Authentication {
    pub(super) fn parse(input: &mut Input) -> Result<Self, ProtocolError> {
        Ok(match input.u32()? {
            0 => Authentication::Ok,
            3 => Authentication::CleartextPassword,
            5 => {
                let salt = input.u32()?;
                Authentication::Md5Password(salt.to_be_bytes())
            }
            10 => {
                let mut mechanisms = Vec::new();
                loop {
                    let mechanism = input.lossy_string()?;
                    if mechanism.is_empty() {
                        break Authentication::Sasl(mechanisms);
                    }
                    mechanisms.push(mechanism);
                }
            }
            11 => Authentication::SaslContinue(input.rest()),
            12 => Authentication::SaslFinal(input.rest()),
            other => {
                input.rest();
                Authentication::Other(other)
            }
        })
    }

    pub(super) fn encode(&self, out: &mut BytesMut) {
        match self {
            Authentication::Ok => out.put_u32(0),
            Authentication::CleartextPassword => out.put_u32(3),
            Authentication::Md5Password(salt) => {
                out.put_u32(5);
                out.put_slice(salt);
            }
            Authentication::Sasl(mechanisms) => {
                out.put_u32(10);
                mechanisms.iter().for_each(|mechanism| put_string(out, mechanism));
                out.put_u8(0);
            }
            Authentication::SaslContinue(data) => {
                out.put_u32(11);
                out.put_slice(data);
            }
            Authentication::SaslFinal(data) => {
                out.put_u32(12);
                out.put_slice(data);
            }
            Authentication::Other(number) => out.put_u32(*number),
        }
    }
}
