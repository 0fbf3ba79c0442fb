//! What a command handler answers through.

use bytes::Bytes;
use pq_proto::BackendMessage;
use pq_proto::backend::{Column, CopyFormat, TransactionStatus};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use crate::copy::{CopyReader, CopyWriter};
use crate::framed::{ConnectionError, Framed};

const COPY_IN: CopyFormat = CopyFormat {
    format: 1,
    columns: 0,
};
const COPY_OUT: CopyFormat = CopyFormat {
    format: 0,
    columns: 0,
};

/// One client's connection, past authentication while a handler sees it.
#[derive(Debug)]
pub struct Connection<S> {
    framed: Framed<S>,
    shutdown: CancellationToken,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    pub(crate) fn new(stream: S, shutdown: CancellationToken) -> Self {
        Connection {
            framed: Framed::new(stream),
            shutdown,
        }
    }

    pub(crate) fn framed(&mut self) -> &mut Framed<S> {
        &mut self.framed
    }

    /// Cancelled when the server is to stop.
    pub fn shutdown_token(&self) -> &CancellationToken {
        &self.shutdown
    }

    /// Puts a message; it goes out with the next flush.
    pub fn put(&mut self, message: &BackendMessage) -> &mut Self {
        self.framed.writer().put_backend(message);
        self
    }

    /// Puts the description of the rows that follow.
    pub fn put_columns(&mut self, columns: &[Column]) -> &mut Self {
        self.put(&BackendMessage::RowDescription(columns.to_vec()))
    }

    /// Puts a row of values in text format; `None` is NULL.
    pub fn put_row(&mut self, values: &[Option<&str>]) -> &mut Self {
        let copy = |text: &str| Bytes::copy_from_slice(text.as_bytes());
        let values = values.iter().map(|value| value.map(copy)).collect();
        self.put(&BackendMessage::DataRow(values))
    }

    /// Puts the end of a successful command.
    pub fn put_complete(&mut self, tag: &str) -> &mut Self {
        self.put(&BackendMessage::CommandComplete(tag.to_owned()))
    }

    pub(crate) fn put_ready(&mut self) -> &mut Self {
        self.put(&BackendMessage::ReadyForQuery(TransactionStatus::Idle))
    }

    /// Sends everything put so far.
    pub async fn flush(&mut self) -> Result<(), ConnectionError> {
        self.framed.flush().await
    }

    /// Starts COPY IN: what the client sends is read from the result.
    pub async fn copy_in(&mut self) -> Result<CopyReader<'_, S>, ConnectionError> {
        self.put(&BackendMessage::CopyInResponse(COPY_IN)).flush().await?;
        Ok(CopyReader::new(self.framed.reader()))
    }

    /// Starts COPY OUT: what is put into the result goes to the client. The handler ends the stream
    /// with [`CopyWriter::done`], unless it fails.
    pub async fn copy_out(&mut self) -> Result<CopyWriter<'_, S>, ConnectionError> {
        self.put(&BackendMessage::CopyOutResponse(COPY_OUT))
            .flush()
            .await?;
        Ok(CopyWriter::new(self.framed.writer()))
    }

    /// Starts COPY in both directions. The two halves can be used at the same time within one task;
    /// dropping them joins the connection again.
    pub async fn copy_both(&mut self) -> Result<(CopyReader<'_, S>, CopyWriter<'_, S>), ConnectionError> {
        self.put(&BackendMessage::CopyBothResponse(COPY_OUT))
            .flush()
            .await?;
        let (reader, writer) = self.framed.halves();
        Ok((CopyReader::new(reader), CopyWriter::new(writer)))
    }
}
