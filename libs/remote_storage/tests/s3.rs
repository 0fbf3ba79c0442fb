//! A bucket of a real S3 server, whose address the environment has: `make test-rust` starts one.

#![allow(clippy::unwrap_used)] // The helpers of a test may panic as the test itself may.

#[macro_use]
mod suite;

use std::num::NonZeroUsize;
use std::time::Duration;

use bytes::Bytes;
use remote_storage::{
    ByteStream, GenericRemoteStorage, RemotePath, RemoteStorageConfig, RemoteStorageError, RemoteStorageKind,
    S3Config,
};

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: run these tests with `make test-rust`"))
}

/// The server's bucket; objects of each test have a prefix of its own.
fn config() -> S3Config {
    S3Config {
        bucket: variable("REMOTE_STORAGE_S3_BUCKET"),
        region: variable("REMOTE_STORAGE_S3_REGION"),
        prefix: Some(format!("rust/{}", uuid::Uuid::new_v4())),
        endpoint: Some(variable("REMOTE_STORAGE_S3_ENDPOINT")),
        concurrency_limit: NonZeroUsize::new(10).unwrap(),
        timeout: Duration::from_secs(60),
    }
}

async fn storage(config: S3Config) -> GenericRemoteStorage {
    let kind = RemoteStorageKind::S3(config);
    GenericRemoteStorage::from_config(&RemoteStorageConfig { kind })
        .await
        .unwrap()
}

async fn bucket() -> (GenericRemoteStorage, ()) {
    (storage(config()).await, ())
}

async fn unreliable_bucket() -> (GenericRemoteStorage, ()) {
    (storage(config()).await.unreliable(1), ())
}

mod reliable {
    use super::suite;
    run_suite!(super::bucket());
}

mod unreliable {
    use super::suite;
    run_suite!(super::unreliable_bucket(); round_trip, listing, deletion, missing_objects);
}

fn path(text: &str) -> RemotePath {
    text.parse().unwrap()
}

fn one_byte() -> ByteStream {
    Box::pin(futures::stream::once(async { Ok(Bytes::from_static(b"x")) }))
}

/// More objects than a page of a listing or one deletion takes.
#[tokio::test(flavor = "multi_thread")]
async fn listings_and_deletions_have_pages() {
    let (storage, ()) = bucket().await;
    let paths: Vec<_> = (0..1003).map(|number| path(&format!("p/{number:04}"))).collect();
    let uploads = paths.iter().map(|path| storage.upload(path, one_byte(), 1));
    for done in futures::future::join_all(uploads).await {
        done.unwrap();
    }
    let listing = storage.list(Some(&path("p"))).await.unwrap();
    let listed: Vec<_> = listing.objects.into_iter().map(|(path, _)| path).collect();
    assert_eq!(listed, paths);
    storage.delete(&paths).await.unwrap();
    assert!(storage.list(Some(&path("p"))).await.unwrap().objects.is_empty());
}

/// Keys begin with `/` then, which a client must not take away.
#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_is_not_needed() {
    let own = config();
    let top = own.prefix.clone().unwrap();
    let storage = storage(S3Config { prefix: None, ..own }).await;
    let object = path(&top).join("x").unwrap();
    storage.upload(&object, one_byte(), 1).await.unwrap();
    assert!(storage.download(&object, None).await.is_ok());
    let listing = storage.list(Some(&path(&top))).await.unwrap();
    assert_eq!(listing.objects, [(object.clone(), 1)]);
    storage.delete(&[object]).await.unwrap();
}

#[tokio::test]
async fn refusals_are_permanent() {
    let no_bucket = storage(S3Config {
        bucket: "no-such-bucket".to_owned(),
        ..config()
    })
    .await;
    let errors = [
        no_bucket.upload(&path("x"), one_byte(), 1).await.unwrap_err(),
        no_bucket
            .download(&path("x"), None)
            .await
            .map(|_| ())
            .unwrap_err(),
        no_bucket.list(None).await.unwrap_err(),
    ];
    for error in errors {
        assert!(
            matches!(error, RemoteStorageError::Refused { .. }),
            "{error}, {error:?}"
        );
        assert!(error.is_permanent());
    }
}

#[tokio::test]
async fn a_server_that_is_away_or_silent_is_no_permanent_failure() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed_port = closed.local_addr().unwrap().port();
    drop(closed);
    for port in [silent_port, closed_port] {
        let storage = storage(S3Config {
            endpoint: Some(format!("http://127.0.0.1:{port}")),
            timeout: Duration::from_secs(1),
            ..config()
        })
        .await;
        let error = storage.list(None).await.unwrap_err();
        assert!(!error.is_permanent(), "{error:?}");
    }
}
