//! A throw-away PostgreSQL server from the installed binaries, and its WAL.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use postgres_ffi::v15::WAL_SEGMENT_SIZE;
use postgres_ffi::v15::wal_file::SegmentName;
use tempfile::TempDir;
use utils::lsn::Lsn;

/// What `pg_config` says, such as for `--bindir`.
pub fn pg_config(option: &str) -> PathBuf {
    let output = Command::new("pg_config")
        .arg(option)
        .output()
        .expect("pg_config must be there: install postgresql-server-dev-15");
    let value = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && !value.trim().is_empty(),
        "pg_config {option}: {:?}",
        output.status
    );
    PathBuf::from(value.trim())
}

/// User and group of the `postgres` account when we are root, which PostgreSQL refuses to run as.
fn account() -> Option<(u32, u32)> {
    let id = |option: &str, name: Option<&str>| {
        let output = Command::new("id").arg(option).args(name).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        text.trim()
            .parse::<u32>()
            .expect("a postgres account is needed to test as root")
    };
    (id("-u", None) == 0).then(|| (id("-u", Some("postgres")), id("-g", Some("postgres"))))
}

/// A cluster in a temporary directory, reachable through a socket in it only.
pub struct Cluster {
    directory: TempDir,
    account: Option<(u32, u32)>,
    running: bool,
}

impl Cluster {
    /// Runs `initdb` and appends `settings` to the configuration.
    pub fn create(settings: &str) -> Self {
        let directory = tempfile::Builder::new()
            .prefix("pgffi")
            .tempdir_in("/tmp")
            .unwrap();
        let account = account();
        if let Some((user, group)) = account {
            chown(directory.path(), Some(user), Some(group)).unwrap();
        }
        let cluster = Self {
            directory,
            account,
            running: false,
        };
        cluster.run(
            "initdb",
            &[
                "-D",
                cluster.data().to_str().unwrap(),
                "-U",
                "test",
                "-A",
                "trust",
                "-N",
                "--no-locale",
            ],
        );
        let common = "listen_addresses = ''\nfsync = off\nautovacuum = off\nwal_keep_size = 4GB\n";
        let socket = format!(
            "unix_socket_directories = '{}'\n",
            cluster.directory.path().display()
        );
        let path = cluster.data().join("postgresql.conf");
        let config = fs::read_to_string(&path).unwrap();
        fs::write(path, [&config, common, &socket, settings].concat()).unwrap();
        cluster
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    fn output(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(pg_config("--bindir").join(program));
        command.args(arguments).current_dir(self.directory.path());
        if let Some((user, group)) = self.account {
            command.uid(user).gid(group);
        }
        command
            .output()
            .unwrap_or_else(|error| panic!("{program}: {error}"))
    }

    /// Runs one of PostgreSQL's programs; gives its standard output.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.output(program, arguments);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}{}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            fs::read_to_string(self.log()).unwrap_or_default(),
        );
        String::from_utf8(output.stdout).unwrap()
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("log")
    }

    pub fn start(&mut self) {
        let (data, log) = (self.data(), self.log());
        // The server's output goes to the log; pg_ctl's own must not be inherited by the server.
        self.run(
            "pg_ctl",
            &[
                "-w",
                "-D",
                data.to_str().unwrap(),
                "-l",
                log.to_str().unwrap(),
                "start",
            ],
        );
        self.running = true;
    }

    pub fn stop(&mut self) {
        self.run(
            "pg_ctl",
            &["-w", "-m", "fast", "-D", self.data().to_str().unwrap(), "stop"],
        );
        self.running = false;
    }

    /// Runs SQL in one session; gives what it prints, unaligned.
    pub fn sql(&self, database: &str, sql: &str) -> String {
        self.psql(database, &["-At", "-c", sql])
    }

    /// Runs each line in a transaction of its own, in one session.
    pub fn sql_lines(&self, database: &str, sql: &str) {
        let path = self.directory.path().join("script.sql");
        fs::write(&path, sql).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        self.psql(database, &["-f", path.to_str().unwrap()]);
    }

    fn psql(&self, database: &str, what: &[&str]) -> String {
        let host = self.directory.path().to_str().unwrap();
        let connection = ["-h", host, "-U", "test", "-d", database];
        let settings = ["-X", "-q", "-v", "ON_ERROR_STOP=1"];
        self.run("psql", &[&settings[..], &connection, what].concat())
    }

    /// A file below the data directory, made readable for the server's account.
    pub fn write(&self, path: &str, contents: &[u8]) {
        let path = self.data().join(path);
        fs::write(&path, contents).unwrap();
        if let Some((user, group)) = self.account {
            chown(&path, Some(user), Some(group)).unwrap();
        }
    }

    /// Numbers of the segment files, ascending and without gaps.
    fn segments(&self) -> Vec<u64> {
        let mut segments: Vec<u64> = fs::read_dir(self.data().join("pg_wal"))
            .unwrap()
            .filter_map(|entry| SegmentName::parse(entry.unwrap().file_name().to_str()?, WAL_SEGMENT_SIZE))
            .map(|name| name.segment)
            .collect();
        segments.sort_unstable();
        assert!(
            segments.windows(2).all(|pair| pair[1] == pair[0] + 1),
            "a segment is missing: {segments:?}"
        );
        segments
    }

    /// All WAL there is, and the position of its first byte.
    pub fn wal(&self) -> (Lsn, Vec<u8>) {
        let segments = self.segments();
        let files = segments
            .iter()
            .map(|segment| fs::read(self.segment_path(*segment)).unwrap());
        let wal = files.collect::<Vec<_>>().concat();
        (Lsn(segments[0] * WAL_SEGMENT_SIZE as u64), wal)
    }

    pub fn segment_path(&self, segment: u64) -> PathBuf {
        let name = SegmentName { timeline: 1, segment };
        self.data().join("pg_wal").join(name.file_name(WAL_SEGMENT_SIZE))
    }

    /// Records as `pg_waldump` sees them, from `start` to the end of valid WAL.
    pub fn waldump(&self, start: Lsn) -> Vec<DumpedRecord> {
        // Named files, as it takes the segment size from whatever file it meets first: one without any WAL, perhaps.
        let first = self.segment_path(start.segment_number(WAL_SEGMENT_SIZE));
        let last = self.segment_path(*self.segments().last().unwrap());
        let files = [first.to_str().unwrap(), last.to_str().unwrap()];
        let output = self.output("pg_waldump", &["-s", &start.to_string(), files[0], files[1]]);
        // It ends with an error where the WAL ends.
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter_map(DumpedRecord::parse).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.running {
            let data = self.data();
            self.output(
                "pg_ctl",
                &["-m", "immediate", "-D", data.to_str().unwrap_or("."), "stop"],
            );
        }
    }
}

/// A line of `pg_waldump`'s output.
#[derive(Debug, Eq, PartialEq)]
pub struct DumpedRecord {
    pub rmgr: String,
    pub len: u32,
    pub xid: u32,
    pub start: Lsn,
    pub prev: Lsn,
    pub name: String,
}

impl DumpedRecord {
    fn parse(line: &str) -> Option<Self> {
        let field = |label: &str| {
            let rest = &line[line.find(label)? + label.len()..];
            rest.split([',', ' ']).find(|word| !word.is_empty())
        };
        let len = line.split_once('/')?.1.split_once('/')?.1;
        Some(Self {
            rmgr: field("rmgr:")?.to_owned(),
            len: len.split(',').next()?.trim().parse().ok()?,
            xid: field("tx:")?.parse().ok()?,
            start: field("lsn:")?.parse().ok()?,
            prev: field("prev")?.parse().ok()?,
            name: field("desc:")?.to_owned(),
        })
    }
}

/// Whether a path exists, for a clear message where it must.
pub fn must_exist(path: &Path, advice: &str) {
    assert!(path.exists(), "{} is missing: {advice}", path.display());
}
