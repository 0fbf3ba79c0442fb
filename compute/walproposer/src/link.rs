//! A connection inside CopyBoth that is polled beside others in one task.
//!
//! Reading and flushing are cancel-safe, so a future of either may be made, polled once and dropped.
//! What is written waits in an out-buffer whose size the state machine limits.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use postgres_client::{CopyBothReader, CopyBothWriter, Error};

/// Makes a connection.
pub type Connecting = Pin<Box<dyn Future<Output = Result<(CopyBothReader, CopyBothWriter), Error>>>>;

/// A connection, or none.
#[derive(Default)]
pub enum Link {
    /// None.
    #[default]
    Closed,
    /// Being made.
    Connecting(Connecting),
    /// Data flows.
    Open(Box<Open>),
}

/// An open connection.
pub struct Open {
    reader: CopyBothReader,
    writer: CopyBothWriter,
    /// Whether something waits in the out-buffer.
    dirty: bool,
    /// What waits there, as the state machine counts it.
    weight: u64,
}

/// What a connection brings.
#[derive(Debug)]
pub enum LinkEvent {
    /// It is open.
    Connected,
    /// The payload of a CopyData.
    Data(Bytes),
    /// The other side has ended the stream in good order.
    Ended,
    /// It could not be made, or broke.
    Failed(Error),
}

impl Link {
    /// The next event. After `Ended` and `Failed` the link is closed.
    pub fn poll_event(&mut self, context: &mut Context<'_>) -> Poll<LinkEvent> {
        let event = match self {
            Link::Closed => return Poll::Pending,
            Link::Connecting(connecting) => match std::task::ready!(connecting.as_mut().poll(context)) {
                Ok((reader, writer)) => {
                    *self = Link::Open(Box::new(Open {
                        reader,
                        writer,
                        dirty: false,
                        weight: 0,
                    }));
                    LinkEvent::Connected
                }
                Err(error) => LinkEvent::Failed(error),
            },
            Link::Open(open) => match std::task::ready!(pin!(open.reader.next()).poll(context)) {
                Ok(Some(data)) => LinkEvent::Data(data),
                Ok(None) => LinkEvent::Ended,
                Err(error) => LinkEvent::Failed(error),
            },
        };
        if matches!(event, LinkEvent::Ended | LinkEvent::Failed(_)) {
            *self = Link::Closed;
        }
        Poll::Ready(event)
    }

    /// Puts a CopyData of the given weight into the out-buffer of an open connection.
    pub fn put(&mut self, weight: u64, payload: impl FnOnce(&mut BytesMut)) {
        let Link::Open(open) = self else {
            panic!("nothing is sent before a connection is open");
        };
        open.writer.put(payload);
        open.weight += weight;
        open.dirty = true;
    }

    /// Writes what waits. Ready with its weight once all of it is written; pending if nothing waits.
    ///
    /// # Errors
    /// The connection broke; the link is closed.
    pub fn poll_flush(&mut self, context: &mut Context<'_>) -> Poll<Result<u64, Error>> {
        let Link::Open(open) = self else {
            return Poll::Pending;
        };
        if !open.dirty {
            return Poll::Pending;
        }
        let flushed = pin!(open.writer.flush()).poll(context);
        match std::task::ready!(flushed) {
            Ok(()) => {
                open.dirty = false;
                Poll::Ready(Ok(std::mem::take(&mut open.weight)))
            }
            Err(error) => {
                *self = Link::Closed;
                Poll::Ready(Err(error))
            }
        }
    }

    /// Whether data flows.
    pub fn is_open(&self) -> bool {
        matches!(self, Link::Open(_))
    }
}
