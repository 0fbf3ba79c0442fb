//! A connection past authentication: commands and their answers.

use std::collections::HashMap;

use bytes::Bytes;
use postgres_backend::Framed;
use pq_proto::backend::Column;
use pq_proto::startup::StartupPacket;
use pq_proto::{BackendMessage, FrontendMessage};
use tokio::net::{TcpStream, UnixStream};
use tracing::debug;

use crate::auth::authenticate;
use crate::config::{Config, Host};
use crate::copy::{CopyBothReader, CopyBothWriter, CopyIn, CopyOut};
use crate::{Error, Stream};

impl Config {
    /// Connects, authenticates and waits until the server is ready for the first command.
    pub async fn connect(&self) -> Result<Client, Error> {
        match self.connect_timeout {
            None => self.connect_untimed().await,
            Some(limit) => {
                let timeout = |_| Error::Timeout {
                    address: self.to_string(),
                    limit,
                };
                tokio::time::timeout(limit, self.connect_untimed())
                    .await
                    .map_err(timeout)?
            }
        }
    }

    async fn connect_untimed(&self) -> Result<Client, Error> {
        let stream = self.open().await.map_err(|source| Error::Connect {
            address: self.to_string(),
            source,
        })?;
        let mut framed = Framed::new(stream);
        StartupPacket::Startup(self.startup_parameters()).encode(framed.writer().buffer());
        framed.flush().await?;
        authenticate(&mut framed, self).await?;
        let mut client = Client {
            framed,
            parameters: HashMap::new(),
            busy: true,
        };
        client.read_to_ready().await?;
        Ok(client)
    }

    async fn open(&self) -> std::io::Result<Stream> {
        match &self.host {
            Host::Unix(_) => UnixStream::connect(self.to_string()).await.map(Stream::Unix),
            Host::Tcp(name) => {
                let stream = TcpStream::connect((name.as_str(), self.port)).await?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
        }
    }
}

/// One row of an answer, values in text format.
#[derive(Debug, Clone, Eq, PartialEq)]
pub struct Row(Vec<Option<Bytes>>);

impl Row {
    /// Value of column `index`; `None` for NULL, a column that is not there, or bytes that are not UTF-8.
    pub fn get(&self, index: usize) -> Option<&str> {
        std::str::from_utf8(self.0.get(index)?.as_ref()?).ok()
    }
}

/// Answer to one command.
#[derive(Debug, Clone, Default, Eq, PartialEq)]
pub struct QueryResult {
    /// Names and types.
    pub columns: Vec<Column>,
    /// Rows.
    pub rows: Vec<Row>,
    /// Tag of the command, empty for an empty one.
    pub tag: String,
}

impl QueryResult {
    /// Value in the first row of the column called `name`.
    pub fn first(&self, name: &str) -> Option<&str> {
        let index = self.columns.iter().position(|column| column.name == name)?;
        self.rows.first()?.get(index)
    }
}

/// A connection ready for commands. Dropping it closes it.
#[derive(Debug)]
pub struct Client {
    framed: Framed<Stream>,
    parameters: HashMap<String, String>,
    /// A command was sent whose `ReadyForQuery` has not been received.
    busy: bool,
}

impl Client {
    /// Last reported value of a server setting, such as `server_version`.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.get(name).map(String::as_str)
    }

    pub(crate) fn framed(&mut self) -> &mut Framed<Stream> {
        &mut self.framed
    }

    /// Runs a command that returns rows or nothing. Of several commands in one text the last one's
    /// answer is returned.
    pub async fn query(&mut self, text: &str) -> Result<QueryResult, Error> {
        self.send_query(text).await?;
        let mut result = QueryResult::default();
        let mut failure = None;
        loop {
            match self.next_message().await? {
                BackendMessage::RowDescription(columns) => {
                    result = QueryResult {
                        columns,
                        ..QueryResult::default()
                    }
                }
                BackendMessage::DataRow(values) => result.rows.push(Row(values)),
                BackendMessage::CommandComplete(tag) => result.tag = tag,
                BackendMessage::EmptyQueryResponse => {}
                BackendMessage::ErrorResponse(notice) => failure = Some(Error::Server(notice)),
                BackendMessage::ReadyForQuery(_) => return failure.map_or(Ok(result), Err),
                _ => return Err(Error::UnexpectedAnswer("the command is not an ordinary query")),
            }
        }
    }

    /// Runs a command that answers with COPY OUT.
    pub async fn copy_out(&mut self, text: &str) -> Result<CopyOut<'_>, Error> {
        self.start_copy(text, |message| {
            matches!(message, BackendMessage::CopyOutResponse(_))
        })
        .await?;
        Ok(CopyOut::new(self))
    }

    /// Runs a command that answers with COPY IN.
    pub async fn copy_in(&mut self, text: &str) -> Result<CopyIn<'_>, Error> {
        self.start_copy(text, |message| {
            matches!(message, BackendMessage::CopyInResponse(_))
        })
        .await?;
        Ok(CopyIn::new(self))
    }

    /// Runs a command that answers with COPY in both directions, and parts the directions.
    pub async fn copy_both(mut self, text: &str) -> Result<(CopyBothReader, CopyBothWriter), Error> {
        self.start_copy(text, |message| {
            matches!(message, BackendMessage::CopyBothResponse(_))
        })
        .await?;
        let (reader, writer) = self.framed.split();
        Ok((CopyBothReader::new(reader), CopyBothWriter::new(writer)))
    }

    async fn start_copy(
        &mut self,
        text: &str,
        wanted: impl Fn(&BackendMessage) -> bool,
    ) -> Result<(), Error> {
        self.send_query(text).await?;
        match self.next_message().await? {
            BackendMessage::ErrorResponse(notice) => {
                self.read_to_ready().await?;
                Err(Error::Server(notice))
            }
            message if wanted(&message) => Ok(()),
            _ => Err(Error::UnexpectedAnswer(
                "the command did not start the expected COPY",
            )),
        }
    }

    async fn send_query(&mut self, text: &str) -> Result<(), Error> {
        if self.busy {
            return Err(Error::Busy);
        }
        self.busy = true;
        let query = FrontendMessage::Query(text.to_owned());
        self.framed.writer().put_frontend(&query);
        Ok(self.framed.flush().await?)
    }

    /// Reads the rest of an answer.
    pub(crate) async fn read_to_ready(&mut self) -> Result<(), Error> {
        let mut failure = None;
        loop {
            match self.next_message().await? {
                BackendMessage::ReadyForQuery(_) => return failure.map_or(Ok(()), Err),
                BackendMessage::ErrorResponse(notice) => failure = Some(Error::Server(notice)),
                _ => {}
            }
        }
    }

    /// Next message that is part of an answer; what the server sends by the way is dealt with here.
    pub(crate) async fn next_message(&mut self) -> Result<BackendMessage, Error> {
        loop {
            match self.framed.read_message().await?.ok_or(Error::Closed)? {
                BackendMessage::ParameterStatus { name, value } => {
                    self.parameters.insert(name, value);
                }
                BackendMessage::NoticeResponse(notice) => debug!("server says: {notice}"),
                BackendMessage::BackendKeyData { .. } | BackendMessage::NotificationResponse { .. } => {}
                // A server that shuts down says so and closes: no ReadyForQuery will follow.
                BackendMessage::ErrorResponse(notice) if notice.severity == "FATAL" => {
                    return Err(Error::Server(notice));
                }
                message => {
                    if matches!(message, BackendMessage::ReadyForQuery(_)) {
                        self.busy = false;
                    }
                    return Ok(message);
                }
            }
        }
    }
}
