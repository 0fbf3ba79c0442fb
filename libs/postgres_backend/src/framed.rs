//! Messages over a byte stream, in both directions.
//!
//! [`Framed`] owns the stream, an in-buffer and an out-buffer. It can be split into halves that
//! live apart (or be lent as two halves), and joined again.
//!
//! Invariants
//! * Reading and flushing are cancel-safe: what was received stays in the in-buffer, what was not
//!   yet sent stays in the out-buffer, and the next call goes on from there.
//! * Received payloads share memory with the in-buffer: nothing is copied after the read.
//! * The in-buffer grows with the bytes that have arrived, not with what a length field claims. A peer that sends
//!   much is read from in large pieces, and in small ones again when it sends little.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use pq_proto::frame::{self, Head};
use pq_proto::startup::StartupPacket;
use pq_proto::{BackendMessage, FrontendMessage, ProtocolError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf};

/// Bytes asked of the stream in one read, while the peer sends little.
const READ_BYTES: usize = 32 * 1024;
/// The same, when it sends as much as is taken.
const READ_BYTES_MAX: usize = 1024 * 1024;
/// An out-buffer beyond this size is flushed before more is added, see [`FramedWriter::flush_if_large`].
const OUT_BUFFER_BYTES_LARGE: usize = 64 * 1024;

/// The connection cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The peer has ended it as it may, between two messages.
    #[error("the peer closed the connection")]
    Closed,
    /// The stream failed, or ended within a message.
    #[error("Socket IO error: {0}")]
    Io(#[from] io::Error),
    /// The peer does not speak the protocol.
    #[error("protocol error: {0}")]
    Protocol(#[from] ProtocolError),
}

impl ConnectionError {
    /// Whether the peer simply went away.
    pub fn is_disconnect(&self) -> bool {
        use io::ErrorKind::*;
        match self {
            ConnectionError::Closed => true,
            ConnectionError::Io(error) => matches!(
                error.kind(),
                ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof | NotConnected | TimedOut
            ),
            ConnectionError::Protocol(_) => false,
        }
    }
}

/// Messages one side receives.
pub trait Receive: Sized {
    /// Parses the body of a message of type `tag`.
    fn parse(tag: u8, body: Bytes) -> Result<Self, ProtocolError>;
}

impl Receive for FrontendMessage {
    fn parse(tag: u8, body: Bytes) -> Result<Self, ProtocolError> {
        FrontendMessage::parse(tag, body)
    }
}

impl Receive for BackendMessage {
    fn parse(tag: u8, body: Bytes) -> Result<Self, ProtocolError> {
        BackendMessage::parse(tag, body)
    }
}

/// Both directions of a connection.
#[derive(Debug)]
pub struct Framed<S> {
    reader: FramedReader<S>,
    writer: FramedWriter<S>,
}

/// The receiving half.
#[derive(Debug)]
pub struct FramedReader<S> {
    stream: ReadHalf<S>,
    buffer: BytesMut,
    /// Bytes to ask of the stream in one read, as the last reads suggest.
    read_bytes: usize,
    message_bytes_max: u32,
}

/// The sending half. What is put into it goes out with the next flush.
#[derive(Debug)]
pub struct FramedWriter<S> {
    stream: WriteHalf<S>,
    buffer: BytesMut,
}

impl<S: AsyncRead + AsyncWrite> Framed<S> {
    /// Wraps a stream. Messages longer than [`frame::MESSAGE_BYTES_MAX`] are refused.
    pub fn new(stream: S) -> Self {
        let (read, write) = tokio::io::split(stream);
        Framed {
            reader: FramedReader {
                stream: read,
                buffer: BytesMut::with_capacity(READ_BYTES),
                read_bytes: READ_BYTES,
                message_bytes_max: frame::MESSAGE_BYTES_MAX,
            },
            writer: FramedWriter {
                stream: write,
                buffer: BytesMut::with_capacity(READ_BYTES),
            },
        }
    }

    /// Parts the two directions. [`Framed::join`] puts them together again.
    pub fn split(self) -> (FramedReader<S>, FramedWriter<S>) {
        (self.reader, self.writer)
    }

    /// Puts together what [`Framed::split`] has parted; bytes buffered in either half are kept.
    pub fn join(reader: FramedReader<S>, writer: FramedWriter<S>) -> Self {
        assert!(
            reader.stream.is_pair_of(&writer.stream),
            "halves of two different connections joined"
        );
        Framed { reader, writer }
    }

    /// Lends both halves, for use within one task. The borrow's end is the join.
    pub fn halves(&mut self) -> (&mut FramedReader<S>, &mut FramedWriter<S>) {
        (&mut self.reader, &mut self.writer)
    }

    /// The receiving half.
    pub fn reader(&mut self) -> &mut FramedReader<S> {
        &mut self.reader
    }

    /// The sending half.
    pub fn writer(&mut self) -> &mut FramedWriter<S> {
        &mut self.writer
    }

    /// The stream itself, to be wrapped anew (TLS). Bytes received but not yet parsed would be lost,
    /// and a peer that has sent any did not wait for the answer it had to wait for.
    pub fn into_stream(self) -> Result<S, ConnectionError>
    where
        S: Unpin,
    {
        if !self.reader.buffer.is_empty() {
            return Err(ProtocolError::TrailingBytes("encryption request").into());
        }
        assert!(self.writer.buffer.is_empty(), "unsent bytes would be lost");
        Ok(self.reader.stream.unsplit(self.writer.stream))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Framed<S> {
    /// Next message, see [`FramedReader::read_message`].
    pub async fn read_message<M: Receive>(&mut self) -> Result<Option<M>, ConnectionError> {
        self.reader.read_message().await
    }

    /// Sends everything put so far.
    pub async fn flush(&mut self) -> Result<(), ConnectionError> {
        self.writer.flush().await
    }
}

impl<S: AsyncRead> FramedReader<S> {
    /// Next message if it has been received as a whole already. Never reads from the stream.
    pub fn buffered_message<M: Receive>(&mut self) -> Result<Option<M>, ProtocolError> {
        match frame::peek(&self.buffer, self.message_bytes_max)? {
            Head::Missing(_) => Ok(None),
            Head::Complete => {
                let (tag, body) = frame::take(&mut self.buffer);
                M::parse(tag, body).map(Some)
            }
        }
    }

    /// Next message, `None` if the peer closed the stream between two messages. Cancel-safe.
    pub async fn read_message<M: Receive>(&mut self) -> Result<Option<M>, ConnectionError> {
        loop {
            if let Some(message) = self.buffered_message()? {
                return Ok(Some(message));
            }
            if self.fill().await? == 0 {
                return self.at_end().map(|()| None);
            }
        }
    }

    /// The first packet of a connection, `None` if the peer closed the stream before it.
    pub async fn read_startup(&mut self) -> Result<Option<StartupPacket>, ConnectionError> {
        loop {
            if let Some(length) = self.buffer.first_chunk::<4>() {
                let total = StartupPacket::body_len(*length)? + 4;
                if self.buffer.len() >= total {
                    let packet = self.buffer.split_to(total).freeze();
                    return Ok(Some(StartupPacket::parse(packet.slice(4..))?));
                }
            }
            if self.fill().await? == 0 {
                return self.at_end().map(|()| None);
            }
        }
    }

    /// Reads one byte: the answer to an encryption request.
    pub async fn read_byte(&mut self) -> Result<u8, ConnectionError> {
        while self.buffer.is_empty() {
            if self.fill().await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
        Ok(self.buffer.split_to(1)[0])
    }

    /// Reads what is there, at least one byte unless the stream has ended.
    async fn fill(&mut self) -> Result<usize, ConnectionError> {
        self.make_room();
        let got = self.stream.read_buf(&mut self.buffer).await?;
        if got > self.read_bytes / 2 {
            self.read_bytes = (self.read_bytes * 2).min(READ_BYTES_MAX);
        } else if got < self.read_bytes / 16 {
            self.read_bytes = (self.read_bytes / 2).max(READ_BYTES);
        }
        Ok(got)
    }

    /// Makes room for a read. Memory that earlier messages have given back is used again; while they are in use,
    /// a smaller read into what is left of it is better than another piece of memory.
    fn make_room(&mut self) {
        let room = self.buffer.capacity() - self.buffer.len();
        if room < self.read_bytes && !self.buffer.try_reclaim(self.read_bytes) && room < self.read_bytes / 8 {
            self.buffer.reserve(self.read_bytes * 2);
        }
    }

    fn at_end(&self) -> Result<(), ConnectionError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let error = io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "connection closed in the middle of a message",
        );
        Err(error.into())
    }
}

impl<S: AsyncWrite> FramedWriter<S> {
    /// The out-buffer, for messages encoded in place. Only whole messages may be appended.
    pub fn buffer(&mut self) -> &mut BytesMut {
        &mut self.buffer
    }

    /// Puts a message of the server's side.
    pub fn put_backend(&mut self, message: &BackendMessage) {
        message.encode(&mut self.buffer);
    }

    /// Puts a message of the client's side.
    pub fn put_frontend(&mut self, message: &FrontendMessage) {
        message.encode(&mut self.buffer);
    }

    /// Puts a `CopyData` whose payload is what `payload` writes.
    pub fn put_copy_data(&mut self, payload: impl FnOnce(&mut BytesMut)) {
        frame::put_copy_data(&mut self.buffer, payload);
    }

    /// Sends everything put so far. Cancel-safe: what was not sent is sent by the next flush.
    pub async fn flush(&mut self) -> Result<(), ConnectionError> {
        self.stream.write_all_buf(&mut self.buffer).await?;
        self.stream.flush().await?;
        Ok(())
    }

    /// Ready once there is room for more in the out-buffer; sends of it what it must for that.
    pub(crate) fn poll_room(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.buffer.len() >= OUT_BUFFER_BYTES_LARGE {
            ready!(self.poll_send(context))?;
        }
        Poll::Ready(Ok(()))
    }

    /// Ready once everything is sent.
    pub(crate) fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.buffer.is_empty() {
            ready!(self.poll_send(context))?;
        }
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = ready!(Pin::new(&mut self.stream).poll_write(context, &self.buffer))?;
        if sent == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.buffer.advance(sent);
        Poll::Ready(Ok(()))
    }

    /// Flushes if much has gathered, so that the out-buffer stays small in a long stream.
    pub async fn flush_if_large(&mut self) -> Result<(), ConnectionError> {
        if self.buffer.len() >= OUT_BUFFER_BYTES_LARGE {
            self.flush().await?;
        }
        Ok(())
    }

    /// Sends everything, then closes this direction.
    pub async fn shutdown(&mut self) -> Result<(), ConnectionError> {
        self.flush().await?;
        self.stream.shutdown().await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
