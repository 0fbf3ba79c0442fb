//! A stock PostgreSQL standby that streams from a safekeeper.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use postgres_ffi::v15::stream::{Checksums, RecordEnds};
use utils::lsn::Lsn;

use crate::support::{Daemon, Wal, greeting_of, new_id};

const SEGMENT_SIZE: usize = 16 * 1024 * 1024;
const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Runs a program as an account that PostgreSQL accepts.
fn run(program: &str, args: &[&str]) -> Output {
    let is_root = Command::new("id").arg("-u").output().unwrap().stdout == b"0\n";
    let path = format!("{BIN}/{program}");
    let mut command = if is_root {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--", &path]);
        command
    } else {
        Command::new(path)
    };
    command.args(args).current_dir("/").output().unwrap()
}

#[track_caller]
fn run_ok(program: &str, args: &[&str]) -> String {
    let output = run(program, args);
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{program} {args:?}: {text}");
    String::from_utf8(output.stdout).unwrap()
}

/// A server that is stopped when dropped.
struct Server {
    dir: PathBuf,
    port: u16,
}

impl Server {
    fn start(dir: &Path) -> Self {
        let server = Server {
            dir: dir.to_owned(),
            port: std::net::TcpListener::bind("127.0.0.1:0")
                .unwrap()
                .local_addr()
                .unwrap()
                .port(),
        };
        let options = format!(
            "-p {} -c wal_keep_size=512 -c listen_addresses=127.0.0.1 -c unix_socket_directories=",
            server.port
        );
        let log = dir.join("log.txt");
        let dir = dir.to_str().unwrap();
        // Without a log file of its own the server would keep our pipe open.
        run_ok(
            "pg_ctl",
            &[
                "start",
                "-w",
                "-D",
                dir,
                "-o",
                &options,
                "-l",
                log.to_str().unwrap(),
            ],
        );
        server
    }

    fn sql(&self, text: &str) -> String {
        let url = format!("host=127.0.0.1 port={} dbname=postgres user=postgres", self.port);
        run_ok("psql", &["-XAtq", "-c", text, &url]).trim().to_owned()
    }

    fn stop(&self) {
        run(
            "pg_ctl",
            &["stop", "-m", "fast", "-w", "-D", self.dir.to_str().unwrap()],
        );
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn control_value(dir: &Path, name: &str) -> String {
    let text = run_ok("pg_controldata", &["-D", dir.to_str().unwrap()]);
    let line = text.lines().find(|line| line.starts_with(name)).unwrap();
    line.rsplit(' ').next().unwrap().to_owned()
}

/// The WAL of a stopped server from `start` on.
fn wal_of(dir: &Path, start: Lsn) -> Vec<u8> {
    let mut raw = Vec::new();
    for segno in start.segment_number(SEGMENT_SIZE).. {
        let Ok(segment) = std::fs::read(dir.join(format!("pg_wal/00000001{:016X}", segno))) else {
            break;
        };
        raw.extend(segment);
    }
    raw.drain(..start.segment_offset(SEGMENT_SIZE));
    let mut ends = RecordEnds::new(start, SEGMENT_SIZE, Checksums::Verify);
    let _the_end_is_an_error = ends.feed(&raw);
    raw.truncate((ends.last_end() - start) as usize);
    raw
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_standby_replays_what_a_safekeeper_streams() {
    let temp = tempfile::tempdir().unwrap();
    Command::new("chmod")
        .arg("777")
        .arg(temp.path())
        .status()
        .unwrap();
    let (primary, standby) = (temp.path().join("primary"), temp.path().join("standby"));
    let primary_text = primary.to_str().unwrap();
    run_ok(
        "initdb",
        &["-D", primary_text, "-A", "trust", "-U", "postgres", "--no-sync"],
    );
    Command::new("cp")
        .arg("-a")
        .arg(&primary)
        .arg(&standby)
        .status()
        .unwrap();
    let start: Lsn = control_value(&primary, "Latest checkpoint location:")
        .parse()
        .unwrap();
    assert!(
        start.segment_offset(SEGMENT_SIZE) > 8192,
        "the timeline starts in the middle of a segment"
    );

    let server = Server::start(&primary);
    server.sql("CREATE TABLE t AS SELECT g, repeat('x', 300) AS text FROM generate_series(1, 50000) g");
    let sum = server.sql("SELECT sum(g), count(*) FROM t");
    server.stop();
    let wal = Wal::from_bytes(start, wal_of(&primary, start));
    assert!(wal.bytes.len() > SEGMENT_SIZE, "the WAL spans segments");

    let daemon = Daemon::start(&["--no-sync"]).await;
    let id = new_id();
    let system_id: u64 = control_value(&primary, "Database system identifier:")
        .parse()
        .unwrap();
    let mut proposer = daemon.propose_ungreeted(id).await;
    proposer.send(&[greeting_of(id, SEGMENT_SIZE, system_id)]).await;
    proposer.receive().await;
    proposer.elected(&[(1, start)], start).await;
    for message in wal.appends(1, start, wal.end(), wal.end()) {
        proposer.send(&[message]).await;
        proposer.ack().await;
    }

    let conninfo = format!(
        "host=127.0.0.1 port={} user=postgres options=''-c timeline_id={} tenant_id={}''",
        daemon.pg_port, id.timeline_id, id.tenant_id
    );
    let settings = format!("\nprimary_conninfo = '{conninfo}'\nhot_standby = on\n");
    let config = standby.join("postgresql.conf");
    let old = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, old + &settings).unwrap();
    std::fs::write(standby.join("standby.signal"), "").unwrap();
    let follower = Server::start(&standby);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let end = wal.end();
    while follower.sql(&format!("SELECT pg_last_wal_replay_lsn() >= '{end}'")) != "t" {
        let log = std::fs::read_to_string(standby.join("log.txt")).unwrap();
        assert!(
            std::time::Instant::now() < deadline,
            "the standby does not catch up: {log}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(follower.sql("SELECT sum(g), count(*) FROM t"), sum);
}
