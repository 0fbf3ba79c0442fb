use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;
use utils::id::{NodeId, TenantId, TimelineId};

use super::*;

fn lsn() -> impl Strategy<Value = Lsn> {
    any::<u64>().prop_map(Lsn)
}

fn term() -> impl Strategy<Value = Term> {
    any::<u64>().prop_map(Term)
}

fn history() -> impl Strategy<Value = TermHistory> {
    prop::collection::vec((1u64..1000, 0u64..1 << 40), 0..20).prop_map(|steps| {
        let mut history = TermHistory::default();
        let (mut term, mut lsn) = (0, 0);
        for (more_term, more_lsn) in steps {
            term += more_term;
            lsn += more_lsn;
            let entry = TermLsn {
                term: Term(term),
                lsn: Lsn(lsn),
            };
            history.push(entry).unwrap();
        }
        history
    })
}

fn feedback() -> impl Strategy<Value = PageserverFeedback> {
    (any::<u64>(), lsn(), lsn(), lsn(), any::<i64>()).prop_map(|(size, write, flush, apply, time)| {
        PageserverFeedback {
            current_timeline_size: size,
            ps_writelsn: write,
            ps_flushlsn: flush,
            ps_applylsn: apply,
            ps_replytime: time,
        }
    })
}

fn greeting() -> impl Strategy<Value = ProposerMessage> {
    let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 16]>());
    (any::<u32>(), any::<u64>(), ids, any::<u32>(), any::<u32>()).prop_map(
        |(pg_version, system_id, (proposer, timeline, tenant), pg_timeline, wal_seg_size)| {
            ProposerMessage::Greeting(ProposerGreeting {
                pg_version,
                proposer_id: ProposerId(proposer),
                system_id,
                timeline_id: TimelineId::from(timeline),
                tenant_id: TenantId::from(tenant),
                pg_timeline,
                wal_seg_size,
            })
        },
    )
}

fn append() -> impl Strategy<Value = ProposerMessage> {
    let lsns = (0..1u64 << 60, lsn(), lsn(), lsn());
    let wal = prop::collection::vec(any::<u8>(), 0..300);
    (term(), lsns, any::<[u8; 16]>(), wal).prop_map(|(term, (begin, epoch, commit, truncate), id, wal)| {
        ProposerMessage::Append(AppendRequest {
            term,
            epoch_start_lsn: epoch,
            begin_lsn: Lsn(begin),
            commit_lsn: commit,
            truncate_lsn: truncate,
            proposer_id: ProposerId(id),
            wal: wal.into(),
        })
    })
}

fn proposer_message() -> impl Strategy<Value = ProposerMessage> {
    let vote = (term(), any::<[u8; 16]>()).prop_map(|(term, id)| {
        ProposerMessage::VoteRequest(VoteRequest {
            term,
            proposer_id: ProposerId(id),
        })
    });
    let elected = (term(), lsn(), history(), lsn()).prop_map(|(term, at, history, start)| {
        ProposerMessage::Elected(ProposerElected {
            term,
            start_streaming_at: at,
            term_history: history,
            timeline_start_lsn: start,
        })
    });
    prop_oneof![greeting(), vote, elected, append()]
}

fn acceptor_message() -> impl Strategy<Value = AcceptorMessage> {
    let greeting = (term(), any::<u64>()).prop_map(|(term, id)| {
        AcceptorMessage::Greeting(AcceptorGreeting {
            term,
            node_id: NodeId(id),
        })
    });
    let vote = (term(), any::<bool>(), lsn(), lsn(), history(), lsn()).prop_map(
        |(term, vote_given, flush, truncate, history, start)| {
            AcceptorMessage::VoteResponse(VoteResponse {
                term,
                vote_given,
                flush_lsn: flush,
                truncate_lsn: truncate,
                term_history: history,
                timeline_start_lsn: start,
            })
        },
    );
    let standby = (any::<i64>(), any::<u64>(), any::<u64>());
    let append = (term(), lsn(), lsn(), standby, prop::option::of(feedback())).prop_map(
        |(term, flush, commit, (ts, xmin, catalog_xmin), feedback)| {
            AcceptorMessage::AppendResponse(AppendResponse {
                term,
                flush_lsn: flush,
                commit_lsn: commit,
                hs_feedback: HotStandbyFeedback {
                    ts,
                    xmin,
                    catalog_xmin,
                },
                pageserver_feedback: feedback,
            })
        },
    );
    prop_oneof![greeting, vote, append]
}

fn encoded(message: &ProposerMessage) -> Bytes {
    let mut out = BytesMut::new();
    message.encode(&mut out);
    out.freeze()
}

fn encoded_answer(message: &AcceptorMessage) -> Bytes {
    let mut out = BytesMut::new();
    message.encode(&mut out);
    out.freeze()
}

/// Random bytes behind a tag that exists, so that the fields are reached.
fn garbage() -> impl Strategy<Value = Bytes> {
    let tag = prop::sample::select(b"gvea\0z".to_vec());
    (tag, prop::collection::vec(any::<u8>(), 0..200)).prop_map(|(tag, bytes)| {
        let mut raw = BytesMut::new();
        raw.put_u64_le(u64::from(tag));
        raw.put_slice(&bytes);
        raw.freeze()
    })
}

proptest! {
    #[test]
    fn proposer_round_trip(message in proposer_message()) {
        prop_assert_eq!(ProposerMessage::decode(encoded(&message)), Ok(message));
    }

    #[test]
    fn acceptor_round_trip(message in acceptor_message()) {
        prop_assert_eq!(AcceptorMessage::decode(encoded_answer(&message)), Ok(message));
    }

    #[test]
    fn proposer_message_of_wrong_length(message in proposer_message(), cut in any::<prop::sample::Index>()) {
        let raw = encoded(&message);
        prop_assert!(ProposerMessage::decode(raw.slice(..cut.index(raw.len()))).is_err());
        let longer = [&raw[..], &[0]].concat();
        prop_assert!(ProposerMessage::decode(longer.into()).is_err());
    }

    #[test]
    fn acceptor_message_of_wrong_length(message in acceptor_message(), cut in any::<prop::sample::Index>()) {
        let raw = encoded_answer(&message);
        let shorter = cut.index(raw.len());
        // A response without feedback is a message too.
        let is_append = matches!(message, AcceptorMessage::AppendResponse(_));
        if !(is_append && shorter == AppendResponse::FIXED_LEN) {
            prop_assert!(AcceptorMessage::decode(raw.slice(..shorter)).is_err());
        }
        // Behind a response without feedback, a 0 would be feedback of no pairs.
        let longer = [&raw[..], &[1]].concat();
        prop_assert!(AcceptorMessage::decode(longer.into()).is_err());
    }

    #[test]
    fn random_bytes_never_panic(raw in garbage()) {
        if let Ok(message) = ProposerMessage::decode(raw.clone()) {
            prop_assert_eq!(encoded(&message), raw.clone());
        }
        let _ = AcceptorMessage::decode(raw.clone());
        let _ = PageserverFeedback::decode(&raw);
    }

    #[test]
    fn feedback_skips_unknown_keys(known in feedback(), key in "[a-z_]{1,20}x", value in prop::collection::vec(any::<u8>(), 0..20)) {
        let mut raw = BytesMut::new();
        known.encode(&mut raw);
        raw[0] += 1;
        raw.put_slice(key.as_bytes());
        raw.put_u8(0);
        raw.put_i32(value.len() as i32);
        raw.put_slice(&value);
        prop_assert_eq!(PageserverFeedback::decode(&raw), Ok(known));
    }

    #[test]
    fn standby_feedback_round_trip(ts in any::<i64>(), xmin in any::<u64>(), catalog_xmin in any::<u64>()) {
        let feedback = HotStandbyFeedback { ts, xmin, catalog_xmin };
        prop_assert_eq!(HotStandbyFeedback::decode_standby(&feedback.encode_standby()), Ok(feedback));
        prop_assert!(HotStandbyFeedback::decode_standby(&feedback.encode_standby()[1..]).is_err());
    }
}

/// The layout byte for byte: a round trip alone would not notice two fields changing places.
#[test]
fn layout_of_append_request() {
    let raw = encoded(&ProposerMessage::Append(AppendRequest {
        term: Term(1),
        epoch_start_lsn: Lsn(2),
        begin_lsn: Lsn(3),
        commit_lsn: Lsn(5),
        truncate_lsn: Lsn(6),
        proposer_id: ProposerId([7; 16]),
        wal: Bytes::from_static(b"x"),
    }));
    let numbers: Vec<u64> = raw[..56]
        .chunks_exact(8)
        .map(|number| u64::from_le_bytes(number.try_into().unwrap()))
        .collect();
    assert_eq!(numbers, [u64::from(b'a'), 1, 2, 3, 4, 5, 6]);
    assert_eq!(&raw[56..72], &[7; 16]);
    assert_eq!(&raw[72..], b"x");
}

#[test]
fn layout_of_greeting() {
    let raw = encoded(&ProposerMessage::Greeting(ProposerGreeting {
        pg_version: 150_004,
        proposer_id: ProposerId([1; 16]),
        system_id: 2,
        timeline_id: TimelineId::from([3; 16]),
        tenant_id: TenantId::from([4; 16]),
        pg_timeline: 1,
        wal_seg_size: 0x100_0000,
    }));
    let mut want = b"g\0\0\0\0\0\0\0\x02\0\0\0".to_vec();
    want.extend(150_004u32.to_le_bytes());
    want.extend([1; 16]);
    want.extend(2u64.to_le_bytes());
    want.extend([3; 16]);
    want.extend([4; 16]);
    want.extend(1u32.to_le_bytes());
    want.extend(0x100_0000u32.to_le_bytes());
    assert_eq!(raw, want);
    assert_eq!(raw.len(), ProposerGreeting::LEN);

    let mut other_version = raw.to_vec();
    other_version[8] = 3;
    assert_eq!(
        ProposerMessage::decode(other_version.into()),
        Err(DecodeError::ProtocolVersion(3))
    );
}

#[test]
fn layout_of_feedback() {
    let mut raw = BytesMut::new();
    let feedback = PageserverFeedback {
        current_timeline_size: 1,
        ps_writelsn: Lsn(2),
        ps_flushlsn: Lsn(3),
        ps_applylsn: Lsn(4),
        ps_replytime: 5,
    };
    feedback.encode(&mut raw);
    assert_eq!(&raw[..27], b"\x05current_timeline_size\0\0\0\0\x08");
    assert_eq!(&raw[27..35], &1u64.to_be_bytes());
    assert_eq!(&raw[35..47], b"ps_writelsn\0");
    assert_eq!(PageserverFeedback::decode(&raw), Ok(feedback));
}

#[test]
fn giant_lengths_are_refused_without_memory() {
    let mut elected = BytesMut::new();
    elected.put_u64_le(u64::from(b'e'));
    elected.put_u64_le(1);
    elected.put_u64_le(1);
    elected.put_u32_le(u32::MAX);
    assert!(matches!(
        ProposerMessage::decode(elected.freeze()),
        Err(DecodeError::History {
            source: TermHistoryError::TooLong(_),
            ..
        })
    ));

    let mut append = BytesMut::new();
    append.put_u64_le(u64::from(b'a'));
    for number in [1, 0, 0, APPEND_WAL_BYTES_MAX as u64 + 1, 0, 0, 0, 0] {
        append.put_u64_le(number);
    }
    append.put_bytes(0, APPEND_WAL_BYTES_MAX + 1);
    assert!(matches!(
        ProposerMessage::decode(append.freeze()),
        Err(DecodeError::AppendRange { .. })
    ));
}
