//! Messages a client sends after start-up.

use bytes::{BufMut, Bytes, BytesMut};

use crate::ProtocolError;
use crate::frame::{put, put_string};
use crate::input::Input;

/// What a `Describe` or `Close` is about.
#[derive(Debug, Clone, Copy, Eq, PartialEq)]
pub enum Target {
    /// A prepared statement.
    Statement,
    /// A portal.
    Portal,
}

impl Target {
    fn from_byte(byte: u8, input: &Input) -> Result<Self, ProtocolError> {
        match byte {
            b'S' => Ok(Target::Statement),
            b'P' => Ok(Target::Portal),
            _ => Err(input.malformed("neither statement nor portal")),
        }
    }

    fn byte(self) -> u8 {
        match self {
            Target::Statement => b'S',
            Target::Portal => b'P',
        }
    }
}

/// A message from a client. Statements with parameters are not supported and refused as malformed.
#[derive(Debug, Clone, Eq, PartialEq)]
pub enum FrontendMessage {
    /// Simple query.
    Query(String),
    /// Prepare a statement.
    Parse {
        /// Name of the statement, empty for the unnamed one.
        name: String,
        /// Its text.
        query: String,
    },
    /// Ask for the shape of a statement or portal.
    Describe {
        /// Which of the two.
        target: Target,
        /// Its name.
        name: String,
    },
    /// Make a portal of a statement.
    Bind {
        /// Name of the portal.
        portal: String,
        /// Name of the statement.
        statement: String,
    },
    /// Run a portal.
    Execute {
        /// Name of the portal.
        portal: String,
        /// Most rows to return, 0 for all.
        max_rows: u32,
    },
    /// Forget a statement or portal.
    Close {
        /// Which of the two.
        target: Target,
        /// Its name.
        name: String,
    },
    /// End of an extended query.
    Sync,
    /// Asks the server to send what it has.
    Flush,
    /// End of the session.
    Terminate,
    /// A piece of a COPY stream.
    CopyData(Bytes),
    /// Regular end of a COPY stream.
    CopyDone,
    /// End of a COPY stream with the client's reason for giving up.
    CopyFail(String),
    /// Password, or one of the SASL messages: the reader knows which it asked for.
    Password(Bytes),
}

impl FrontendMessage {
    /// Parses the body of a message of type `tag`.
    pub fn parse(tag: u8, body: Bytes) -> Result<Self, ProtocolError> {
        let mut input = Input::new(name(tag)?, body);
        let message = match tag {
            b'd' => FrontendMessage::CopyData(input.rest()),
            b'Q' => FrontendMessage::Query(input.string()?),
            b'P' => parse_parse(&mut input)?,
            b'B' => parse_bind(&mut input)?,
            b'D' => FrontendMessage::Describe {
                target: Target::from_byte(input.u8()?, &input)?,
                name: input.string()?,
            },
            b'E' => FrontendMessage::Execute {
                portal: input.string()?,
                max_rows: input.u32()?,
            },
            b'C' => FrontendMessage::Close {
                target: Target::from_byte(input.u8()?, &input)?,
                name: input.string()?,
            },
            b'S' => FrontendMessage::Sync,
            b'H' => FrontendMessage::Flush,
            b'X' => FrontendMessage::Terminate,
            b'c' => FrontendMessage::CopyDone,
            b'f' => FrontendMessage::CopyFail(input.lossy_string()?),
            _ => FrontendMessage::Password(input.rest()),
        };
        input.done(message)
    }

    /// Appends the message.
    pub fn encode(&self, out: &mut BytesMut) {
        match self {
            FrontendMessage::Query(text) => put(out, b'Q', |out| put_string(out, text)),
            FrontendMessage::Parse { name, query } => put(out, b'P', |out| {
                put_string(out, name);
                put_string(out, query);
                out.put_u16(0);
            }),
            FrontendMessage::Describe { target, name } => put(out, b'D', |out| {
                out.put_u8(target.byte());
                put_string(out, name);
            }),
            FrontendMessage::Bind { portal, statement } => put(out, b'B', |out| {
                put_string(out, portal);
                put_string(out, statement);
                out.put_slice(&[0; 6]);
            }),
            FrontendMessage::Execute { portal, max_rows } => put(out, b'E', |out| {
                put_string(out, portal);
                out.put_u32(*max_rows);
            }),
            FrontendMessage::Close { target, name } => put(out, b'C', |out| {
                out.put_u8(target.byte());
                put_string(out, name);
            }),
            FrontendMessage::Sync => put(out, b'S', |_| {}),
            FrontendMessage::Flush => put(out, b'H', |_| {}),
            FrontendMessage::Terminate => put(out, b'X', |_| {}),
            FrontendMessage::CopyData(data) => put(out, b'd', |out| out.put_slice(data)),
            FrontendMessage::CopyDone => put(out, b'c', |_| {}),
            FrontendMessage::CopyFail(reason) => put(out, b'f', |out| put_string(out, reason)),
            FrontendMessage::Password(raw) => put(out, b'p', |out| out.put_slice(raw)),
        }
    }

    /// Name of the message in the protocol's documentation.
    pub fn name(&self) -> &'static str {
        match self {
            FrontendMessage::Query(_) => "Query",
            FrontendMessage::Parse { .. } => "Parse",
            FrontendMessage::Describe { .. } => "Describe",
            FrontendMessage::Bind { .. } => "Bind",
            FrontendMessage::Execute { .. } => "Execute",
            FrontendMessage::Close { .. } => "Close",
            FrontendMessage::Sync => "Sync",
            FrontendMessage::Flush => "Flush",
            FrontendMessage::Terminate => "Terminate",
            FrontendMessage::CopyData(_) => "CopyData",
            FrontendMessage::CopyDone => "CopyDone",
            FrontendMessage::CopyFail(_) => "CopyFail",
            FrontendMessage::Password(_) => "PasswordMessage",
        }
    }
}

fn name(tag: u8) -> Result<&'static str, ProtocolError> {
    Ok(match tag {
        b'Q' => "Query",
        b'P' => "Parse",
        b'D' => "Describe",
        b'B' => "Bind",
        b'E' => "Execute",
        b'C' => "Close",
        b'S' => "Sync",
        b'H' => "Flush",
        b'X' => "Terminate",
        b'd' => "CopyData",
        b'c' => "CopyDone",
        b'f' => "CopyFail",
        b'p' => "PasswordMessage",
        _ => return Err(ProtocolError::UnknownType(tag)),
    })
}

fn parse_parse(input: &mut Input) -> Result<FrontendMessage, ProtocolError> {
    let name = input.string()?;
    let query = input.string()?;
    if input.u16()? != 0 {
        return Err(input.malformed("statement parameters are not supported"));
    }
    Ok(FrontendMessage::Parse { name, query })
}

fn parse_bind(input: &mut Input) -> Result<FrontendMessage, ProtocolError> {
    let portal = input.string()?;
    let statement = input.string()?;
    let parameter_formats = input.u16()?;
    input.bytes(2 * usize::from(parameter_formats))?;
    if input.u16()? != 0 {
        return Err(input.malformed("statement parameters are not supported"));
    }
    // All our columns are sent as text, whatever format the client would like.
    let result_formats = input.u16()?;
    input.bytes(2 * usize::from(result_formats))?;
    Ok(FrontendMessage::Bind { portal, statement })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::frame;

    fn messages() -> impl Strategy<Value = FrontendMessage> {
        let text = || "[a-z/é ]{0,20}";
        let raw = || proptest::collection::vec(any::<u8>(), 0..100).prop_map(Bytes::from);
        let target = || prop_oneof![Just(Target::Statement), Just(Target::Portal)];
        prop_oneof![
            text().prop_map(FrontendMessage::Query),
            (text(), text()).prop_map(|(name, query)| FrontendMessage::Parse { name, query }),
            (target(), text()).prop_map(|(target, name)| FrontendMessage::Describe { target, name }),
            (text(), text()).prop_map(|(portal, statement)| FrontendMessage::Bind { portal, statement }),
            (text(), any::<u32>())
                .prop_map(|(portal, max_rows)| FrontendMessage::Execute { portal, max_rows }),
            (target(), text()).prop_map(|(target, name)| FrontendMessage::Close { target, name }),
            Just(FrontendMessage::Sync),
            Just(FrontendMessage::Flush),
            Just(FrontendMessage::Terminate),
            raw().prop_map(FrontendMessage::CopyData),
            Just(FrontendMessage::CopyDone),
            text().prop_map(FrontendMessage::CopyFail),
            raw().prop_map(FrontendMessage::Password),
        ]
    }

    fn open_ended(message: &FrontendMessage) -> bool {
        matches!(
            message,
            FrontendMessage::CopyData(_) | FrontendMessage::Password(_)
        )
    }

    proptest! {
        #[test]
        fn round_trip_and_every_truncation(message in messages()) {
            let mut out = BytesMut::new();
            message.encode(&mut out);
            let (tag, body) = frame::take(&mut out);
            prop_assert!(out.is_empty());
            prop_assert_eq!(FrontendMessage::parse(tag, body.clone()), Ok(message.clone()));
            if !open_ended(&message) {
                for len in 0..body.len() {
                    prop_assert!(FrontendMessage::parse(tag, body.slice(..len)).is_err());
                }
            }
        }

        #[test]
        fn random_bytes_never_panic(tag in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = FrontendMessage::parse(tag, Bytes::from(body));
        }
    }

    #[test]
    fn parameters_are_refused() {
        let parse = Bytes::from_static(b"s\0select $1\0\x00\x01\x00\x00\x00\x17");
        assert!(matches!(
            FrontendMessage::parse(b'P', parse),
            Err(ProtocolError::Malformed("Parse", _))
        ));
    }
}
