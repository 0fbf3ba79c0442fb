//! Full-page images: from their stored form back to a page.

use std::cell::RefCell;

use zstd::zstd_safe::DCtx;

use super::BLCKSZ;
use super::record::{BlockImage, ImageCompression};
use super::record_ref::ImageRef;
use crate::pglz::{self, PglzError};

/// An image cannot be turned into a page.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum ImageError {
    /// The hole does not lie within the page.
    #[error("hole of {length} bytes at {offset} does not fit in a page")]
    Hole {
        /// Start in bytes.
        offset: u16,
        /// Length in bytes.
        length: u16,
    },
    /// The stored bytes and the hole do not make a page.
    #[error("page image gives {got} bytes instead of {want}")]
    Length {
        /// Bytes outside the hole.
        want: usize,
        /// Bytes the image gave.
        got: usize,
    },
    /// The pglz stream is damaged.
    #[error("page image is not valid pglz data")]
    Pglz(#[from] PglzError),
    /// The LZ4 block is damaged.
    #[error("page image is not valid LZ4 data: {0}")]
    Lz4(String),
    /// The Zstandard frame is damaged.
    #[error("page image is not valid Zstandard data: {0}")]
    Zstd(&'static str),
}

thread_local! {
    /// A decompression context takes 100 kB and more; making one per image would cost more than the image.
    static ZSTD: RefCell<DCtx<'static>> = RefCell::new(DCtx::create());
}

/// Writes the page that `image` stands for to `page` (`RestoreBlockImage`). `page` is unspecified after an error.
pub fn restore(image: &BlockImage, page: &mut [u8; BLCKSZ]) -> Result<(), ImageError> {
    let image = ImageRef {
        data: &image.data,
        compression: image.compression,
        hole_offset: image.hole_offset,
        hole_length: image.hole_length,
        apply: image.apply,
    };
    restore_ref(&image, page)
}

/// The same for an image that was not copied out of its record.
pub fn restore_ref(image: &ImageRef<'_>, page: &mut [u8; BLCKSZ]) -> Result<(), ImageError> {
    let hole_start = usize::from(image.hole_offset);
    let hole_len = usize::from(image.hole_length);
    let hole_end = hole_start + hole_len;
    if hole_end > BLCKSZ {
        return Err(ImageError::Hole {
            offset: image.hole_offset,
            length: image.hole_length,
        });
    }
    let want = BLCKSZ - hole_len;
    if image.compression == ImageCompression::None {
        if image.data.len() != want {
            return Err(ImageError::Length {
                want,
                got: image.data.len(),
            });
        }
        page[..hole_start].copy_from_slice(&image.data[..hole_start]);
        page[hole_end..].copy_from_slice(&image.data[hole_start..]);
    } else {
        // Decompress to the front of the page, then move what belongs behind the hole.
        decompress(image, &mut page[..want])?;
        page.copy_within(hole_start..want, hole_end);
    }
    page[hole_start..hole_end].fill(0);
    Ok(())
}

fn decompress(image: &ImageRef<'_>, out: &mut [u8]) -> Result<(), ImageError> {
    let want = out.len();
    let got = match image.compression {
        ImageCompression::None => unreachable!("the caller copies what is not compressed"),
        ImageCompression::Pglz => {
            pglz::decompress(image.data, out)?;
            want
        }
        ImageCompression::Lz4 => lz4_flex::block::decompress_into(image.data, out)
            .map_err(|error| ImageError::Lz4(error.to_string()))?,
        ImageCompression::Zstd => ZSTD
            .with_borrow_mut(|context| context.decompress(out, image.data))
            .map_err(|code| ImageError::Zstd(zstd::zstd_safe::get_error_name(code)))?,
    };
    if got == want {
        Ok(())
    } else {
        Err(ImageError::Length { want, got })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn compression() -> impl Strategy<Value = ImageCompression> {
        prop_oneof![
            Just(ImageCompression::None),
            Just(ImageCompression::Pglz),
            Just(ImageCompression::Lz4),
            Just(ImageCompression::Zstd),
        ]
    }

    /// A pglz stream of literals only.
    fn pglz_literals(data: &[u8]) -> Vec<u8> {
        data.chunks(8)
            .flat_map(|chunk| std::iter::once(0).chain(chunk.iter().copied()))
            .collect()
    }

    fn stored(data: &[u8], compression: ImageCompression) -> Bytes {
        match compression {
            ImageCompression::None => Bytes::copy_from_slice(data),
            ImageCompression::Pglz => pglz_literals(data).into(),
            ImageCompression::Lz4 => lz4_flex::block::compress(data).into(),
            ImageCompression::Zstd => zstd::bulk::compress(data, 3).unwrap().into(),
        }
    }

    proptest! {
        #[test]
        fn round_trip(
            seed in any::<u8>(), compression in compression(), hole_start in 0usize..=8192, hole_len in 0usize..=8192,
        ) {
            let hole_end = (hole_start + hole_len).min(BLCKSZ);
            let mut page = [0u8; BLCKSZ];
            for (i, byte) in page.iter_mut().enumerate() {
                *byte = (i / 7) as u8 ^ seed | 1;
            }
            page[hole_start..hole_end].fill(0);
            let data = [&page[..hole_start], &page[hole_end..]].concat();
            let image = BlockImage {
                data: stored(&data, compression),
                compression,
                hole_offset: hole_start as u16,
                hole_length: (hole_end - hole_start) as u16,
                apply: true,
            };
            let mut out = [0xaa; BLCKSZ];
            prop_assert_eq!(restore(&image, &mut out), Ok(()));
            prop_assert!(out == page);
            let mut cut = image.clone();
            if !cut.data.is_empty() {
                cut.data.truncate(cut.data.len() - 1);
                prop_assert!(restore(&cut, &mut out).is_err());
            }
        }

        #[test]
        fn random_bytes_never_panic(
            data in proptest::collection::vec(any::<u8>(), 0..400), compression in compression(),
            hole_offset: u16, hole_length: u16,
        ) {
            let image = BlockImage { data: data.into(), compression, hole_offset, hole_length, apply: true };
            let _ = restore(&image, &mut [0; BLCKSZ]);
        }
    }
}
