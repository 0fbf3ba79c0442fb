//! A stock PostgreSQL whose synchronous standby is the program under test.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, Uid, User, chown};
use utils::id::TenantTimelineId;
use utils::lsn::Lsn;

const BIN: &str = "/usr/lib/postgresql/15/bin";
const WALPROPOSER: &str = env!("CARGO_BIN_EXE_walproposer");

/// PostgreSQL refuses to run as root.
fn as_postgres(mut command: Command) -> Command {
    if Uid::effective().is_root() {
        let user = User::from_name("postgres").unwrap().unwrap();
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
    }
    command
}

fn output(mut command: Command) -> String {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// A running server.
pub struct Postgres {
    _dir: tempfile::TempDir,
    pub data: PathBuf,
    port: u16,
    pub start_lsn: Lsn,
    system_id: String,
}

impl Postgres {
    /// A new cluster whose commits wait for `walproposer`.
    pub fn start(id: TenantTimelineId, safekeepers: &[String]) -> Postgres {
        let dir = tempfile::tempdir().unwrap();
        if Uid::effective().is_root() {
            let user = User::from_name("postgres").unwrap().unwrap();
            chown(dir.path(), Some(user.uid), Some(user.gid)).unwrap();
        }
        let data = dir.path().join("data");
        let mut initdb = as_postgres(Command::new(format!("{BIN}/initdb")));
        initdb
            .args(["-U", "cloud_admin", "-A", "trust", "--no-sync", "-D"])
            .arg(&data);
        output(initdb);

        let mut control = Command::new(format!("{BIN}/pg_controldata"));
        control.env("LC_ALL", "C").arg(&data);
        let control = output(control);
        let field = |name: &str| {
            let line = control.lines().find(|line| line.starts_with(name)).unwrap();
            line.split_once(':').unwrap().1.trim().to_owned()
        };
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let mut conf = OpenOptions::new()
            .append(true)
            .open(data.join("postgresql.conf"))
            .unwrap();
        write!(
            conf,
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = ''\n\
             fsync = off\nfull_page_writes = off\nrestart_after_crash = off\n\
             synchronous_standby_names = 'walproposer'\n\
             neon.tenant_id = '{}'\nneon.timeline_id = '{}'\nneon.safekeepers = '{}'\n\
             neon.safekeeper_reconnect_timeout = 100\n",
            id.tenant_id,
            id.timeline_id,
            safekeepers.join(",")
        )
        .unwrap();
        let postgres = Postgres {
            port,
            start_lsn: field("Latest checkpoint's REDO location").parse().unwrap(),
            system_id: field("Database system identifier"),
            _dir: dir,
            data,
        };
        postgres.pg_ctl(&["-w", "start"]);
        postgres
    }

    pub fn pg_ctl(&self, arguments: &[&str]) {
        let mut command = as_postgres(Command::new(format!("{BIN}/pg_ctl")));
        command
            .arg("-D")
            .arg(&self.data)
            .arg("-l")
            .arg(self.data.join("pg.log"))
            .args(arguments);
        // Not piped: the server would keep the pipe open.
        let status = command.stdout(Stdio::null()).status().unwrap();
        assert!(status.success(), "{command:?}");
    }

    /// Starts the program under test.
    pub fn walproposer(&self) -> Proposer {
        let connect = format!("host=127.0.0.1 port={} user=cloud_admin", self.port);
        let mut command = Command::new(WALPROPOSER);
        command
            .args(["--connect", &connect, "--start-lsn", &self.start_lsn.to_string()])
            .args(["--system-id", &self.system_id, "--pg-version", "150004"])
            .env("PGDATA", &self.data);
        Proposer::spawn(command)
    }

    fn psql(&self, sql: &str) -> Command {
        let mut command = Command::new(format!("{BIN}/psql"));
        let port = self.port.to_string();
        command
            .args([
                "-h",
                "127.0.0.1",
                "-p",
                &port,
                "-U",
                "cloud_admin",
                "-d",
                "postgres",
            ])
            .args(["-XqAt", "-v", "ON_ERROR_STOP=1", "-c", sql]);
        command
    }

    pub fn sql(&self, sql: &str) -> String {
        output(self.psql(sql)).trim().to_owned()
    }

    /// Starts a statement without waiting for it.
    pub fn sql_in_background(&self, sql: &str) -> Child {
        self.psql(sql).stdout(Stdio::null()).spawn().unwrap()
    }

    pub fn flush_lsn(&self) -> Lsn {
        self.sql("SELECT pg_current_wal_flush_lsn()").parse().unwrap()
    }

    /// The WAL of the segment that holds the start.
    pub fn first_segment(&self) -> Vec<u8> {
        let number = self.start_lsn.segment_number(16 << 20);
        std::fs::read(self.data.join(format!("pg_wal/00000001{:08X}{number:08X}", 0))).unwrap()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        let Ok(pid_file) = std::fs::read_to_string(self.data.join("postmaster.pid")) else {
            return;
        };
        let pid = pid_file.lines().next().unwrap().parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGQUIT).unwrap();
        wait_for("the server to end", || !self.data.join("postmaster.pid").exists());
    }
}

/// What `--sync-safekeepers` prints.
pub fn sync_safekeepers(data: &Path) -> String {
    let mut command = Command::new(WALPROPOSER);
    command.arg("--sync-safekeepers").env("PGDATA", data);
    output(command)
}

/// The program under test, running.
pub struct Proposer {
    child: Child,
    lines: BufReader<ChildStdout>,
}

impl Proposer {
    fn spawn(mut command: Command) -> Proposer {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        Proposer { child, lines }
    }

    /// The next line on standard output.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).unwrap();
        kill(Pid::from_raw(pid), signal).unwrap();
    }

    /// How often it has waited for something so far.
    pub fn waits(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        count.unwrap().trim().parse().unwrap()
    }

    pub fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Proposer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wait_for(what: &str, mut condition: impl FnMut() -> bool) {
    let give_up_at = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < give_up_at, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
