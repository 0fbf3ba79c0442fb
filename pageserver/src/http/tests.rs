//! Requests to the management API and what they change.

use std::sync::Arc;

use axum::body::Body;
use axum::http::{Method, Request, StatusCode};
use serde_json::{Value, json};
use tower::ServiceExt;
use utils::lsn::Lsn;

use super::router;
use crate::server::testing::{START, TestServer, put};

struct Api(TestServer);

impl Api {
    async fn start() -> Self {
        Api(TestServer::start().await)
    }

    async fn send(&self, method: Method, uri: &str, body: Value) -> (StatusCode, Value) {
        let request = Request::builder().method(method).uri(uri);
        let request = request.body(Body::from(body.to_string())).unwrap();
        let response = router(Arc::clone(&self.0.server), "now")
            .oneshot(request)
            .await
            .unwrap();
        assert_eq!(response.headers()["pageserver_launch_timestamp"], "now");
        let status = response.status();
        let raw = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (
            status,
            serde_json::from_slice(&raw).unwrap_or_else(|_| panic!("{raw:?}")),
        )
    }

    async fn get(&self, uri: &str) -> (StatusCode, Value) {
        self.send(Method::GET, uri, Value::Null).await
    }

    async fn post(&self, uri: &str, body: Value) -> (StatusCode, Value) {
        self.send(Method::POST, uri, body).await
    }
}

fn message(answer: (StatusCode, Value)) -> (u16, String) {
    (
        answer.0.as_u16(),
        answer.1["msg"].as_str().unwrap_or_default().to_owned(),
    )
}

#[tokio::test]
async fn tenants() {
    let api = Api::start().await;
    assert_eq!(api.get("/v1/status").await, (StatusCode::OK, json!({"id": 1})));
    let id = "11112222333344445555666677778888";
    let body = json!({"new_tenant_id": id, "gc_period": "1m"});
    assert_eq!(
        api.post("/v1/tenant", body.clone()).await,
        (StatusCode::CREATED, json!(id))
    );
    let again = message(api.post("/v1/tenant", body).await);
    assert_eq!(
        again,
        (
            409,
            format!("Conflict: tenant {id} already exists, state: Active")
        )
    );
    let (status, list) = api.get("/v1/tenant").await;
    assert_eq!((status, list.as_array().unwrap().len()), (StatusCode::OK, 2));
    let (_, shown) = api.get(&format!("/v1/tenant/{id}")).await;
    assert_eq!(
        (&shown["state"], &shown["has_in_progress_downloads"]),
        (&json!("Active"), &json!(false))
    );

    let (_, config) = api.get(&format!("/v1/tenant/{id}/config")).await;
    assert_eq!(config["tenant_specific_overrides"], json!({"gc_period": "1m"}));
    assert_eq!(config["effective_config"]["compaction_period"], "20s");
    let body = json!({"tenant_id": id, "gc_horizon": 5});
    let changed = api.send(Method::PUT, "/v1/tenant/config", body).await;
    assert_eq!(changed, (StatusCode::OK, Value::Null));
    let (_, config) = api.get(&format!("/v1/tenant/{id}/config")).await;
    assert_eq!(
        config["tenant_specific_overrides"],
        json!({"gc_horizon": 5}),
        "replaced as a whole"
    );

    let missing = "99992222333344445555666677778888";
    let expected = (
        404,
        format!("NotFound: Tenant {missing} not found in the local state"),
    );
    let (status, text) = message(api.get(&format!("/v1/tenant/{missing}")).await);
    assert_eq!((status, format!("NotFound: {text}")), (500, expected.1.clone()));
    assert_eq!(
        message(api.get(&format!("/v1/tenant/{missing}/timeline")).await),
        expected
    );
    let (status, text) = message(api.post("/v1/tenant", json!({"gc_period": "soon"})).await);
    assert!(
        status == 400 && text.contains("Failed to parse json request"),
        "{text}"
    );
    assert_eq!(
        message(api.get("/v1/tenant/x").await),
        (400, "failed to parse tenant_id".to_owned())
    );
}

#[tokio::test]
async fn timelines() {
    let api = Api::start().await;
    let root = api.0.timeline(1).await;
    let base = format!("/v1/tenant/{}/timeline", api.0.tenant.id);
    let root_id = root.timeline_id.to_string();

    let (_, shown) = api.get(&format!("{base}/{root_id}")).await;
    assert_eq!(shown["last_record_lsn"], START.to_string());
    assert_eq!(
        (&shown["ancestor_timeline_id"], &shown["ancestor_lsn"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(
        (&shown["pg_version"], &shown["state"]),
        (&json!(15), &json!("Active"))
    );
    let uri = format!("{base}/{root_id}?include-non-incremental-logical-size=true");
    assert_eq!(
        api.get(&uri).await.1["current_logical_size_non_incremental"],
        8192
    );

    let (status, branch) = api.post(&base, json!({"ancestor_timeline_id": root_id})).await;
    assert_eq!(
        (status, &branch["ancestor_lsn"]),
        (StatusCode::CREATED, &json!(START.to_string()))
    );
    let branch_uri = format!("{base}/{}", branch["timeline_id"].as_str().unwrap());
    let body = json!({"ancestor_timeline_id": root_id, "new_timeline_id": branch["timeline_id"]});
    assert_eq!(api.post(&base, body).await, (StatusCode::CONFLICT, Value::Null));
    assert_eq!(api.get(&base).await.1.as_array().unwrap().len(), 2);

    let (status, text) = message(api.post(&base, json!({"pg_version": 14})).await);
    assert_eq!(
        (status, text.as_str()),
        (400, "PostgreSQL 14 is not supported, only 15 is")
    );
    let body = json!({"ancestor_timeline_id": root_id, "ancestor_start_lsn": "0/8"});
    let (status, text) = message(api.post(&base, body).await);
    assert_eq!(
        (status, text.contains("less than latest GC cutoff")),
        (500, true),
        "{text}"
    );

    let delete = async |uri: String| api.send(Method::DELETE, &uri, Value::Null).await;
    let (status, text) = message(delete(format!("{base}/{root_id}")).await);
    assert_eq!(text, "Cannot delete timeline which has child timelines");
    assert_eq!(status, 500);
    assert_eq!(delete(branch_uri.clone()).await, (StatusCode::OK, Value::Null));
    assert_eq!(api.get(&branch_uri).await.0, StatusCode::NOT_FOUND);
    assert_eq!(delete(format!("{base}/{root_id}")).await.0, StatusCode::OK);
    let again = message(delete(format!("{base}/{root_id}")).await);
    assert_eq!(again, (500, "timeline not found".to_owned()));
}

#[tokio::test]
async fn layers_and_garbage_collection() {
    let api = Api::start().await;
    let timeline = api.0.timeline(1).await;
    put(&timeline, Lsn(0x200), 0..1, |_| 7).await;
    let base = format!("/v1/tenant/{}/timeline/{}", api.0.tenant.id, timeline.timeline_id);
    let (_, layers) = api.get(&format!("{base}/layer")).await;
    assert_eq!(layers["in_memory_layers"][0]["kind"], "Open", "{layers}");
    timeline.flush().await.unwrap();
    let (_, layers) = api.get(&format!("{base}/layer")).await;
    assert_eq!(layers["in_memory_layers"], json!([]));
    let historic = layers["historic_layers"].as_array().unwrap();
    assert!(historic.iter().any(|layer| layer["kind"] == "Delta"), "{layers}");
    let (status, result) = api
        .send(Method::PUT, &format!("{base}/do_gc"), json!({"gc_horizon": 0}))
        .await;
    assert_eq!((status, &result["layers_removed"]), (StatusCode::OK, &json!(0)));
    assert_eq!(result["layers_total"], historic.len());
    let missing = format!("/v1/tenant/{0}/timeline/{0}/do_gc", api.0.tenant.id);
    assert_eq!(
        api.send(Method::PUT, &missing, json!({})).await.0,
        StatusCode::NOT_FOUND
    );
}

#[tokio::test]
async fn metrics_follow_the_timelines() {
    let api = Api::start().await;
    let timeline = api.0.timeline(1).await;
    let shown = async || {
        let request = Request::get("/metrics").body(Body::empty()).unwrap();
        let response = router(Arc::clone(&api.0.server), "now")
            .oneshot(request)
            .await
            .unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let raw = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let text = String::from_utf8(raw.to_vec()).unwrap();
        text.contains(&format!("timeline_id=\"{}\"}} 256", timeline.timeline_id))
    };
    assert!(shown().await, "the last record LSN is a gauge");
    api.0.tenant.delete_timeline(timeline.timeline_id).await.unwrap();
    assert!(!shown().await);
}

/// Every route of the sources is in the document, with its methods.
#[tokio::test]
async fn the_document_has_every_route() {
    let sources = [
        include_str!("mod.rs"),
        include_str!("doc.rs"),
        include_str!("layer.rs"),
        include_str!("tenant.rs"),
        include_str!("timeline.rs"),
    ];
    let mut routes = 0;
    for route in sources.iter().flat_map(|source| source.split(".route(").skip(1)) {
        let path = route.split('"').nth(1).unwrap();
        let methods = route
            .split(".route(")
            .next()
            .unwrap()
            .split('\n')
            .take(4)
            .collect::<String>();
        let described = super::doc::OPENAPI
            .split_once(&format!("\n  {path}:\n"))
            .unwrap_or_else(|| panic!("{path} is not described"))
            .1;
        let end = described
            .find("\n  /")
            .or_else(|| described.find("\ncomponents:"))
            .unwrap();
        for method in ["get", "put", "post", "delete"] {
            if methods.contains(&format!(" {method}(")) || methods.contains(&format!(".{method}(")) {
                assert!(
                    described[..end].contains(&format!("    {method}:\n")),
                    "{method} {path} is not described"
                );
            }
        }
        routes += 1;
    }
    assert!(routes > 10, "{routes}");
}

#[tokio::test]
async fn documents_and_panics() {
    let api = Api::start().await;
    for (path, status, text) in [
        ("/v1/doc", 200, "<pre>"),
        ("/swagger.yml", 200, "openapi:"),
        ("/v1/panic", 204, ""),
    ] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = router(Arc::clone(&api.0.server), "now")
            .oneshot(request)
            .await
            .unwrap();
        assert_eq!(response.status(), status, "{path}");
        let raw = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        assert!(String::from_utf8_lossy(&raw).contains(text), "{path}");
    }
}
