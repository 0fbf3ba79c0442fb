//! `JSON_CTRL`: a test aid that acts as a proposer: is elected, and appends one logical message.

use anyhow::Context;
use bytes::{BufMut, Bytes, BytesMut};
use postgres_backend::{Connection, QueryError};
use postgres_ffi::v15::WAL_SEGMENT_SIZE;
use postgres_ffi::v15::encode::{WalIdentity, WalWriter};
use postgres_ffi::v15::record::{DecodedRecord, RecordHeader};
use postgres_ffi::v15::rmgr::RM_LOGICALMSG_ID;
use pq_proto::backend::{Column, ColumnType};
use safekeeper_api::protocol::{
    AcceptorMessage, AppendRequest, AppendResponse, ProposerElected, ProposerId, ProposerMessage, Term,
    TermHistory, TermLsn,
};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncWrite};
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

use crate::acceptor::{Acceptor, Action, ReaderFeedback, Refusal, ServerInfo};
use crate::dump::{Part, dump_control, dump_pageserver_feedback, dump_standby_feedback};
use crate::timeline_map::{NewTimeline, TimelineMap};

#[derive(Debug, Deserialize)]
struct Request {
    lm_prefix: String,
    lm_message: String,
    set_commit_lsn: bool,
    send_proposer_elected: bool,
    term: u64,
    epoch_start_lsn: u64,
    begin_lsn: u64,
    truncate_lsn: u64,
    pg_version: u32,
}

#[derive(Debug, Serialize)]
struct Response {
    state: safekeeper_api::debug_dump::DumpControl,
    inserted_wal: InsertedWal,
}

#[derive(Debug, Serialize)]
struct InsertedWal {
    begin_lsn: u64,
    end_lsn: u64,
    append_response: AppendAnswer,
}

#[derive(Debug, Serialize)]
struct AppendAnswer {
    term: u64,
    flush_lsn: u64,
    commit_lsn: u64,
    hs_feedback: safekeeper_api::debug_dump::DumpStandbyFeedback,
    pageserver_feedback: safekeeper_api::debug_dump::DumpPageserverFeedback,
}

/// Answers the command.
pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(
    connection: &mut Connection<S>,
    map: &TimelineMap,
    id: TenantTimelineId,
    json: &str,
) -> Result<(), QueryError> {
    let request: Request = serde_json::from_str(json).context("malformed JSON_CTRL request")?;
    let new = NewTimeline {
        id,
        server: ServerInfo {
            pg_version: request.pg_version,
            system_id: 0,
            wal_seg_size: WAL_SEGMENT_SIZE as u32,
        },
        commit_lsn: Lsn::INVALID,
        local_start_lsn: Lsn::INVALID,
    };
    let timeline = map.get_or_create(new).await.map_err(anyhow::Error::new)?;
    let feedback = timeline.readers().combined();
    let done = timeline
        .with_acceptor(|acceptor, out| {
            let end = act(acceptor, &request, feedback, out)?;
            Ok::<_, Refusal>((end, acceptor.control().clone()))
        })
        .await;
    let (result, replies) = done.map_err(anyhow::Error::new)?;
    let (end_lsn, control) = result.map_err(anyhow::Error::new)?;
    let Some(AcceptorMessage::AppendResponse(answer)) = replies.last() else {
        return Err(anyhow::anyhow!("the append request was not answered").into());
    };
    let response = Response {
        state: dump_control(&control, Part::Wanted),
        inserted_wal: InsertedWal {
            begin_lsn: request.begin_lsn,
            end_lsn: end_lsn.0,
            append_response: show_answer(answer),
        },
    };
    let text = serde_json::to_string(&response).map_err(anyhow::Error::new)?;
    let column = Column {
        name: "json".to_owned(),
        kind: ColumnType::Text,
    };
    connection
        .put_columns(&[column])
        .put_row(&[Some(&text)])
        .put_complete("JSON_CTRL");
    Ok(())
}

/// Acts as the proposer; returns where the record ends.
fn act(
    acceptor: &mut Acceptor,
    request: &Request,
    feedback: ReaderFeedback,
    out: &mut Vec<Action>,
) -> Result<Lsn, Refusal> {
    let (term, epoch_start_lsn) = (Term(request.term), Lsn(request.epoch_start_lsn));
    if request.send_proposer_elected {
        let elected = ProposerElected {
            term,
            start_streaming_at: epoch_start_lsn,
            term_history: history_with(acceptor, term, epoch_start_lsn),
            timeline_start_lsn: epoch_start_lsn,
        };
        acceptor.step(ProposerMessage::Elected(elected), out)?;
    }
    let wal = logical_message(acceptor, request);
    let end = Lsn(request.begin_lsn.saturating_add(wal.len() as u64));
    let append = AppendRequest {
        term,
        epoch_start_lsn,
        begin_lsn: Lsn(request.begin_lsn),
        commit_lsn: if request.set_commit_lsn { end } else { Lsn::INVALID },
        truncate_lsn: Lsn(request.truncate_lsn),
        proposer_id: ProposerId::default(),
        wal,
    };
    acceptor.step(ProposerMessage::Append(append), out)?;
    acceptor.finish_batch(feedback, out);
    Ok(end)
}

/// The acceptor's history up to `start`, with `term` as the next entry.
fn history_with(acceptor: &Acceptor, term: Term, start: Lsn) -> TermHistory {
    let known = acceptor.control().term_history.entries().iter();
    let older = known
        .filter(|entry| entry.term < term && entry.lsn <= start)
        .copied();
    let entries = older.chain([TermLsn { term, lsn: start }]).collect();
    TermHistory::new(entries).expect("the beginning of a history, and an entry behind all of it")
}

/// WAL that holds the message, from `begin_lsn` on (`xl_logical_message`).
fn logical_message(acceptor: &Acceptor, request: &Request) -> Bytes {
    let mut data = BytesMut::new();
    data.put_u32_le(0);
    data.put_u32_le(0);
    data.put_u64_le(request.lm_prefix.len() as u64 + 1);
    data.put_u64_le(request.lm_message.len() as u64);
    data.put_slice(request.lm_prefix.as_bytes());
    data.put_u8(0);
    data.put_slice(request.lm_message.as_bytes());
    let begin = Lsn(request.begin_lsn);
    let previous = acceptor.last_record_start().filter(|previous| *previous < begin);
    let identity = WalIdentity {
        system_id: acceptor.control().server.system_id,
        segment_size: acceptor.control().server.wal_seg_size as usize,
    };
    let mut writer = WalWriter::new(identity, begin.align_up(), previous.unwrap_or_default());
    writer.append(DecodedRecord {
        header: RecordHeader {
            rmid: RM_LOGICALMSG_ID,
            ..RecordHeader::default()
        },
        blocks: Default::default(),
        main_data: data.freeze(),
        origin_id: 0,
        toplevel_xid: None,
    });
    writer.take().into()
}

fn show_answer(answer: &AppendResponse) -> AppendAnswer {
    AppendAnswer {
        term: answer.term.0,
        flush_lsn: answer.flush_lsn.0,
        commit_lsn: answer.commit_lsn.0,
        hs_feedback: dump_standby_feedback(&answer.hs_feedback),
        pageserver_feedback: dump_pageserver_feedback(&answer.pageserver_feedback.unwrap_or_default()),
    }
}
