//! The client's side of authentication.

use bytes::{BufMut, BytesMut};
use postgres_backend::Framed;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use pq_proto::backend::Authentication;
use pq_proto::{BackendMessage, FrontendMessage};

use crate::config::{Config, Secret};
use crate::{Error, Stream};

/// Goes on until the server says `AuthenticationOk`.
pub(crate) async fn authenticate(framed: &mut Framed<Stream>, config: &Config) -> Result<(), Error> {
    loop {
        match step(framed).await? {
            Authentication::Ok => return Ok(()),
            Authentication::CleartextPassword => {
                let password = password(config)?.expose().as_bytes().to_vec();
                send_password(framed, password).await?;
            }
            Authentication::Md5Password(salt) => {
                let password = password(config)?.expose().as_bytes();
                let hash = md5_hash(config.user.as_bytes(), password, salt);
                send_password(framed, hash.into_bytes()).await?;
            }
            Authentication::Sasl(mechanisms) => {
                if !mechanisms.iter().any(|name| name == SCRAM_SHA_256) {
                    return Err(failed(format!("no known mechanism among {mechanisms:?}")));
                }
                scram(framed, password(config)?).await?;
            }
            other => return Err(failed(format!("the server asks for {other:?}"))),
        }
    }
}

async fn scram(framed: &mut Framed<Stream>, password: &Secret) -> Result<(), Error> {
    let refused = |error: std::io::Error| failed(format!("SCRAM: {error}"));
    let mut scram = ScramSha256::new(password.expose().as_bytes(), ChannelBinding::unsupported());
    let mut first = BytesMut::new();
    first.put_slice(SCRAM_SHA_256.as_bytes());
    first.put_u8(0);
    let message = scram.message();
    let len = u32::try_from(message.len()).expect("the first SCRAM message is short");
    first.put_u32(len);
    first.put_slice(message);
    send(framed, first).await?;
    let Authentication::SaslContinue(challenge) = step(framed).await? else {
        return Err(failed("the server ended SCRAM early".to_owned()));
    };
    scram.update(&challenge).map_err(refused)?;
    send(framed, scram.message().into()).await?;
    // The server's proof that it knows the password too.
    let Authentication::SaslFinal(proof) = step(framed).await? else {
        return Err(failed("the server did not authenticate itself".to_owned()));
    };
    scram.finish(&proof).map_err(refused)
}

async fn step(framed: &mut Framed<Stream>) -> Result<Authentication, Error> {
    loop {
        match framed.read_message().await?.ok_or(Error::Closed)? {
            BackendMessage::Authentication(step) => return Ok(step),
            BackendMessage::ErrorResponse(notice) => return Err(Error::Server(notice)),
            BackendMessage::NoticeResponse(_) | BackendMessage::NegotiateProtocolVersion => {}
            _ => return Err(Error::UnexpectedAnswer("not a step of authentication")),
        }
    }
}

fn password(config: &Config) -> Result<&Secret, Error> {
    let password = config.password.as_ref();
    password.ok_or_else(|| failed("the server wants a password and none is configured".to_owned()))
}

async fn send_password(framed: &mut Framed<Stream>, mut password: Vec<u8>) -> Result<(), Error> {
    password.push(0);
    send(framed, password.as_slice().into()).await
}

async fn send(framed: &mut Framed<Stream>, raw: BytesMut) -> Result<(), Error> {
    framed
        .writer()
        .put_frontend(&FrontendMessage::Password(raw.freeze()));
    Ok(framed.flush().await?)
}

fn failed(why: String) -> Error {
    Error::Authentication(why)
}
