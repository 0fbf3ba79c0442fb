//! The control file of a timeline, `safekeeper.control`: the acceptor's durable state.
//!
//! Layout (little endian): magic u32, version u32, state, CRC32C u32 of everything before it. The
//! state of the current version is written by [`codec`]; [`upgrade`] reads the older ones.
//!
//! Invariants
//! * The file is replaced as a whole: after a crash it holds the state before or the state after.
//! * A file whose checksum, magic, version or length is wrong is never half-used: it is an error that
//!   names the file.

mod codec;
mod upgrade;
mod writer;

use std::path::{Path, PathBuf};

use utils::crashsafe;

use crate::acceptor::ControlState;

pub use writer::ControlWriter;

/// Name of the control file in a timeline's directory.
pub const CONTROL_FILE_NAME: &str = "safekeeper.control";
/// Name under which a new control file is written before it is renamed.
pub const CONTROL_FILE_TEMP_NAME: &str = "safekeeper.control.partial";

const MAGIC: u32 = 0xCAFE_CEEF;
/// The version this build writes.
pub const FORMAT_VERSION: u32 = 7;
const HEADER_LEN: usize = 8;
const CHECKSUM_LEN: usize = 4;
/// A control file is small; a longer one is not read into memory.
const CONTROL_FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// The bytes are not a control file that this build can read.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum DecodeError {
    /// Flipped, missing or added bytes.
    #[error("safekeeper control file checksum mismatch: expected {stored:#010x}, got {computed:#010x}")]
    Checksum {
        /// Checksum at the end of the file.
        stored: u32,
        /// Checksum of what stands before it.
        computed: u32,
    },
    /// Not a control file at all.
    #[error("bad magic {0:#010x} in safekeeper control file, expected {MAGIC:#010x}")]
    Magic(u32),
    /// Written by another release.
    #[error("safekeeper control file has version {0}, this release reads versions 1 to {FORMAT_VERSION}")]
    Version(u32),
    /// The state does not parse, although its checksum is right.
    #[error("malformed safekeeper control file: {0}")]
    Malformed(&'static str),
}

/// A control file could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum ControlFileError {
    /// The file could not be read.
    #[error("cannot read control file {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The file is damaged or of another release.
    #[error("cannot use control file {path}")]
    Decode {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: DecodeError,
    },
    /// The new file could not be made durable. The old one may or may not have been replaced.
    #[error("cannot write control file")]
    Write(#[from] crashsafe::CrashsafeError),
    /// A test asked for this failure.
    #[error("failpoint {0}")]
    Failpoint(&'static str),
}

fn u32_le(raw: &[u8]) -> u32 {
    u32::from_le_bytes(raw.try_into().expect("the caller cut four bytes"))
}

/// Contents of a control file holding `state`.
pub fn encode(state: &ControlState) -> Vec<u8> {
    let mut raw = Vec::with_capacity(512);
    raw.extend_from_slice(&MAGIC.to_le_bytes());
    raw.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    codec::encode_state(state, &mut raw);
    let checksum = crc32c::crc32c(&raw);
    raw.extend_from_slice(&checksum.to_le_bytes());
    raw
}

/// The state in the contents of a control file of any version up to the current one.
///
/// # Errors
/// The checksum is checked first: damage is always reported as damage.
pub fn decode(raw: &[u8]) -> Result<ControlState, DecodeError> {
    if raw.len() < HEADER_LEN + CHECKSUM_LEN {
        return Err(DecodeError::Malformed("file is too short"));
    }
    let (body, checksum) = raw.split_at(raw.len() - CHECKSUM_LEN);
    let (stored, computed) = (u32_le(checksum), crc32c::crc32c(body));
    if stored != computed {
        return Err(DecodeError::Checksum { stored, computed });
    }
    let (header, state) = body.split_at(HEADER_LEN);
    let (magic, version) = (u32_le(&header[..4]), u32_le(&header[4..]));
    if magic != MAGIC {
        return Err(DecodeError::Magic(magic));
    }
    match version {
        FORMAT_VERSION => codec::decode_state(state),
        1..FORMAT_VERSION => upgrade::decode_state(state, version),
        _ => Err(DecodeError::Version(version)),
    }
}

/// Reads the control file `path`.
pub fn load(path: &Path) -> Result<ControlState, ControlFileError> {
    let read_error = |source| ControlFileError::Read {
        path: path.to_owned(),
        source,
    };
    let length = std::fs::metadata(path).map_err(read_error)?.len();
    if length > CONTROL_FILE_BYTES_MAX {
        return Err(ControlFileError::Decode {
            path: path.to_owned(),
            source: DecodeError::Malformed("file is too long"),
        });
    }
    let raw = std::fs::read(path).map_err(read_error)?;
    decode(&raw).map_err(|source| ControlFileError::Decode {
        path: path.to_owned(),
        source,
    })
}

/// Replaces the control file in the timeline directory `dir`. Durable on return, unless `sync` is off.
pub fn store(dir: &Path, state: &ControlState, sync: crate::Sync) -> Result<(), ControlFileError> {
    fail::fail_point!("sk-before-control-file-write", |_| {
        Err(ControlFileError::Failpoint("sk-before-control-file-write"))
    });
    let (path, temp) = (dir.join(CONTROL_FILE_NAME), dir.join(CONTROL_FILE_TEMP_NAME));
    let raw = encode(state);
    match sync {
        crate::Sync::Yes => crashsafe::write_atomically(&path, &temp, &raw)?,
        crate::Sync::No => {
            let at = |action, path: &Path| {
                let path = path.to_owned();
                move |source| crashsafe::CrashsafeError { action, path, source }
            };
            std::fs::write(&temp, &raw).map_err(at("write file", &temp))?;
            std::fs::rename(&temp, &path).map_err(at("rename", &temp))?;
        }
    }
    fail::fail_point!("sk-after-control-file-write", |_| {
        Err(ControlFileError::Failpoint("sk-after-control-file-write"))
    });
    Ok(())
}

#[cfg(test)]
mod tests;
