//! What every kind of object storage promises. Each kind runs all of it, see [`crate::run_suite`].

use std::ops::Range;

use bytes::Bytes;
use futures::TryStreamExt;
use remote_storage::{
    ByteStream, Download, GenericRemoteStorage, Listing, RemotePath, RemoteStorageError, RetryError,
    StorageMetadata, retry_download, retry_upload,
};
use tokio_util::sync::CancellationToken;

/// Makes a test of each part of the suite, over the storage that `$make` makes, which keeps its second half
/// alive as long as it is used.
macro_rules! run_suite {
    ($make:expr) => {
        run_suite!($make; round_trip, ranges, listing, deletion, replacement, metadata, large_objects,
            wrong_lengths, broken_contents, dropped_uploads, missing_objects, many_at_once);
    };
    ($make:expr; $($part:ident),* $(,)?) => {
        $(
            #[tokio::test(flavor = "multi_thread")]
            async fn $part() {
                let (storage, _keep) = $make.await;
                suite::$part(&storage).await;
            }
        )*
    };
}

fn path(text: &str) -> RemotePath {
    text.parse().unwrap()
}

fn stream(bytes: &[u8]) -> ByteStream {
    let chunks: Vec<_> = bytes
        .chunks(100_000)
        .map(|chunk| Ok(Bytes::copy_from_slice(chunk)))
        .collect();
    Box::pin(futures::stream::iter(chunks))
}

/// Bytes that differ from place to place.
fn contents(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251) as u8).collect()
}

fn failure<T>(result: Result<T, RetryError<RemoteStorageError>>) -> RemoteStorageError {
    match result {
        Ok(_) => panic!("succeeded"),
        Err(RetryError::Cancelled) => panic!("cancelled"),
        Err(RetryError::Failed(error)) => error,
    }
}

async fn try_put(
    storage: &GenericRemoteStorage,
    name: &str,
    length: u64,
    make: impl Fn() -> ByteStream,
) -> Result<(), RetryError<RemoteStorageError>> {
    let upload = || async { storage.upload(&path(name), make(), length).await };
    retry_upload(name, &CancellationToken::new(), upload).await
}

async fn put(storage: &GenericRemoteStorage, name: &str, bytes: &[u8]) {
    try_put(storage, name, bytes.len() as u64, || stream(bytes))
        .await
        .unwrap();
}

async fn open(
    storage: &GenericRemoteStorage,
    name: &str,
    range: Option<Range<u64>>,
) -> Result<Download, RetryError<RemoteStorageError>> {
    let download = || async { storage.download(&path(name), range.clone()).await };
    retry_download(name, &CancellationToken::new(), download).await
}

async fn collect(download: Download) -> Vec<u8> {
    let chunks: Vec<Bytes> = download.contents.try_collect().await.unwrap();
    chunks.concat()
}

async fn get(storage: &GenericRemoteStorage, name: &str, range: Option<Range<u64>>) -> Vec<u8> {
    collect(open(storage, name, range).await.unwrap()).await
}

async fn list(storage: &GenericRemoteStorage, prefix: Option<&str>) -> Listing {
    let prefix = prefix.map(path);
    let listing = || async { storage.list(prefix.as_ref()).await };
    retry_download("list", &CancellationToken::new(), listing)
        .await
        .unwrap()
}

async fn delete(storage: &GenericRemoteStorage, names: &[&str]) {
    let paths: Vec<_> = names.iter().map(|name| path(name)).collect();
    let deletion = || async { storage.delete(&paths).await };
    retry_upload("delete", &CancellationToken::new(), deletion)
        .await
        .unwrap();
}

pub async fn round_trip(storage: &GenericRemoteStorage) {
    for (name, length) in [
        ("a/b/one", 250_000),
        ("two", 1),
        ("a/empty", 0),
        ("a/b c/ü+&%?#=*'x", 7),
    ] {
        let bytes = contents(length);
        put(storage, name, &bytes).await;
        assert_eq!(get(storage, name, None).await, bytes, "{name}");
    }
}

pub async fn ranges(storage: &GenericRemoteStorage) {
    let bytes = contents(300_000);
    put(storage, "x", &bytes).await;
    for range in [0..1, 0..300_000, 299_999..300_000, 123_456..234_567, 5..5] {
        let read = get(storage, "x", Some(range.start as u64..range.end as u64)).await;
        assert_eq!(read, bytes[range.clone()], "{range:?}");
    }
    assert_eq!(get(storage, "x", Some(299_000..400_000)).await, bytes[299_000..]);
    assert_eq!(get(storage, "x", Some(7..u64::MAX)).await, bytes[7..]);
    assert!(get(storage, "x", Some(300_000..400_000)).await.is_empty());
    for len_max in [300_000, 1000] {
        let name = path("x");
        let whole = || storage.read(&name, len_max);
        let whole = retry_download("read", &CancellationToken::new(), whole).await;
        assert_eq!(whole.unwrap(), bytes[..len_max as usize]);
    }
    assert!(matches!(
        failure(open(storage, "y", Some(0..0)).await),
        RemoteStorageError::NotFound(_)
    ));
}

pub async fn listing(storage: &GenericRemoteStorage) {
    assert_eq!(list(storage, None).await, Listing::default());
    for name in ["t/a/x", "t/a/y", "t/ab", "t/b/c/z", "t-other", "u"] {
        put(storage, name, name.as_bytes()).await;
    }
    let root = list(storage, None).await;
    assert_eq!(root.prefixes, [path("t")]);
    assert_eq!(root.objects, [(path("t-other"), 7), (path("u"), 1)]);
    let inner = list(storage, Some("t")).await;
    assert_eq!(inner.prefixes, [path("t/a"), path("t/b")]);
    assert_eq!(inner.objects, [(path("t/ab"), 4)]);
    let leaf = list(storage, Some("t/a")).await;
    assert_eq!(leaf.objects, [(path("t/a/x"), 5), (path("t/a/y"), 5)]);
    for nothing in ["t/ab", "t/c", "u/v/w"] {
        assert_eq!(
            list(storage, Some(nothing)).await,
            Listing::default(),
            "{nothing}"
        );
    }
}

pub async fn deletion(storage: &GenericRemoteStorage) {
    for name in ["d/one", "d/two", "d/three"] {
        put(storage, name, b"x").await;
    }
    delete(
        storage,
        &["d/one", "d/three", "d/never", "e/never", "d/two/never"],
    )
    .await;
    assert_eq!(list(storage, Some("d")).await.objects, [(path("d/two"), 1)]);
    delete(storage, &["d/one"]).await;
    delete(storage, &[]).await;
    assert!(matches!(
        failure(open(storage, "d/one", None).await),
        RemoteStorageError::NotFound(_)
    ));
}

pub async fn replacement(storage: &GenericRemoteStorage) {
    put(storage, "x", b"a long first version").await;
    put(storage, "x", b"second").await;
    assert_eq!(get(storage, "x", None).await, b"second");
    assert_eq!(list(storage, None).await.objects, [(path("x"), 6)]);
}

async fn put_with(storage: &GenericRemoteStorage, name: &str, length: usize, metadata: &StorageMetadata) {
    let bytes = contents(length);
    let upload = || async {
        storage
            .upload_with_metadata(&path(name), stream(&bytes), length as u64, metadata)
            .await
    };
    retry_upload(name, &CancellationToken::new(), upload)
        .await
        .unwrap();
}

pub async fn metadata(storage: &GenericRemoteStorage) {
    let given = StorageMetadata::from([
        ("kind".to_owned(), "layer".to_owned()),
        ("n".to_owned(), "7".to_owned()),
    ]);
    for length in [10, 20_000_000] {
        put_with(storage, "m", length, &given).await;
        assert_eq!(open(storage, "m", None).await.unwrap().metadata, given);
        assert_eq!(open(storage, "m", Some(0..0)).await.unwrap().metadata, given);
    }
    put(storage, "m", b"x").await;
    assert!(open(storage, "m", None).await.unwrap().metadata.is_empty());
    assert_eq!(list(storage, None).await.objects, [(path("m"), 1)]);
}

pub async fn large_objects(storage: &GenericRemoteStorage) {
    // Around the limit of what is one request, and parts of different lengths.
    let part = 16 * 1024 * 1024;
    for length in [part - 1, part, part + 1, 2 * part, 2 * part + 12_345] {
        let bytes = contents(length);
        put(storage, "large", &bytes).await;
        assert!(
            get(storage, "large", None).await == bytes,
            "{length} bytes differ"
        );
        let end = length as u64;
        let tail = get(storage, "large", Some(end - 10..end)).await;
        assert_eq!(tail, bytes[length - 10..]);
    }
}

pub async fn wrong_lengths(storage: &GenericRemoteStorage) {
    put(storage, "x", b"old").await;
    for (have, say) in [
        (2, 3),
        (4, 3),
        (0, 1),
        (1, 0),
        (17_000_000, 17_000_001),
        (17_000_001, 17_000_000),
    ] {
        let bytes = contents(have);
        let error = failure(try_put(storage, "x", say, || stream(&bytes)).await);
        assert!(
            matches!(error, RemoteStorageError::WrongLength { want, .. } if want == say),
            "{have} bytes as {say}: {error}"
        );
    }
    assert_eq!(get(storage, "x", None).await, b"old");
    assert_eq!(list(storage, None).await.objects, [(path("x"), 3)]);
}

/// Contents that end with an error after `length` bytes.
fn broken(length: usize) -> ByteStream {
    let bytes = Ok(Bytes::from(contents(length)));
    Box::pin(futures::stream::iter([bytes, Err(std::io::Error::other("cut"))]))
}

pub async fn broken_contents(storage: &GenericRemoteStorage) {
    put(storage, "x", b"old").await;
    for length in [1, 40_000_000] {
        // Not a fault of the storage, so more attempts would not help here.
        let outcome = loop {
            match storage
                .upload(&path("x"), broken(length), length as u64 + 1)
                .await
            {
                Err(RemoteStorageError::Simulated(_)) => {}
                outcome => break outcome,
            }
        };
        assert!(
            matches!(outcome, Err(RemoteStorageError::Io { .. })),
            "{outcome:?}"
        );
    }
    assert_eq!(get(storage, "x", None).await, b"old");
    assert_eq!(list(storage, None).await.objects, [(path("x"), 3)]);
}

pub async fn dropped_uploads(storage: &GenericRemoteStorage) {
    put(storage, "x", b"old").await;
    for length in [1, 40_000_000] {
        let stalled: ByteStream = Box::pin(futures::StreamExt::chain(
            stream(&contents(length)),
            futures::stream::pending(),
        ));
        let name = path("x");
        let upload = storage.upload(&name, stalled, length as u64 + 1);
        let gave_up = tokio::time::timeout(std::time::Duration::from_secs(1), upload).await;
        assert!(!matches!(gave_up, Ok(Ok(()))));
    }
    assert_eq!(get(storage, "x", None).await, b"old");
    assert_eq!(list(storage, None).await.objects, [(path("x"), 3)]);
}

pub async fn missing_objects(storage: &GenericRemoteStorage) {
    for name in ["x", "a/b/x"] {
        let error = failure(open(storage, name, None).await);
        assert!(matches!(&error, RemoteStorageError::NotFound(missing) if *missing == path(name)));
        assert!(error.is_permanent());
    }
}

pub async fn many_at_once(storage: &GenericRemoteStorage) {
    let tasks: Vec<_> = (0..40)
        .map(|number| {
            let storage = storage.clone();
            tokio::spawn(async move {
                let (name, bytes) = (format!("many/{number}"), contents(1000 * number));
                put(&storage, &name, &bytes).await;
                assert_eq!(get(&storage, &name, None).await, bytes);
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(list(storage, Some("many")).await.objects.len(), 40);
}
