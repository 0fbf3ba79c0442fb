//! The halves of a COPY stream as a server sees them.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use pq_proto::{BackendMessage, FrontendMessage, ProtocolError};
use tokio::io::{AsyncRead, AsyncWrite};

use crate::error::QueryError;
use crate::framed::{ConnectionError, FramedReader, FramedWriter};

/// Most that one write to a [`CopyWriter`] takes.
const COPY_DATA_BYTES_MAX: usize = 64 * 1024;

/// How the client's side of a COPY stream ended.
#[derive(Debug, thiserror::Error)]
pub enum CopyEnd {
    /// The client has sent all it had.
    #[error("the client ended the stream")]
    Done,
    /// The client gave up.
    #[error("the client gave up: {0}")]
    Failed(String),
    /// The client ended the connection, in an orderly way or not.
    #[error("the client closed the connection")]
    Terminated,
    /// The connection failed.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

impl From<CopyEnd> for QueryError {
    fn from(end: CopyEnd) -> Self {
        match end {
            CopyEnd::Connection(error) => QueryError::Connection(error),
            CopyEnd::Terminated => QueryError::Connection(ConnectionError::Closed),
            CopyEnd::Done | CopyEnd::Failed(_) => QueryError::Failed(end.into()),
        }
    }
}

/// What the client sends.
#[derive(Debug)]
pub struct CopyReader<'a, S> {
    framed: &'a mut FramedReader<S>,
}

impl<'a, S: AsyncRead + Unpin> CopyReader<'a, S> {
    pub(crate) fn new(framed: &'a mut FramedReader<S>) -> Self {
        CopyReader { framed }
    }

    /// Payload of the next `CopyData`, or how the stream ended. Cancel-safe.
    pub async fn next(&mut self) -> Result<Bytes, CopyEnd> {
        loop {
            let message = self.framed.read_message().await?;
            if let Some(payload) = Self::payload(message.ok_or(CopyEnd::Terminated)?)? {
                return Ok(payload);
            }
        }
    }

    /// Payload of the next `CopyData` if it has been received already. Never waits.
    pub fn next_buffered(&mut self) -> Result<Option<Bytes>, CopyEnd> {
        while let Some(message) = self.framed.buffered_message().map_err(ConnectionError::from)? {
            if let Some(payload) = Self::payload(message)? {
                return Ok(Some(payload));
            }
        }
        Ok(None)
    }

    fn payload(message: FrontendMessage) -> Result<Option<Bytes>, CopyEnd> {
        match message {
            FrontendMessage::CopyData(payload) => Ok(Some(payload)),
            // Clients that use the extended protocol may send these at any time.
            FrontendMessage::Sync | FrontendMessage::Flush => Ok(None),
            FrontendMessage::CopyDone => Err(CopyEnd::Done),
            FrontendMessage::CopyFail(reason) => Err(CopyEnd::Failed(reason)),
            FrontendMessage::Terminate => Err(CopyEnd::Terminated),
            other => {
                let error = ProtocolError::Malformed(other.name(), "not allowed within a COPY stream");
                Err(ConnectionError::from(error).into())
            }
        }
    }
}

/// What goes to the client.
#[derive(Debug)]
pub struct CopyWriter<'a, S> {
    framed: &'a mut FramedWriter<S>,
}

impl<'a, S: AsyncWrite> CopyWriter<'a, S> {
    pub(crate) fn new(framed: &'a mut FramedWriter<S>) -> Self {
        CopyWriter { framed }
    }

    /// Puts a `CopyData` whose payload is what `payload` writes; it goes out with the next flush.
    pub fn put(&mut self, payload: impl FnOnce(&mut BytesMut)) {
        self.framed.put_copy_data(payload);
    }

    /// Puts a `CopyData`, and sends what has gathered if it is much.
    pub async fn send(&mut self, payload: &[u8]) -> Result<(), ConnectionError> {
        self.framed.put_copy_data(|out| out.extend_from_slice(payload));
        self.framed.flush_if_large().await
    }

    /// Sends everything put so far. Cancel-safe.
    pub async fn flush(&mut self) -> Result<(), ConnectionError> {
        self.framed.flush().await
    }

    /// Sends what has gathered if it is much. Cancel-safe.
    pub async fn flush_if_large(&mut self) -> Result<(), ConnectionError> {
        self.framed.flush_if_large().await
    }

    /// Puts the regular end of this direction of the stream.
    pub fn done(self) {
        self.framed.put_backend(&BackendMessage::CopyDone);
    }
}

/// What is written becomes `CopyData` messages, one per write: give it a buffer's worth at a time.
impl<S: AsyncWrite> AsyncWrite for CopyWriter<'_, S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let framed = &mut *self.get_mut().framed;
        ready!(framed.poll_room(context))?;
        let piece = &data[..data.len().min(COPY_DATA_BYTES_MAX)];
        framed.put_copy_data(|out| out.extend_from_slice(piece));
        Poll::Ready(Ok(piece.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().framed.poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_flush(context)
    }
}

/// The outcome of a COPY in both directions, from that of each half; errors of both are reported.
///
/// A half that was stopped because the other one had ended counts as `Ok`.
pub fn join_copy_results(
    read: Result<(), QueryError>,
    write: Result<(), QueryError>,
) -> Result<(), QueryError> {
    match (read, write) {
        (Ok(()), Ok(())) => Ok(()),
        (Err(error), Ok(())) | (Ok(()), Err(error)) => Err(error),
        // A planned end says more than the disconnection it may have caused.
        (Err(QueryError::StreamEnd(text)), Err(_)) | (Err(_), Err(QueryError::StreamEnd(text))) => {
            Err(QueryError::StreamEnd(text))
        }
        (Err(QueryError::Connection(read)), Err(QueryError::Connection(_))) => {
            Err(QueryError::Connection(read))
        }
        (Err(read), Err(write)) => Err(QueryError::Failed(anyhow::anyhow!(
            "receiving failed: {read}; sending failed: {write}"
        ))),
    }
}
