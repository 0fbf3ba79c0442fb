//! Bytes that no client should send: a clear error or a closed connection, and the daemon lives on.

use safekeeper_api::protocol::{ProposerMessage, Term, VoteRequest};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use utils::lsn::Lsn;

use crate::support::{Daemon, SEGMENT_SIZE, START, Wal, append, greeting, greeting_with, new_id};

/// Not random enough for anything else.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..len).map(|_| next()).collect()
}

#[tokio::test]
async fn random_bytes_on_every_port() {
    let mut daemon = Daemon::start(&["--no-sync"]).await;
    for port in [daemon.pg_port, daemon.http_port] {
        for seed in 0..40 {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
            let mut bytes = noise(seed, 1 + (seed as usize * 97) % 3000);
            if seed % 3 == 0 {
                // A length that is believed, and a protocol version.
                bytes.splice(0..0, [0, 0, 0, 60, 0, 3, 0, 0]);
            }
            let _ = stream.write_all(&bytes).await;
            let _ = stream.shutdown().await;
            let mut answer = Vec::new();
            let _ = stream.read_to_end(&mut answer).await;
        }
    }
    assert!(daemon.is_running());
    daemon.propose(new_id()).await;
}

#[tokio::test]
async fn messages_that_do_not_fit_are_refused_and_the_timeline_unharmed() {
    let mut daemon = Daemon::start(&["--no-sync"]).await;
    let id = new_id();
    let mut wal = Wal::new(START, SEGMENT_SIZE);
    let ends: Vec<Lsn> = (0..9).map(|_| wal.record(500)).collect();
    let mut proposer = daemon.propose(id).await;
    proposer.vote(3).await;
    proposer.elected(&[(3, START)], START).await;
    proposer
        .send(&[append(3, START, wal.slice(START, ends[5]), ends[4])])
        .await;
    proposer.ack().await;
    let before = daemon.status(id).await;

    let vote = ProposerMessage::VoteRequest(VoteRequest {
        term: Term(1),
        proposer_id: Default::default(),
    });
    let mut damaged = wal.slice(ends[5], ends[6]).to_vec();
    damaged[50] ^= 1;
    let other = new_id();
    for (first, then, want) in [
        (vote, None, "unexpected message VoteRequest instead of greeting"),
        (greeting(other), None, "invalid tenant ID"),
        (greeting_with(id, SEGMENT_SIZE * 2), None, "invalid wal_seg_size"),
        (
            greeting(id),
            Some(append(3, ends[6], wal.slice(ends[6], ends[7]), Lsn(0))),
            "creates gap",
        ),
        (
            greeting(id),
            Some(append(3, ends[4], wal.slice(ends[4], ends[6]), Lsn(0))),
            "rewrites WAL",
        ),
        (
            greeting(id),
            Some(append(4, ends[5], wal.slice(ends[5], ends[6]), Lsn(0))),
            "before ProposerElected",
        ),
        (
            greeting(id),
            Some(append(3, ends[5], damaged, Lsn(0))),
            "holds malformed WAL",
        ),
    ] {
        let mut proposer = daemon.propose_ungreeted(id).await;
        proposer.send(&[first]).await;
        if let Some(then) = then {
            proposer.send(&[then]).await;
        }
        let error = proposer.error().await;
        assert!(error.contains(want), "{error}");
    }
    // The last one made the end of the stream unknown until the next election; the WAL is as it was.
    assert_eq!(daemon.status(id).await, before);
    assert!(!daemon.timeline_dir(other).exists());
    let mut proposer = daemon.propose(id).await;
    assert_eq!(proposer.vote(4).await.flush_lsn, ends[5]);
    assert!(daemon.is_running());
}

#[tokio::test]
async fn malformed_messages_inside_the_stream() {
    let mut daemon = Daemon::start(&["--no-sync"]).await;
    let id = new_id();
    let giant_history = {
        let mut raw = vec![b'e', 0, 0, 0, 0, 0, 0, 0];
        raw.extend([1; 16]);
        raw.extend(u32::MAX.to_le_bytes());
        raw
    };
    let future_version = {
        let mut raw = bytes::BytesMut::new();
        greeting(id).encode(&mut raw);
        raw[8] = 3;
        raw.to_vec()
    };
    for (raw, want) in [
        (vec![], "malformed message"),
        (vec![0; 7], "malformed message"),
        (vec![b'?'; 30], "malformed message"),
        (giant_history, "malformed message"),
        (future_version, "incompatible protocol version"),
        (noise(5, 100_000), "malformed message"),
    ] {
        let mut proposer = daemon.propose_ungreeted(id).await;
        proposer.send_raw(&raw).await;
        let error = proposer.error().await;
        assert!(error.contains(want), "{error}");
        let mut proposer = daemon.propose(id).await;
        proposer.send_raw(&raw).await;
        let error = proposer.error().await;
        assert!(error.contains(want), "{error}");
    }
    assert!(daemon.is_running());
}
