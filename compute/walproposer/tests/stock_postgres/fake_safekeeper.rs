//! A safekeeper that keeps everything in memory: the real acceptor behind a real socket.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use postgres_backend::{AuthMethod, Connection, Handler, Options, QueryError, serve};
use pq_proto::replication::ReplicationMessage;
use safekeeper::acceptor::{Acceptor, Action, ControlState, ReaderFeedback};
use safekeeper_api::protocol::{AcceptorMessage, ProposerMessage};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use utils::id::{NodeId, TenantTimelineId};
use utils::lsn::Lsn;

/// What survives when the safekeeper is stopped.
pub struct Disk {
    acceptor: Acceptor,
    start: Lsn,
    wal: Vec<u8>,
}

impl Disk {
    fn step(&mut self, messages: Vec<ProposerMessage>) -> anyhow::Result<Vec<AcceptorMessage>> {
        let mut actions = Vec::new();
        for message in messages {
            self.acceptor.step(message, &mut actions)?;
        }
        self.acceptor
            .finish_batch(ReaderFeedback::default(), &mut actions);
        let mut replies = Vec::new();
        for action in actions {
            match action {
                Action::WriteWal { begin, bytes } => {
                    assert_eq!(self.start + self.wal.len() as u64, begin);
                    self.wal.extend_from_slice(&bytes);
                }
                Action::TruncateWal { to } if self.wal.is_empty() => self.start = to,
                Action::TruncateWal { to } => self.wal.truncate((to - self.start) as usize),
                Action::Reply(reply) => replies.push(reply),
                Action::PersistControl(_) | Action::SavePositions(_) | Action::FlushWal { .. } => {}
            }
        }
        Ok(replies)
    }
}

/// The safekeeper, running or not.
pub struct FakeSafekeeper {
    pub address: SocketAddr,
    disk: Arc<Mutex<Disk>>,
    running: CancellationToken,
}

impl FakeSafekeeper {
    pub async fn start(id: TenantTimelineId, node: u64) -> FakeSafekeeper {
        let mut control = ControlState::empty(id);
        control.server.wal_seg_size = 16 << 20;
        let disk = Disk {
            acceptor: Acceptor::recover(NodeId(node), control, Lsn::INVALID),
            start: Lsn::INVALID,
            wal: Vec::new(),
        };
        let mut fake = FakeSafekeeper {
            address: "127.0.0.1:0".parse().unwrap(),
            disk: Arc::new(Mutex::new(disk)),
            running: CancellationToken::new(),
        };
        fake.restart().await;
        fake
    }

    /// Closes all connections and accepts no more.
    pub fn stop(&self) {
        self.running.cancel();
    }

    pub async fn restart(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.address = listener.local_addr().unwrap();
        self.running = CancellationToken::new();
        let (running, disk) = (self.running.clone(), self.disk.clone());
        tokio::spawn(async move {
            while let Some(Ok((stream, _))) = running.run_until_cancelled(listener.accept()).await {
                stream.set_nodelay(true).unwrap();
                let (disk, running) = (disk.clone(), running.clone());
                tokio::spawn(async move {
                    let options = Options {
                        auth: AuthMethod::Trust,
                        shutdown: running,
                    };
                    let _ = serve(stream, &mut Server { disk }, options).await;
                });
            }
        });
    }

    pub fn flush_lsn(&self) -> Lsn {
        self.disk.lock().unwrap().acceptor.flush_lsn()
    }

    /// The WAL, and where it begins.
    pub fn wal(&self) -> (Lsn, Vec<u8>) {
        let disk = self.disk.lock().unwrap();
        (disk.start, disk.wal.clone())
    }
}

struct Server {
    disk: Arc<Mutex<Disk>>,
}

impl Handler<TcpStream> for Server {
    fn check_auth_jwt(&mut self, _token: &str) -> Result<(), QueryError> {
        Ok(())
    }

    async fn process_query(
        &mut self,
        connection: &mut Connection<TcpStream>,
        query: &str,
    ) -> Result<(), QueryError> {
        if query == "START_WAL_PUSH" {
            return self.push(connection).await;
        }
        let lsn = query.strip_prefix("START_REPLICATION PHYSICAL ").unwrap();
        self.donate(connection, lsn.split(' ').next().unwrap().parse().unwrap())
            .await
    }
}

impl Server {
    async fn push(&mut self, connection: &mut Connection<TcpStream>) -> Result<(), QueryError> {
        let (mut reader, mut writer) = connection.copy_both().await?;
        loop {
            let decode = |raw: Bytes| ProposerMessage::decode(raw).unwrap();
            let mut messages = vec![decode(reader.next().await?)];
            while let Some(more) = reader.next_buffered()? {
                messages.push(decode(more));
            }
            let replies = self.disk.lock().unwrap().step(messages)?;
            for reply in replies {
                writer.put(|out| reply.encode(out));
            }
            writer.flush().await?;
        }
    }

    async fn donate(&mut self, connection: &mut Connection<TcpStream>, from: Lsn) -> Result<(), QueryError> {
        let (start, wal) = {
            let disk = self.disk.lock().unwrap();
            (disk.start, disk.wal.clone())
        };
        let (_reader, mut writer) = connection.copy_both().await?;
        let mut position = from;
        for part in wal[(from - start) as usize..].chunks(100_000) {
            let message = ReplicationMessage::XLogData {
                start: position,
                end: start + wal.len() as u64,
                time: 0,
                wal: Bytes::copy_from_slice(part),
            };
            position += part.len() as u64;
            writer.put(|out| message.encode(out));
            writer.flush().await?;
        }
        Err(QueryError::StreamEnd(
            "ending streaming, recovery finished".to_owned(),
        ))
    }
}
