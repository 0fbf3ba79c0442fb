//! A directory as object storage, reliable or not.

#![allow(clippy::unwrap_used)] // The helpers of a test may panic as the test itself may.

#[macro_use]
mod suite;

use remote_storage::{GenericRemoteStorage, RemoteStorageConfig, RemoteStorageKind};
use tempfile::TempDir;

async fn directory() -> (GenericRemoteStorage, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let config = RemoteStorageConfig {
        kind: RemoteStorageKind::LocalFs {
            path: dir.path().join("root"),
        },
    };
    (GenericRemoteStorage::from_config(&config).await.unwrap(), dir)
}

async fn unreliable_directory() -> (GenericRemoteStorage, TempDir) {
    let (storage, dir) = directory().await;
    (storage.unreliable(2), dir)
}

mod reliable {
    use super::suite;
    run_suite!(super::directory());
}

mod unreliable {
    use super::suite;
    run_suite!(super::unreliable_directory());
}

mod failures {
    use remote_storage::{
        DOWNLOAD_ATTEMPTS_MAX, RemotePath, RemoteStorageError, RetryError, retry_download, retry_upload,
    };
    use tokio_util::sync::CancellationToken;

    fn contents() -> remote_storage::ByteStream {
        Box::pin(futures::stream::once(async {
            Ok(bytes::Bytes::from_static(b"x"))
        }))
    }

    /// Uploads, then downloads over storage that fails `failures` times; the outcome of the download.
    async fn outcome(failures: u32) -> Result<(), RetryError<RemoteStorageError>> {
        let (storage, _dir) = super::directory().await;
        let storage = storage.unreliable(failures);
        let path: RemotePath = "a/x".parse().unwrap();
        let cancel = CancellationToken::new();
        // Uploads go on however often they fail.
        retry_upload("upload", &cancel, || async {
            storage.upload(&path, contents(), 1).await
        })
        .await
        .unwrap();
        retry_download("download", &cancel, || async {
            storage.download(&path, None).await
        })
        .await
        .map(|_| ())
    }

    #[tokio::test]
    async fn up_to_nine_are_survived_and_more_are_a_clean_error() {
        let most = DOWNLOAD_ATTEMPTS_MAX - 1;
        let survived = futures::future::join_all([0, 1, most].map(outcome));
        let given_up = futures::future::join_all([most + 1, most + 3].map(outcome));
        let (survived, given_up) = tokio::join!(survived, given_up);
        assert!(survived.iter().all(Result::is_ok), "{survived:?}");
        for outcome in given_up {
            let error = outcome.unwrap_err();
            assert_eq!(
                error.to_string(),
                "simulated failure of remote operation Download(a/x)"
            );
        }
    }

    #[tokio::test]
    async fn each_operation_on_each_path_counts_for_itself() {
        let (storage, _dir) = super::directory().await;
        let storage = storage.unreliable(1);
        let (one, two): (RemotePath, RemotePath) = ("one".parse().unwrap(), "two".parse().unwrap());
        for _ in 0..2 {
            assert!(storage.upload(&one, contents(), 1).await.is_err());
            assert!(storage.download(&one, None).await.is_err());
            assert!(storage.upload(&two, contents(), 1).await.is_err());
            assert!(storage.list(None).await.is_err());
            assert!(storage.delete(&[one.clone(), two.clone()]).await.is_err());
            storage.upload(&one, contents(), 1).await.unwrap();
            storage.download(&one, None).await.unwrap();
            storage.upload(&two, contents(), 1).await.unwrap();
            assert_eq!(storage.list(None).await.unwrap().objects.len(), 2);
            storage.delete(&[one.clone(), two.clone()]).await.unwrap();
        }
    }

    #[tokio::test]
    async fn an_object_cannot_have_the_name_of_metadata() {
        let (storage, _dir) = super::directory().await;
        let error = storage
            .upload(&"x.metadata".parse().unwrap(), contents(), 1)
            .await;
        assert!(error.unwrap_err().is_permanent());
    }
}
