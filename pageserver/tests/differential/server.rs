//! A stock PostgreSQL server on a data directory in a temporary place, reachable through a unix socket there.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::unistd::{Gid, Uid, User, chown};
use postgres_ffi::v15::control_file::ControlFile;
use utils::lsn::Lsn;

pub const BIN_DIR: &str = "/usr/lib/postgresql/15/bin";
pub const ACCOUNT: &str = "postgres";
pub const SUPERUSER: &str = "cloud_admin";

/// The account that servers run as; none if this process is not root.
fn account() -> Option<(Uid, Gid)> {
    Uid::effective().is_root().then(|| {
        let user = User::from_name(ACCOUNT)
            .unwrap()
            .expect("PostgreSQL's package makes its account");
        (user.uid, user.gid)
    })
}

/// Gives a directory and all in it to the account that servers run as.
fn hand_over(path: &Path) {
    let Some((uid, gid)) = account() else { return };
    chown(path, Some(uid), Some(gid)).unwrap();
    if path.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            hand_over(&entry.unwrap().path());
        }
    }
}

fn command(program: &str) -> Command {
    let mut command = Command::new(Path::new(BIN_DIR).join(program));
    if let Some((uid, gid)) = account() {
        command.uid(uid.as_raw()).gid(gid.as_raw());
    }
    command.current_dir("/").env("LC_ALL", "C").stdin(Stdio::null());
    command
}

fn check(output: Output, what: &str) -> String {
    let text = |raw: &[u8]| String::from_utf8_lossy(raw).into_owned();
    assert!(
        output.status.success(),
        "{what}: {}\n{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// A data directory, and the server on it while it runs.
pub struct Server {
    home: PathBuf,
    running: bool,
}

impl Server {
    /// Unpacks a base backup into `home`/data, and configures it.
    pub fn unpack(home: PathBuf, archive: &[u8], settings: &str) -> Self {
        let server = Server { home, running: false };
        std::fs::create_dir(&server.home).unwrap();
        tar::Archive::new(archive).unpack(server.pgdata()).unwrap();
        let socket_directory = server.home.display();
        let settings = format!(
            "listen_addresses = ''\nunix_socket_directories = '{socket_directory}'\nfsync = off\n\
             wal_keep_size = 4GB\nmax_prepared_transactions = 10\nshared_buffers = 32MB\nstatement_timeout = '30s'\nlog_min_messages = warning\n{settings}\n"
        );
        std::fs::write(server.pgdata().join("postgresql.conf"), settings).unwrap();
        hand_over(&server.home);
        std::fs::set_permissions(
            server.pgdata(),
            std::os::unix::fs::PermissionsExt::from_mode(0o700),
        )
        .unwrap();
        server
    }

    pub fn pgdata(&self) -> PathBuf {
        self.home.join("data")
    }

    pub fn start(&mut self) {
        let log = self.home.join("log");
        let mut start = command("pg_ctl");
        start
            .args(["-w", "-t", "60", "start", "-D"])
            .arg(self.pgdata())
            .arg("-l")
            .arg(&log);
        // The server inherits the pipes: it must not keep them open.
        let status = start
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        assert!(
            status.success(),
            "{}",
            std::fs::read_to_string(&log).unwrap_or_default()
        );
        self.running = true;
    }

    /// Shuts down, which writes everything to disk.
    pub fn stop(&mut self) {
        let mut stop = command("pg_ctl");
        stop.args(["-w", "-m", "fast", "stop", "-D"]).arg(self.pgdata());
        check(stop.output().unwrap(), "pg_ctl stop");
        self.running = false;
    }

    fn client(&self, program: &str) -> Command {
        let mut client = command(program);
        client
            .arg("-h")
            .arg(&self.home)
            .args(["-U", SUPERUSER])
            .env("PGDATABASE", "postgres");
        client
    }

    /// Runs a script; gives what it selects, unaligned.
    pub fn psql(&self, database: &str, script: &str) -> String {
        let mut psql = self.client("psql");
        psql.args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            database,
            "-f",
            "-",
        ]);
        let mut child = psql
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
        check(child.wait_with_output().unwrap(), script)
    }

    /// Runs a pgbench script with four clients.
    pub fn pgbench(&self, script: &str, transactions: u32) {
        let path = self.home.join("bench.sql");
        std::fs::write(&path, script).unwrap();
        let mut pgbench = self.client("pgbench");
        pgbench.args([
            "-n",
            "-c",
            "4",
            "-j",
            "2",
            "--max-tries=20",
            "-t",
            &transactions.to_string(),
            "-f",
        ]);
        check(pgbench.arg(path).arg("postgres").output().unwrap(), "pgbench");
    }

    /// All databases as SQL, but for unlogged tables, which are reset, the positions of sequences, which may skip ahead, and
    /// the random keys in pg_dump's own commands.
    pub fn dump(&self) -> Vec<String> {
        let mut pg_dumpall = self.client("pg_dumpall");
        let dump = check(
            pg_dumpall.arg("--no-unlogged-table-data").output().unwrap(),
            "pg_dumpall",
        );
        let varies = |line: &str| {
            ["\\restrict", "\\unrestrict", "SELECT pg_catalog.setval"]
                .iter()
                .any(|start| line.starts_with(start))
        };
        dump.lines()
            .filter(|line| !varies(line))
            .map(str::to_owned)
            .collect()
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.home.join("log")).unwrap()
    }

    pub fn control_file(&self) -> ControlFile {
        ControlFile::from_file(&std::fs::read(self.pgdata().join("global/pg_control")).unwrap()).unwrap()
    }

    /// A base backup as `pg_basebackup` makes it of a running server, without WAL: a tar archive and where its WAL starts.
    pub fn pg_basebackup(&self) -> (Vec<u8>, Lsn) {
        let target = self.home.join("basebackup");
        let mut backup = self.client("pg_basebackup");
        backup
            .args(["-F", "tar", "-X", "none", "-c", "fast", "--no-manifest", "-D"])
            .arg(&target);
        check(backup.output().unwrap(), "pg_basebackup");
        let archive = std::fs::read(target.join("base.tar")).unwrap();
        let mut tar = tar::Archive::new(&archive[..]);
        let mut label = String::new();
        let is_label = |entry: &tar::Entry<'_, _>| entry.path().unwrap().ends_with("backup_label");
        let mut entry = tar.entries().unwrap().map(Result::unwrap).find(is_label).unwrap();
        entry.read_to_string(&mut label).unwrap();
        let start = label
            .strip_prefix("START WAL LOCATION: ")
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        (archive.clone(), start.parse().unwrap())
    }

    /// The segment files from the one that holds `start` on, as a tar archive.
    pub fn wal_archive(&self, start: Lsn) -> Vec<u8> {
        let mut archive = tar::Builder::new(Vec::new());
        for number in start.segment_number(16 * 1024 * 1024).. {
            let name = pageserver::import::path::wal_segment_name(number);
            let path = self.pgdata().join("pg_wal").join(&name);
            if !path.exists() {
                break;
            }
            archive.append_path_with_name(path, name).unwrap();
        }
        archive.into_inner().unwrap()
    }

    /// The WAL from `start` to the end of the last segment file.
    pub fn wal_from(&self, start: Lsn) -> Vec<u8> {
        let segment = 16 * 1024 * 1024;
        let mut wal = Vec::new();
        for number in start.segment_number(segment).. {
            let name = pageserver::import::path::wal_segment_name(number);
            let Ok(bytes) = std::fs::read(self.pgdata().join("pg_wal").join(name)) else {
                break;
            };
            wal.extend_from_slice(&bytes);
        }
        wal.split_off(start.segment_offset(segment))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.running {
            let mut stop = command("pg_ctl");
            let _ = stop
                .args(["-m", "immediate", "stop", "-D"])
                .arg(self.pgdata())
                .output();
        }
    }
}
