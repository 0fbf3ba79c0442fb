//! `pagestream`: a compute's reads (libpq services, section 3).
//!
//! Answers have the order of the requests. All requests that have arrived are answered
//! before the answers are sent: a pipelining client costs one system call per batch, not per page. Pages of one
//! relation, which is what a scan asks for, are read together.
//!
//! A request that fails gets an error as its answer and the stream goes on; only a message that is no
//! request ends it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pageserver_api::pagestream::{DecodeError, Query, Request, RequestLsn, Response};
use pageserver_api::reltag::RelTag;
use postgres_backend::{Connection, CopyEnd, CopyReader, CopyWriter, QueryError};
use smallvec::SmallVec;
use tokio::io::{AsyncRead, AsyncWrite};
use tracing::{error, info};
use utils::lsn::Lsn;

use super::trace::Trace;
use crate::layers::run::RUN_KEYS_MAX;
use crate::metrics::{SmgrQuery, TimelineMetrics};
use crate::pgdatadir::{self, DEFAULT_TABLESPACE, DataError, DbId};
use crate::timeline::{ReadError, Timeline};

/// Why a request is answered with an error.
#[derive(Debug, thiserror::Error)]
enum RequestError {
    #[error("invalid LSN(0) in request")]
    InvalidLsn,
    #[error("malformed request: {0}")]
    Malformed(#[from] DecodeError),
    #[error(
        "tried to request a page version that was garbage collected. requested at {lsn} gc cutoff {cutoff}"
    )]
    Collected { lsn: Lsn, cutoff: Lsn },
    #[error(transparent)]
    Data(DataError),
}

impl From<DataError> for RequestError {
    fn from(error: DataError) -> Self {
        match error {
            DataError::Read(ReadError::Collected { lsn, cutoff, .. }) => {
                RequestError::Collected { lsn, cutoff }
            }
            other => RequestError::Data(other),
        }
    }
}

impl From<ReadError> for RequestError {
    fn from(error: ReadError) -> Self {
        DataError::from(error).into()
    }
}

impl RequestError {
    /// Whether the cause lies here and a person should look.
    fn is_ours(&self) -> bool {
        match self {
            RequestError::Data(DataError::Read(error)) => {
                !matches!(error, ReadError::Stopping(_) | ReadError::WaitLsn { .. })
            }
            RequestError::Data(DataError::NoSuchRelation { .. }) => false,
            RequestError::Data(_) => true,
            _ => false,
        }
    }
}

/// How a stream is served.
pub struct Options {
    /// How long a request waits for WAL.
    pub wait_lsn_timeout: Duration,
    /// Where requests are recorded, if they are.
    pub trace: Option<Trace>,
}

/// Most requests that are answered together; so many pages are held in memory.
const BATCH_REQUESTS_MAX: usize = 64;

struct PageStream {
    answerer: Answerer,
    trace: Option<Trace>,
}

/// What it takes to answer requests.
struct Answerer {
    timeline: Arc<Timeline>,
    metrics: Arc<TimelineMetrics>,
    wait_lsn_timeout: Duration,
}

/// Answers requests until the client leaves or the timeline stops.
pub async fn serve<S>(
    connection: &mut Connection<S>,
    timeline: &Arc<Timeline>,
    options: Options,
) -> Result<(), QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let mut stream = PageStream {
        answerer: Answerer {
            timeline: Arc::clone(timeline),
            metrics: TimelineMetrics::of(timeline.id()),
            wait_lsn_timeout: options.wait_lsn_timeout,
        },
        trace: options.trace,
    };
    let (mut reader, mut writer) = connection.copy_both().await?;
    let end = tokio::select! {
        end = stream.run(&mut reader, &mut writer) => end,
        () = timeline.cancelled().cancelled() => {
            let error = ReadError::Stopping(timeline.timeline_id);
            return Err(QueryError::Unavailable(error.into()));
        }
    };
    match end {
        Ok(CopyEnd::Done) => {
            writer.done();
            connection.put_complete("COPY");
            Ok(())
        }
        // Leaving is how a compute ends the stream.
        Ok(end) => Err(end.into()),
        Err(error) => Err(error),
    }
}

impl PageStream {
    async fn run<S>(
        &mut self,
        reader: &mut CopyReader<'_, S>,
        writer: &mut CopyWriter<'_, S>,
    ) -> Result<CopyEnd, QueryError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        loop {
            let mut batch = match reader.next().await {
                Ok(payload) => vec![payload],
                Err(end) => return Ok(end),
            };
            let end = loop {
                match reader.next_buffered() {
                    Ok(Some(next)) => batch.push(next),
                    Ok(None) => break None,
                    Err(end) => break Some(end),
                }
                if batch.len() == BATCH_REQUESTS_MAX {
                    break None;
                }
            };
            if let Some(trace) = &mut self.trace {
                for payload in &batch {
                    trace.record(payload).await?;
                }
            }
            self.respond_to_all(batch, writer).await?;
            writer.flush().await?;
            if let Some(end) = end {
                return Ok(end);
            }
        }
    }

    async fn respond_to_all<S>(
        &self,
        batch: Vec<Bytes>,
        writer: &mut CopyWriter<'_, S>,
    ) -> Result<(), QueryError>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let requests: Vec<Decoded> = batch.iter().map(|payload| Request::decode(payload)).collect();
        for piece in pieces(&requests) {
            if let Some(pages) = self.answerer.pages(piece).await {
                for page in pages {
                    send(writer, &Response::GetPage(page)).await?;
                }
            } else {
                for request in piece {
                    send(writer, &self.answerer.respond(request.clone()).await?).await?;
                }
            }
        }
        Ok(())
    }
}

/// Puts a response into the buffer, which is sent as soon as it is large.
async fn send<S>(writer: &mut CopyWriter<'_, S>, response: &Response) -> Result<(), QueryError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    writer.put(|out| response.encode(out));
    Ok(writer.flush_if_large().await?)
}

type Decoded = Result<Request, DecodeError>;

/// Cuts a batch into requests that can be answered together: for pages of one relation fork at one LSN.
fn pieces(batch: &[Decoded]) -> impl Iterator<Item = &[Decoded]> {
    let together = |a: &Decoded, b: &Decoded| {
        let (Ok(a), Ok(b)) = (a, b) else { return false };
        let (Query::GetPage { rel: of_a, .. }, Query::GetPage { rel: of_b, .. }) = (a.query, b.query) else {
            return false;
        };
        of_a == of_b && a.at.latest == b.at.latest && (a.at.latest || a.at.lsn == b.at.lsn)
    };
    batch
        .chunk_by(together)
        .flat_map(|piece| piece.chunks(RUN_KEYS_MAX))
}

impl Answerer {
    /// The pages that `piece` asks for, read together. `None` if there is nothing to be put together, and if it fails:
    /// alone, each gets its own answer.
    async fn pages(&self, piece: &[Decoded]) -> Option<Vec<Bytes>> {
        if piece.len() == 1 {
            return None;
        }
        let begin = Instant::now();
        let mut blocks: SmallVec<[u32; RUN_KEYS_MAX]> = SmallVec::new();
        let mut of: Option<(RelTag, RequestLsn)> = None;
        for request in piece.iter().flatten() {
            let Query::GetPage { rel, block } = request.query else {
                return None;
            };
            blocks.push(block);
            let highest = of.map_or(request.at.lsn, |(_, at)| at.lsn.max(request.at.lsn));
            of = Some((
                rel,
                RequestLsn {
                    lsn: highest,
                    ..request.at
                },
            ));
        }
        let (rel, at) = of?;
        let lsn = self.effective_lsn(at).await.ok()?;
        let pages = pgdatadir::rel_pages_at(&*self.timeline, rel, &blocks, lsn)
            .await
            .ok()?;
        let each = begin.elapsed().as_secs_f64() / blocks.len() as f64;
        for _ in &blocks {
            self.metrics.smgr(SmgrQuery::GetPage).observe(each);
        }
        Some(pages)
    }

    /// `Err` ends the stream.
    async fn respond(&self, request: Decoded) -> Result<Response, QueryError> {
        let request = match request {
            Ok(request) => request,
            Err(error @ DecodeError::UnknownTag(_)) => return Err(QueryError::Failed(error.into())),
            Err(error) => return Ok(Response::Error(RequestError::from(error).to_string())),
        };
        let begin = Instant::now();
        let result = self.answer(request).await;
        let kind = match request.query {
            Query::Exists(_) => SmgrQuery::Exists,
            Query::Nblocks(_) => SmgrQuery::Nblocks,
            Query::GetPage { .. } => SmgrQuery::GetPage,
            Query::DbSize { .. } | Query::DbSizeIn { .. } => SmgrQuery::DbSize,
        };
        self.metrics.smgr(kind).observe(begin.elapsed().as_secs_f64());
        Ok(result.unwrap_or_else(|error| {
            let ours = error.is_ours();
            let text = format!("{:#}", anyhow::Error::new(error));
            if ours {
                error!("cannot answer {request:?}: {text}");
            } else {
                info!("cannot answer {request:?}: {text}");
            }
            Response::Error(text)
        }))
    }

    async fn answer(&self, request: Request) -> Result<Response, RequestError> {
        let lsn = self.effective_lsn(request.at).await?;
        let timeline = &*self.timeline;
        Ok(match request.query {
            Query::Exists(rel) => Response::Exists(pgdatadir::rel_exists(timeline, rel, lsn).await?),
            Query::Nblocks(rel) => match pgdatadir::rel_size(timeline, rel, lsn).await? {
                Some(blocks) => Response::Nblocks(blocks),
                None => return Err(DataError::NoSuchRelation { rel, lsn }.into()),
            },
            Query::GetPage { rel, block } => {
                Response::GetPage(pgdatadir::rel_page(timeline, rel, block, lsn).await?)
            }
            Query::DbSize { dbnode } => {
                let db = DbId {
                    spcnode: DEFAULT_TABLESPACE,
                    dbnode,
                };
                Response::DbSize(pgdatadir::db_size(timeline, db, lsn).await?)
            }
            Query::DbSizeIn { spcnode, dbnode } => {
                Response::DbSize(pgdatadir::db_size(timeline, DbId { spcnode, dbnode }, lsn).await?)
            }
        })
    }

    /// The LSN to read at, once WAL has arrived up to it.
    async fn effective_lsn(&self, at: RequestLsn) -> Result<Lsn, RequestError> {
        let last = self.timeline.last_record().last;
        let lsn = match at {
            RequestLsn { latest: true, lsn } if lsn <= last => last,
            RequestLsn {
                latest: false,
                lsn: Lsn(0),
            } => return Err(RequestError::InvalidLsn),
            RequestLsn { lsn, .. } => lsn,
        };
        if lsn > last {
            let timer = self.metrics.wait_lsn.start_timer();
            self.timeline.wait_lsn(lsn, self.wait_lsn_timeout).await?;
            timer.observe_duration();
        }
        let cutoff = self.timeline.latest_gc_cutoff_lsn();
        if lsn < cutoff {
            return Err(RequestError::Collected { lsn, cutoff });
        }
        Ok(lsn)
    }
}
