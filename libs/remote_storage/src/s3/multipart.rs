//! Uploads of objects too large for one request.

use aws_sdk_s3::Client;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use tokio::io::AsyncReadExt;
use tokio_util::io::StreamReader;

use super::failure::Attempt;
use super::metrics::Request;
use super::{PART_BYTES, S3};
use crate::{ByteStream, RemotePath, RemoteStorageError, StorageMetadata};

/// What is to be uploaded, cut into parts.
pub(super) struct Parts<'a> {
    path: &'a RemotePath,
    contents: StreamReader<ByteStream, Bytes>,
    /// Bytes read so far.
    got: u64,
}

impl<'a> Parts<'a> {
    pub fn new(path: &'a RemotePath, contents: ByteStream) -> Self {
        Parts {
            path,
            contents: StreamReader::new(contents),
            got: 0,
        }
    }

    /// The next [`PART_BYTES`] bytes, fewer at the end.
    pub async fn next(&mut self) -> Result<Vec<u8>, RemoteStorageError> {
        let mut part = Vec::new();
        let mut reader = (&mut self.contents).take(PART_BYTES);
        let read = reader.read_to_end(&mut part).await;
        read.map_err(|source| RemoteStorageError::Io {
            action: "read what is to be uploaded as",
            object: self.path.to_string(),
            source,
        })?;
        self.got += part.len() as u64;
        Ok(part)
    }

    /// Whether what was read is all there is, and as long as was said.
    pub async fn check_end(&mut self, length: u64) -> Result<(), RemoteStorageError> {
        // A part more is enough to see that there is too much.
        if self.got == length && self.next().await?.is_empty() {
            return Ok(());
        }
        Err(RemoteStorageError::WrongLength {
            path: self.path.clone(),
            want: length,
            got: self.got,
        })
    }
}

/// A multipart upload under way; aborted when dropped before it is complete.
struct Upload {
    client: Client,
    bucket: String,
    key: String,
    /// The service's name for it; `None` once it is complete.
    id: Option<String>,
}

impl Drop for Upload {
    fn drop(&mut self) {
        let (Some(id), Ok(runtime)) = (self.id.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let abort = self
            .client
            .abort_multipart_upload()
            .bucket(&self.bucket)
            .key(&self.key)
            .upload_id(id);
        runtime.spawn(async move {
            // Parts left behind cost space, not correctness, and services are told to expire them.
            if let Err(error) = abort.send().await {
                tracing::info!("cannot abort a multipart upload: {error}");
            }
        });
    }
}

impl S3 {
    pub(super) async fn upload_parts(
        &self,
        path: &RemotePath,
        mut parts: Parts<'_>,
        length: u64,
        metadata: &StorageMetadata,
    ) -> Result<(), RemoteStorageError> {
        let upload = self.begin_upload(path, metadata).await?;
        let mut completed = Vec::new();
        for number in 1_i32.. {
            let part = parts.next().await?;
            if part.is_empty() {
                break;
            }
            let put = self
                .client
                .upload_part()
                .bucket(&upload.bucket)
                .key(&upload.key)
                .set_upload_id(upload.id.clone())
                .part_number(number)
                .body(part.into());
            let attempt = Attempt::new(Request::PutObject, "upload a part of", path);
            let done = put.send().await.map_err(|error| attempt.failed(error))?;
            completed.push(
                CompletedPart::builder()
                    .part_number(number)
                    .set_e_tag(done.e_tag)
                    .build(),
            );
        }
        parts.check_end(length).await?;
        self.complete_upload(path, upload, completed).await
    }

    async fn begin_upload(
        &self,
        path: &RemotePath,
        metadata: &StorageMetadata,
    ) -> Result<Upload, RemoteStorageError> {
        let (bucket, key) = (self.config.bucket.clone(), self.key(path));
        let mut create = self.client.create_multipart_upload().bucket(&bucket).key(&key);
        for (name, value) in metadata {
            create = create.metadata(name, value);
        }
        let attempt = Attempt::new(Request::PutObject, "begin upload of", path);
        let created = create.send().await.map_err(|error| attempt.failed(error))?;
        Ok(Upload {
            client: self.client.clone(),
            bucket,
            key,
            id: created.upload_id,
        })
    }

    async fn complete_upload(
        &self,
        path: &RemotePath,
        mut upload: Upload,
        parts: Vec<CompletedPart>,
    ) -> Result<(), RemoteStorageError> {
        let complete = self
            .client
            .complete_multipart_upload()
            .bucket(&upload.bucket)
            .key(&upload.key)
            .set_upload_id(upload.id.clone())
            .multipart_upload(CompletedMultipartUpload::builder().set_parts(Some(parts)).build());
        let attempt = Attempt::new(Request::PutObject, "complete upload of", path);
        complete.send().await.map_err(|error| attempt.failed(error))?;
        upload.id = None;
        Ok(())
    }
}
