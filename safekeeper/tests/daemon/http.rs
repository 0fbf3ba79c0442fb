//! The management service, tokens, and the test aids.

use serde_json::json;
use utils::auth::{Claims, Scope, sign};
use utils::id::TenantId;
use utils::lsn::Lsn;

use crate::support::{Daemon, SEGMENT_SIZE, START, Wal, new_id, timeline_path};

#[tokio::test]
async fn timelines_are_created_reported_and_deleted() {
    let mut daemon = Daemon::start(&[]).await;
    let id = new_id();
    assert_eq!(daemon.get_json("/v1/status").await, json!({"id": 1}));
    let (status, text) = daemon.http("GET", &timeline_path(id), "").await;
    assert_eq!(
        (status, text),
        (
            404,
            json!({"msg": format!("NotFound: timeline {id} not found")}).to_string()
        )
    );
    let create = |pg_version: u32, more: &str| {
        format!(
            r#"{{"tenant_id": "{}", "timeline_id": "{}", "pg_version": {pg_version}, "commit_lsn": "0/1200028"{more}}}"#,
            id.tenant_id, id.timeline_id
        )
    };
    for (body, want) in [
        (
            create(0, ""),
            format!("Timeline {id} is not initialized, pg_version is unknown"),
        ),
        (
            create(150_004, r#", "wal_seg_size": 0"#),
            format!("Timeline {id} is not initialized, wal_seg_size is zero"),
        ),
        (
            create(150_004, r#", "local_start_lsn": 99999999"#),
            "commit_lsn 0/1200028 is higher than local_start_lsn 0/5F5E0FF".to_owned(),
        ),
    ] {
        let (status, text) = daemon.http("POST", "/v1/tenant/timeline", &body).await;
        assert_eq!((status, text), (500, json!({ "msg": want }).to_string()));
    }
    assert_eq!(daemon.http("POST", "/v1/tenant/timeline", "{").await.0, 400);
    for _ in 0..2 {
        let created = daemon
            .http("POST", "/v1/tenant/timeline", &create(150_004, ""))
            .await;
        assert_eq!(created, (200, "null".to_owned()));
    }
    daemon.restart("").await;
    let status = daemon.status(id).await;
    assert_eq!(status["commit_lsn"], "0/1200028");
    assert_eq!(status["flush_lsn"], "0/1200028");
    assert_eq!(status["local_start_lsn"], "0/1000000");
    assert_eq!(
        status["pg_info"],
        json!({"pg_version": 150_004, "system_id": 0, "wal_seg_size": 16 << 20})
    );
    assert_eq!(
        status["acceptor_state"],
        json!({"term": 0, "epoch": 0, "term_history": []})
    );

    let (status, text) = daemon.http("DELETE", &timeline_path(id), "{}").await;
    assert_eq!(
        (status, text),
        (400, json!({"msg": "Unexpected request body"}).to_string())
    );
    let gone = |existed| {
        (
            200,
            json!({"dir_existed": existed, "was_active": existed}).to_string(),
        )
    };
    assert_eq!(daemon.http("DELETE", &timeline_path(id), "").await, gone(true));
    assert!(!daemon.timeline_dir(id).exists());
    assert_eq!(daemon.http("DELETE", &timeline_path(id), "").await, gone(false));
    let (status, text) = daemon.http("GET", &timeline_path(id), "").await;
    assert_eq!(status, 500);
    assert!(
        text.contains("was cancelled and cannot be used anymore"),
        "{text}"
    );
    daemon.restart("").await;
    assert_eq!(daemon.http("GET", &timeline_path(id), "").await.0, 404);
}

#[tokio::test]
async fn deleting_a_tenant_ends_its_connections() {
    let daemon = Daemon::start(&[]).await;
    let (one, mut two) = (new_id(), new_id());
    two.tenant_id = one.tenant_id;
    let mut proposer = daemon.propose(one).await;
    daemon.propose(two).await;
    let (status, text) = daemon
        .http("DELETE", &format!("/v1/tenant/{}", one.tenant_id), "")
        .await;
    assert_eq!(status, 200);
    let deleted: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        deleted[one.timeline_id.to_string()],
        json!({"dir_existed": true, "was_active": true})
    );
    assert_eq!(deleted[two.timeline_id.to_string()]["dir_existed"], true);
    assert!(!daemon.timeline_dir(one).parent().unwrap().exists());
    let error = proposer.error().await;
    assert!(
        error.contains("was cancelled and cannot be used anymore"),
        "{error}"
    );
}

#[tokio::test]
async fn json_ctrl_dump_metrics_and_peers() {
    let daemon = Daemon::start(&[]).await;
    let id = new_id();
    let mut client = daemon.client(id).await;
    let mut begin = 0x16960E8;
    for i in 0..3 {
        let request = json!({
            "lm_prefix": "prefix", "lm_message": "message", "set_commit_lsn": true, "send_proposer_elected": i == 0,
            "term": 7, "epoch_start_lsn": 0x16960E8, "begin_lsn": begin, "truncate_lsn": begin, "pg_version": 150_004,
        });
        let answer = client.query(&format!("JSON_CTRL {request}")).await.unwrap();
        let answer: serde_json::Value = serde_json::from_str(answer.first("json").unwrap()).unwrap();
        assert_eq!(answer["state"]["acceptor_state"]["term"], 7);
        assert_eq!(answer["inserted_wal"]["begin_lsn"], begin);
        let response = &answer["inserted_wal"]["append_response"];
        assert_eq!(response["term"], 7);
        begin = answer["inserted_wal"]["end_lsn"].as_u64().unwrap();
        assert_eq!(response["flush_lsn"], begin);
    }
    let dump = daemon.get_json("/v1/debug_dump?dump_all=true").await;
    assert_eq!(dump["timelines_count"], 1);
    let timeline = &dump["timelines"][0];
    assert_eq!(
        timeline["control_file"]["acceptor_state"]["term_history"],
        json!([{"term": 7, "lsn": 0x16960E8}])
    );
    assert_eq!(timeline["memory"]["flush_lsn"], begin);
    assert_eq!(timeline["memory"]["mem_state"]["commit_lsn"], begin);
    let files = timeline["disk_content"]["files"].as_array().unwrap();
    assert!(
        files
            .iter()
            .any(|file| file["name"] == "000000010000000000000001.partial" && file["size"] == 16 << 20)
    );
    let (status, text) = daemon.http("GET", "/v1/debug_dump?x=1", "").await;
    assert_eq!(
        (status, text),
        (400, json!({"msg": "Unknown query parameter: x"}).to_string())
    );

    let (_, metrics) = daemon.http("GET", "/metrics", "").await;
    let labels = format!(
        "tenant_id=\"{}\",timeline_id=\"{}\"",
        id.tenant_id, id.timeline_id
    );
    for line in [
        format!("safekeeper_flush_lsn{{{labels}}} {begin}"),
        format!("safekeeper_acceptor_term{{{labels}}} 7"),
        "safekeeper_timelines 1".to_owned(),
        "safekeeper_write_wal_bytes_bucket{le=\"1024\"} 3".to_owned(),
    ] {
        assert!(
            metrics.lines().any(|found| found == line),
            "{line} is not in {metrics}"
        );
    }

    let info = json!({"backup_lsn": "0/2000000", "commit_lsn": "0/9000000", "last_log_term": 7});
    let path = format!("/v1/record_safekeeper_info/{id}");
    assert_eq!(
        daemon.http("POST", &path, &info.to_string()).await,
        (200, "null".to_owned())
    );
    let status = daemon.status(id).await;
    assert_eq!(status["backup_lsn"], "0/2000000");
    assert_eq!(
        status["commit_lsn"],
        Lsn(begin).to_string(),
        "not beyond what is durable here"
    );

    let dumped = std::process::Command::new(env!("CARGO_BIN_EXE_safekeeper"))
        .arg("--dump-control-file")
        .arg(daemon.timeline_dir(id).join("safekeeper.control"))
        .output()
        .unwrap();
    let dumped: serde_json::Value = serde_json::from_slice(&dumped.stdout).unwrap();
    assert_eq!(dumped["acceptor_state"]["term"], 7);
}

#[tokio::test]
async fn old_segments_are_removed_once_nobody_needs_them() {
    let daemon = Daemon::start(&["--no-sync"]).await;
    let id = new_id();
    let wal = Wal::of_records(START, 50_000, SEGMENT_SIZE * 6);
    let mut proposer = daemon.propose(id).await;
    proposer.elected(&[(1, START)], START).await;
    proposer.commit(&wal).await;
    let horizon = Lsn(SEGMENT_SIZE as u64 * 5).to_string();
    let info = json!({"backup_lsn": horizon, "peer_horizon_lsn": horizon, "remote_consistent_lsn": horizon});
    daemon
        .http(
            "POST",
            &format!("/v1/record_safekeeper_info/{id}"),
            &info.to_string(),
        )
        .await;
    let oldest = daemon.timeline_dir(id).join("000000010000000000000004");
    let kept = daemon.timeline_dir(id).join("000000010000000000000005");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(15);
    while oldest.exists() {
        assert!(std::time::Instant::now() < deadline, "old segments stay");
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(kept.exists());
    let mut receiver = daemon.replicate(id, START, "pageserver").await;
    let error = receiver.receive_to_end().await;
    assert!(error.contains("WAL segment is not found"), "{error}");
}

#[tokio::test]
async fn tokens_open_what_they_should() {
    let dir = tempfile::tempdir().unwrap();
    let (private, public) = (dir.path().join("private.pem"), dir.path().join("public.pem"));
    for args in [
        vec!["genrsa", "-out", private.to_str().unwrap(), "2048"],
        vec![
            "rsa",
            "-in",
            private.to_str().unwrap(),
            "-pubout",
            "-out",
            public.to_str().unwrap(),
        ],
    ] {
        assert!(
            std::process::Command::new("openssl")
                .args(args)
                .output()
                .unwrap()
                .status
                .success()
        );
    }
    let mut daemon = Daemon::start(&["--auth-validation-public-key-path", public.to_str().unwrap()]).await;
    let id = new_id();
    let token = |tenant: Option<TenantId>, scope| Some(sign(&Claims::new(tenant, scope), &private).unwrap());

    assert_eq!(daemon.http("GET", "/v1/status", "").await.0, 200);
    assert_eq!(daemon.http("GET", "/metrics", "").await.0, 401);
    assert!(daemon.try_client(id).await.is_err());
    daemon.token = token(Some(id.tenant_id), Scope::Tenant);
    daemon.propose(id).await;
    assert_eq!(daemon.http("GET", &timeline_path(id), "").await.0, 200);
    assert_eq!(daemon.http("GET", "/v1/debug_dump", "").await.0, 403);
    let other = new_id();
    let (status, text) = daemon.http("GET", &timeline_path(other), "").await;
    assert_eq!(
        (status, text),
        (
            403,
            json!({"msg": "Forbidden: Tenant id mismatch. Permission denied"}).to_string()
        )
    );
    let error = daemon
        .client(other)
        .await
        .query("IDENTIFY_SYSTEM")
        .await
        .unwrap_err()
        .to_string();
    assert!(error.contains("Tenant id mismatch. Permission denied"), "{error}");
    daemon.token = token(None, Scope::SafekeeperData);
    assert_eq!(daemon.http("GET", "/v1/debug_dump", "").await.0, 200);
    daemon.propose(other).await;
    daemon.token = token(None, Scope::PageServerApi);
    assert_eq!(daemon.http("GET", "/v1/debug_dump", "").await.0, 403);
    daemon.token = Some("x.y.z".to_owned());
    assert!(daemon.try_client(id).await.is_err());
}
