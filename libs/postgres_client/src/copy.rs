//! COPY streams as a client sees them.

use bytes::{Bytes, BytesMut};
use postgres_backend::framed::{FramedReader, FramedWriter};
use pq_proto::{BackendMessage, FrontendMessage};

use crate::client::Client;
use crate::{Error, Stream};

/// A stream of data from the server.
#[derive(Debug)]
pub struct CopyOut<'a> {
    client: &'a mut Client,
    ended: bool,
}

impl<'a> CopyOut<'a> {
    pub(crate) fn new(client: &'a mut Client) -> Self {
        CopyOut { client, ended: false }
    }

    /// Next piece, `None` at the end of a stream that ended well. Cancel-safe.
    ///
    /// An error of the server may come after any number of pieces.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.ended {
            match self.client.next_message().await? {
                BackendMessage::CopyData(data) => return Ok(Some(data)),
                BackendMessage::CopyDone | BackendMessage::CommandComplete(_) => {}
                BackendMessage::ReadyForQuery(_) => self.ended = true,
                BackendMessage::ErrorResponse(notice) => {
                    self.client.read_to_ready().await?;
                    self.ended = true;
                    return Err(Error::Server(notice));
                }
                _ => return Err(Error::UnexpectedAnswer("not part of a COPY stream")),
            }
        }
        Ok(None)
    }
}

/// A stream of data to the server. It must be ended with [`CopyIn::finish`] or [`CopyIn::abort`];
/// otherwise the client stays busy.
#[derive(Debug)]
pub struct CopyIn<'a> {
    client: &'a mut Client,
}

impl<'a> CopyIn<'a> {
    pub(crate) fn new(client: &'a mut Client) -> Self {
        CopyIn { client }
    }

    /// Puts a piece, and sends what has gathered if it is much.
    pub async fn send(&mut self, data: &[u8]) -> Result<(), Error> {
        let writer = self.client.framed().writer();
        writer.put_copy_data(|out| out.extend_from_slice(data));
        Ok(writer.flush_if_large().await?)
    }

    /// Ends the stream and waits for the server's verdict.
    pub async fn finish(self) -> Result<(), Error> {
        self.end(FrontendMessage::CopyDone).await
    }

    /// Gives up; the server's error, which quotes `reason`, is the result.
    pub async fn abort(self, reason: &str) -> Result<(), Error> {
        self.end(FrontendMessage::CopyFail(reason.to_owned())).await
    }

    async fn end(self, message: FrontendMessage) -> Result<(), Error> {
        self.client.framed().writer().put_frontend(&message);
        self.client.framed().flush().await?;
        self.client.read_to_ready().await
    }
}

/// The receiving half of a COPY in both directions.
#[derive(Debug)]
pub struct CopyBothReader {
    framed: FramedReader<Stream>,
    ended: bool,
}

impl CopyBothReader {
    pub(crate) fn new(framed: FramedReader<Stream>) -> Self {
        CopyBothReader { framed, ended: false }
    }

    /// Payload of the next `CopyData`, `None` when the server has ended the stream. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.ended {
            let message = self.framed.read_message().await?.ok_or(Error::Closed)?;
            if let Some(payload) = self.payload(message)? {
                return Ok(Some(payload));
            }
        }
        Ok(None)
    }

    /// Payload of the next `CopyData` if it has been received already. Never waits, and does not
    /// tell the end of the stream from a pause: [`CopyBothReader::next`] does.
    pub fn next_buffered(&mut self) -> Result<Option<Bytes>, Error> {
        while !self.ended {
            let Some(message) = self.framed.buffered_message()? else {
                break;
            };
            if let Some(payload) = self.payload(message)? {
                return Ok(Some(payload));
            }
        }
        Ok(None)
    }

    fn payload(&mut self, message: BackendMessage) -> Result<Option<Bytes>, Error> {
        match message {
            BackendMessage::CopyData(data) => return Ok(Some(data)),
            BackendMessage::CopyDone
            | BackendMessage::CommandComplete(_)
            | BackendMessage::ReadyForQuery(_) => self.ended = true,
            BackendMessage::ErrorResponse(notice) => return Err(Error::Server(notice)),
            BackendMessage::NoticeResponse(_) | BackendMessage::ParameterStatus { .. } => {}
            _ => return Err(Error::UnexpectedAnswer("not part of a COPY stream")),
        }
        Ok(None)
    }
}

/// The sending half of a COPY in both directions.
#[derive(Debug)]
pub struct CopyBothWriter {
    framed: FramedWriter<Stream>,
}

impl CopyBothWriter {
    pub(crate) fn new(framed: FramedWriter<Stream>) -> Self {
        CopyBothWriter { framed }
    }

    /// Puts a `CopyData` whose payload is what `payload` writes; it goes out with the next flush.
    pub fn put(&mut self, payload: impl FnOnce(&mut BytesMut)) {
        self.framed.put_copy_data(payload);
    }

    /// Sends everything put so far. Cancel-safe.
    pub async fn flush(&mut self) -> Result<(), Error> {
        Ok(self.framed.flush().await?)
    }

    /// Ends this direction and sends what is left. The server then ends the other one.
    pub async fn finish(&mut self) -> Result<(), Error> {
        self.framed.put_frontend(&FrontendMessage::CopyDone);
        self.flush().await
    }
}
