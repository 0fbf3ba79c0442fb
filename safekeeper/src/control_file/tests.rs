use proptest::prelude::*;
use safekeeper_api::protocol::{ProposerId, Term, TermHistory, TermLsn};
use utils::id::{NodeId, TenantId, TenantTimelineId, TimelineId};
use utils::lsn::Lsn;

use super::*;
use crate::acceptor::{PeerState, ServerInfo};

fn state() -> impl Strategy<Value = ControlState> {
    let history = prop::collection::vec((1u64..9, 0u64..1000), 0..6).prop_map(|steps| {
        let (mut term, mut lsn) = (0, 0);
        let entries = steps.into_iter().map(|(terms, bytes)| {
            (term, lsn) = (term + terms, lsn + bytes);
            TermLsn {
                term: Term(term),
                lsn: Lsn(lsn),
            }
        });
        TermHistory::new(entries.collect()).unwrap()
    });
    let peer = any::<[u64; 5]>().prop_map(|[id, backup, term, flush, commit]| {
        let peer = PeerState {
            backup_lsn: Lsn(backup),
            term: Term(term),
            flush_lsn: Lsn(flush),
            commit_lsn: Lsn(commit),
        };
        (NodeId(id), peer)
    });
    let ids = (any::<[u8; 16]>(), any::<[u8; 16]>(), any::<[u8; 16]>());
    let server = (any::<u32>(), any::<u64>(), any::<u32>());
    let lsns = any::<[u64; 6]>();
    (
        ids,
        any::<u64>(),
        history,
        server,
        lsns,
        prop::collection::vec(peer, 0..3),
    )
        .prop_map(
            |((tenant, timeline, proposer), term, term_history, server, lsns, peers)| ControlState {
                id: TenantTimelineId::new(tenant.into(), timeline.into()),
                term: Term(term),
                term_history,
                server: ServerInfo {
                    pg_version: server.0,
                    system_id: server.1,
                    wal_seg_size: server.2,
                },
                proposer_id: ProposerId(proposer),
                timeline_start_lsn: Lsn(lsns[0]),
                local_start_lsn: Lsn(lsns[1]),
                commit_lsn: Lsn(lsns[2]),
                backup_lsn: Lsn(lsns[3]),
                peer_horizon_lsn: Lsn(lsns[4]),
                remote_consistent_lsn: Lsn(lsns[5]),
                peers,
            },
        )
}

proptest! {
    #[test]
    fn round_trip(state in state()) {
        prop_assert_eq!(decode(&encode(&state)), Ok(state));
    }

    #[test]
    fn every_flipped_bit_is_found(state in state(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut raw = encode(&state);
        let at = at.index(raw.len());
        raw[at] ^= 1 << bit;
        let found = matches!(decode(&raw), Err(DecodeError::Checksum { .. }));
        prop_assert!(found);
    }

    #[test]
    fn every_truncation_is_found(state in state(), len in any::<prop::sample::Index>()) {
        let raw = encode(&state);
        prop_assert!(decode(&raw[..len.index(raw.len())]).is_err());
    }

    /// Damage that kept the checksum right, or a file of somebody else's.
    #[test]
    fn garbage_with_a_right_checksum_does_no_harm(version in 0u32..9, body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = decode(&sealed(version, &body));
    }
}

/// A file of `version` with this state, and a right checksum.
fn sealed(version: u32, state: &[u8]) -> Vec<u8> {
    let mut raw = MAGIC.to_le_bytes().to_vec();
    raw.extend(version.to_le_bytes());
    raw.extend(state);
    raw.extend(crc32c::crc32c(&raw).to_le_bytes());
    raw
}

const TENANT: &str = "cf0480929707ee75372337efaa5ecf96";
const TIMELINE: &str = "112ded66422aa5e953e5440fa5427ac4";
const PROPOSER: &str = "00112233445566778899aabbccddeeff";

/// Fields of a state, written as `u64 N`, `u32 N`, `hex ID` (a string), `raw ID` (16 bytes).
fn build(fields: &str) -> Vec<u8> {
    let mut raw = Vec::new();
    for field in fields.split(',') {
        let (kind, value) = field.trim().split_once(' ').unwrap();
        match kind {
            "u64" => raw.extend(value.parse::<u64>().unwrap().to_le_bytes()),
            "u32" => raw.extend(value.parse::<u32>().unwrap().to_le_bytes()),
            "hex" => {
                raw.extend(32u64.to_le_bytes());
                raw.extend(value.as_bytes());
            }
            "raw" => raw.extend(hex::decode(value).unwrap()),
            _ => panic!("{kind}"),
        }
    }
    raw
}

fn expected() -> ControlState {
    let tenant: TenantId = TENANT.parse().unwrap();
    let timeline: TimelineId = TIMELINE.parse().unwrap();
    let proposer: TenantId = PROPOSER.parse().unwrap();
    let entry = TermLsn {
        term: Term(42),
        lsn: Lsn(1000),
    };
    ControlState {
        term: Term(43),
        term_history: TermHistory::new(vec![entry]).unwrap(),
        server: ServerInfo {
            pg_version: 150_004,
            system_id: 0x1234,
            wal_seg_size: 0x100_0000,
        },
        proposer_id: ProposerId(proposer.as_bytes()),
        commit_lsn: Lsn(1_234_600),
        peer_horizon_lsn: Lsn(1_234_500),
        ..ControlState::empty(TenantTimelineId::new(tenant, timeline))
    }
}

const ACCEPTOR: &str = "u64 43, u64 1, u64 42, u64 1000";
const ACCEPTOR_1: &str = "u64 43, u64 42";
const SERVER: &str = "u32 150004, u64 4660";

#[test]
fn version_7_byte_for_byte() {
    let fields = format!(
        "hex {TENANT}, hex {TIMELINE}, {ACCEPTOR}, {SERVER}, u32 16777216, hex {PROPOSER}, \
         u64 1, u64 2, u64 1234600, u64 4, u64 1234500, u64 6, u64 1, u64 7, u64 8, u64 9, u64 10, u64 11"
    );
    let mut state = expected();
    state.timeline_start_lsn = Lsn(1);
    state.local_start_lsn = Lsn(2);
    state.backup_lsn = Lsn(4);
    state.remote_consistent_lsn = Lsn(6);
    let peer = PeerState {
        backup_lsn: Lsn(8),
        term: Term(9),
        flush_lsn: Lsn(10),
        commit_lsn: Lsn(11),
    };
    state.peers = vec![(NodeId(7), peer)];
    assert_eq!(encode(&state), sealed(7, &build(&fields)));
}

#[test]
fn older_versions_are_read() {
    let check = |version: u32, fields: String, change: &dyn Fn(&mut ControlState)| {
        let mut want = expected();
        change(&mut want);
        assert_eq!(
            decode(&sealed(version, &build(&fields))),
            Ok(want),
            "version {version}"
        );
    };
    let head = format!("hex {TENANT}, hex {TIMELINE}, {ACCEPTOR}");
    let tail = format!("u32 16777216, hex {PROPOSER}");
    let last = |server: &str| {
        format!("{head}, {server}, {tail}, u64 0, u64 0, u64 1234600, u64 0, u64 1234500, u64 0, u64 0")
    };
    check(6, last(SERVER), &|_| ());
    check(6, last("u32 0, u64 4660"), &|want| {
        want.server.pg_version = 140_005
    });
    check(5, last(SERVER), &|want| {
        want.timeline_start_lsn = Lsn(1);
        want.local_start_lsn = Lsn(1);
    });
    let four = format!("{head}, {SERVER}, {tail}, u64 1234600, u64 77, u64 1234500, u64 88, u64 0");
    check(4, four, &|_| ());
    let rest = "u64 1234600, u64 1234500, u64 99";
    let hex_ids = format!("hex {TENANT}, hex {TIMELINE}, u32 16777216, hex {PROPOSER}");
    check(3, format!("{ACCEPTOR}, {SERVER}, {hex_ids}, {rest}"), &|_| ());
    let raw_ids = format!("raw {TENANT}, raw {TIMELINE}, u32 16777216, raw {PROPOSER}");
    check(2, format!("{ACCEPTOR}, {SERVER}, {raw_ids}, {rest}"), &|_| ());
    check(1, format!("{ACCEPTOR_1}, {SERVER}, {raw_ids}, {rest}"), &|want| {
        let entry = TermLsn {
            term: Term(42),
            lsn: Lsn(0),
        };
        want.term_history = TermHistory::new(vec![entry]).unwrap();
    });
}

#[test]
fn other_releases_and_strangers_are_refused() {
    assert_eq!(decode(&sealed(8, b"")), Err(DecodeError::Version(8)));
    assert_eq!(decode(&sealed(0, b"")), Err(DecodeError::Version(0)));
    let mut raw = encode(&expected());
    raw[0] = 0;
    let body = raw.len() - 4;
    let checksum = crc32c::crc32c(&raw[..body]).to_le_bytes();
    raw[body..].copy_from_slice(&checksum);
    assert!(matches!(decode(&raw), Err(DecodeError::Magic(_))));
    assert!(decode(b"").is_err());
}

#[test]
fn a_damaged_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    store(dir.path(), &expected(), crate::Sync::Yes).unwrap();
    let path = dir.path().join(CONTROL_FILE_NAME);
    assert_eq!(load(&path).unwrap(), expected());
    let mut raw = std::fs::read(&path).unwrap();
    raw[20] ^= 1;
    std::fs::write(&path, raw).unwrap();
    let error = load(&path).unwrap_err();
    let chain = format!("{:#}", anyhow::Error::new(error));
    assert!(chain.contains("safekeeper.control"), "{chain}");
    assert!(
        chain.contains("safekeeper control file checksum mismatch"),
        "{chain}"
    );
}
