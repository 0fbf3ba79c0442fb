//! The client against a real PostgreSQL: authentication, queries, COPY, physical replication.

// Clippy knows that unit tests may unwrap, but not that everything in this file is a test.
#![allow(clippy::unwrap_used)]

use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use postgres_client::{Client, Config, Error, Host, Replication};
use pq_proto::replication::{ReplicationMessage, StandbyMessage};

/// A cluster of its own, stopped and removed when dropped.
struct Cluster {
    directory: tempfile::TempDir,
    port: u16,
}

fn bin(name: &str) -> PathBuf {
    let output = Command::new("pg_config").arg("--bindir").output();
    let directory = match output {
        Ok(output) if output.status.success() => String::from_utf8(output.stdout).unwrap().trim().to_owned(),
        _ => "/usr/lib/postgresql/15/bin".to_owned(),
    };
    Path::new(&directory).join(name)
}

/// A command of the server's, as an account that may run it.
fn command(name: &str) -> Command {
    let id = |option: &str| {
        let output = Command::new("id").args([option, "postgres"]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let own = Command::new("id").arg("-u").output().unwrap().stdout;
    if own.starts_with(b"0\n") {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &id("-u"), "--regid", &id("-g"), "--clear-groups"]);
        command.arg(bin(name));
        return command;
    }
    Command::new(bin(name))
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
}

impl Cluster {
    fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let data = directory.path().join("data");
        std::fs::create_dir(&data).unwrap();
        if let Ok(output) = Command::new("id").args(["-u", "postgres"]).output()
            && let Ok(uid) = String::from_utf8(output.stdout).unwrap().trim().parse()
        {
            // Fails, and need not succeed, for any account but root.
            let _ = chown(&data, Some(uid), None);
            let _ = chown(directory.path(), Some(uid), None);
        }
        run(command("initdb")
            .args(["-N", "-A", "trust", "-U", "boss", "-D"])
            .arg(&data));
        let hba = "local all all trust\nhost all scram 127.0.0.1/32 scram-sha-256\n\
                   host all md5 127.0.0.1/32 md5\nhost all clear 127.0.0.1/32 password\n\
                   local replication all trust\n";
        std::fs::write(data.join("pg_hba.conf"), hba).unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap()
            .port();
        let options = format!(
            "-p {port} -k {} -c listen_addresses=127.0.0.1 -F",
            directory.path().display()
        );
        run(command("pg_ctl")
            .args(["start", "-w", "-o", &options, "-l"])
            .arg(data.join("log"))
            .arg("-D")
            .arg(&data));
        Cluster { directory, port }
    }

    fn local(&self) -> Config {
        let host = Host::Unix(self.directory.path().to_owned());
        let mut config = Config::new(host, self.port, "boss");
        config.dbname = Some("postgres".into());
        config
    }

    fn tcp(&self, user: &str, password: &str) -> Config {
        format!("postgresql://{user}:{password}@127.0.0.1:{}/postgres", self.port)
            .parse()
            .unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let data = self.directory.path().join("data");
        run(command("pg_ctl")
            .args(["stop", "-w", "-m", "immediate", "-D"])
            .arg(&data));
    }
}

async fn check_authentication(cluster: &Cluster, client: &mut Client) {
    for (user, encryption) in [
        ("scram", "scram-sha-256"),
        ("md5", "md5"),
        ("clear", "scram-sha-256"),
    ] {
        let create =
            format!("set password_encryption = '{encryption}'; create role {user} login password 'secret'");
        client.query(&create).await.unwrap();
        let mut connected = cluster.tcp(user, "secret").connect().await.unwrap();
        let result = connected.query("select current_user as me").await.unwrap();
        assert_eq!(result.first("me"), Some(user));
        let refused = cluster.tcp(user, "wrong").connect().await.unwrap_err();
        assert_eq!(refused.server_error().unwrap().code, "28P01", "{refused}");
        let without = cluster.tcp(user, "").connect().await.unwrap_err();
        assert!(matches!(without, Error::Authentication(_)), "{without}");
    }
}

async fn check_copy(client: &mut Client) {
    client.query("create table t (a int, b text)").await.unwrap();
    let mut copy = client.copy_in("copy t from stdin").await.unwrap();
    for number in 0..1000 {
        copy.send(format!("{number}\trow {number}\n").as_bytes())
            .await
            .unwrap();
    }
    copy.finish().await.unwrap();
    let mut copy = client.copy_in("copy t from stdin").await.unwrap();
    copy.send(b"1\tnever\n").await.unwrap();
    let error = copy.abort("changed my mind").await.unwrap_err();
    assert!(error.to_string().contains("changed my mind"), "{error}");
    let mut copy = client.copy_out("copy t to stdout").await.unwrap();
    let mut text = Vec::new();
    while let Some(piece) = copy.next().await.unwrap() {
        text.extend_from_slice(&piece);
    }
    assert_eq!(text.iter().filter(|byte| **byte == b'\n').count(), 1000);
    let sum = client
        .query("select sum(a), count(*) from t; select sum(a) as sum from t")
        .await
        .unwrap();
    assert_eq!((sum.first("sum"), sum.tag.as_str()), (Some("499500"), "SELECT 1"));
}

async fn check_replication(cluster: &Cluster, client: &mut Client) {
    let mut config = cluster.local();
    config.dbname = None;
    config.replication = Some(Replication::Physical);
    let mut sender = config.connect().await.unwrap();
    let system = sender.query("IDENTIFY_SYSTEM").await.unwrap();
    let start: utils::lsn::Lsn = system.first("xlogpos").unwrap().parse().unwrap();
    let command = format!("START_REPLICATION PHYSICAL {start}");
    let (mut reader, mut writer) = sender.copy_both(&command).await.unwrap();
    client.query("create table replicated (a int)").await.unwrap();
    let end = client
        .query("select pg_current_wal_flush_lsn() as lsn")
        .await
        .unwrap();
    let end: utils::lsn::Lsn = end.first("lsn").unwrap().parse().unwrap();
    let mut received = start;
    while received < end {
        let payload = reader.next().await.unwrap().expect("WAL up to the end");
        if let ReplicationMessage::XLogData { start, wal, .. } = ReplicationMessage::parse(payload).unwrap() {
            assert_eq!(start, received, "WAL without gaps");
            received += wal.len() as u64;
        }
    }
    let update = StandbyMessage::StatusUpdate {
        write: received,
        flush: received,
        apply: received,
        time: 0,
        reply_requested: false,
    };
    writer.put(|out| update.encode(out));
    writer.flush().await.unwrap();
    for _ in 0..100 {
        let position = client
            .query("select flush_lsn from pg_stat_replication")
            .await
            .unwrap();
        if position.first("flush_lsn") == Some(received.to_string().as_str()) {
            writer.finish().await.unwrap();
            while reader.next().await.unwrap().is_some() {}
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("the server never heard of {received}");
}

#[tokio::test]
async fn everything_against_a_real_server() {
    let cluster = Cluster::start();
    let mut client = cluster.local().connect().await.unwrap();
    assert!(client.parameter("server_version").unwrap().starts_with("15"));
    check_authentication(&cluster, &mut client).await;
    check_copy(&mut client).await;
    check_replication(&cluster, &mut client).await;
    let error = client.query("select 1/0").await.unwrap_err();
    assert_eq!(error.server_error().unwrap().code, "22012");
}
