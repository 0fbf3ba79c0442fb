//! What readers of the WAL report back: pageservers and hot standbys.

use bytes::{Buf, BufMut, BytesMut};
use utils::lsn::Lsn;

use super::DecodeError;

const MESSAGE: &str = "pageserver feedback";

/// How far the pageserver is, in the extensible form of `libpq.md` section 4.4.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PageserverFeedback {
    /// Logical size of the timeline, in bytes.
    pub current_timeline_size: u64,
    /// End of the WAL the pageserver has received.
    pub ps_writelsn: Lsn,
    /// Everything before this is in layer files on the pageserver's disk.
    pub ps_flushlsn: Lsn,
    /// Everything before this is in remote storage.
    pub ps_applylsn: Lsn,
    /// When the pageserver said so, in microseconds since 2000-01-01 UTC.
    pub ps_replytime: i64,
}

impl PageserverFeedback {
    /// Longest key, in bytes without its NUL.
    const KEY_BYTES_MAX: usize = 64;

    /// Appends the wire form: number of pairs, then per pair the key, NUL, length (`i32`) and value;
    /// integers big-endian.
    pub fn encode(&self, out: &mut BytesMut) {
        let pairs: [(&[u8], [u8; 8]); 5] = [
            (b"current_timeline_size", self.current_timeline_size.to_be_bytes()),
            (b"ps_writelsn", self.ps_writelsn.0.to_be_bytes()),
            (b"ps_flushlsn", self.ps_flushlsn.0.to_be_bytes()),
            (b"ps_applylsn", self.ps_applylsn.0.to_be_bytes()),
            (b"ps_replytime", self.ps_replytime.to_be_bytes()),
        ];
        out.put_u8(pairs.len() as u8);
        for (key, value) in pairs {
            out.put_slice(key);
            out.put_u8(0);
            out.put_i32(value.len() as i32);
            out.put_slice(&value);
        }
    }

    /// Reads the wire form. Unknown keys are skipped; keys that are missing leave 0.
    ///
    /// # Errors
    /// [`DecodeError`] if the bytes end early or late, or a known key has a value of another size.
    pub fn decode(raw: &[u8]) -> Result<PageserverFeedback, DecodeError> {
        let mut feedback = PageserverFeedback::default();
        let mut rest = raw;
        let pairs = rest.try_get_u8().map_err(|_| wrong_length(raw, 1))?;
        for _ in 0..pairs {
            let (key, value) = next_pair(&mut rest, raw)?;
            feedback.set(key, value)?;
        }
        match rest.len() {
            0 => Ok(feedback),
            behind => Err(wrong_length(raw, raw.len() - behind)),
        }
    }

    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), DecodeError> {
        let number = |field: &'static str| -> Result<u64, DecodeError> {
            let raw = value.try_into().map_err(|_| DecodeError::Value {
                message: MESSAGE,
                field,
                value: value.len() as u64,
            })?;
            Ok(u64::from_be_bytes(raw))
        };
        match key {
            b"current_timeline_size" => {
                self.current_timeline_size = number("length of current_timeline_size")?;
            }
            b"ps_writelsn" => self.ps_writelsn = Lsn(number("length of ps_writelsn")?),
            b"ps_flushlsn" => self.ps_flushlsn = Lsn(number("length of ps_flushlsn")?),
            b"ps_applylsn" => self.ps_applylsn = Lsn(number("length of ps_applylsn")?),
            b"ps_replytime" => self.ps_replytime = number("length of ps_replytime")? as i64,
            _ => {}
        }
        Ok(())
    }
}

/// Takes one key and its value off `rest`, which is the end of `raw`.
fn next_pair<'a>(rest: &mut &'a [u8], raw: &[u8]) -> Result<(&'a [u8], &'a [u8]), DecodeError> {
    let window = &rest[..rest.len().min(PageserverFeedback::KEY_BYTES_MAX + 1)];
    let key_len = window
        .iter()
        .position(|byte| *byte == 0)
        .ok_or_else(|| wrong_length(raw, raw.len() + 1))?;
    let (key, behind) = rest.split_at(key_len);
    *rest = &behind[1..];
    let len = rest.try_get_i32().map_err(|_| wrong_length(raw, raw.len() + 4))?;
    let len = usize::try_from(len).map_err(|_| DecodeError::Value {
        message: MESSAGE,
        field: "value length",
        value: u64::from(len.cast_unsigned()),
    })?;
    if len > rest.len() {
        return Err(wrong_length(raw, raw.len() - rest.len() + len));
    }
    let (value, behind) = rest.split_at(len);
    *rest = behind;
    Ok((key, value))
}

fn wrong_length(raw: &[u8], want: usize) -> DecodeError {
    DecodeError::Length {
        message: MESSAGE,
        want,
        got: raw.len(),
    }
}

/// The oldest transactions that hot standbys still need, so that vacuum on the primary keeps them.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct HotStandbyFeedback {
    /// When the standby said so, in microseconds since 2000-01-01 UTC; 0 without a standby.
    pub ts: i64,
    /// Oldest transaction needed, with epoch; [`u64::MAX`] if none.
    pub xmin: u64,
    /// Oldest transaction needed for catalog rows, with epoch; [`u64::MAX`] if none.
    pub catalog_xmin: u64,
}

impl HotStandbyFeedback {
    /// What is reported while there is no standby.
    pub const NONE: HotStandbyFeedback = HotStandbyFeedback {
        ts: 0,
        xmin: u64::MAX,
        catalog_xmin: u64::MAX,
    };

    /// Length of the form standbys send, in bytes.
    pub const STANDBY_LEN: usize = 24;

    /// Reads what follows the `h` of a standby's message (`libpq.md` section 4.2), big-endian.
    ///
    /// # Errors
    /// [`DecodeError::Length`] unless there are exactly [`Self::STANDBY_LEN`] bytes.
    pub fn decode_standby(mut raw: &[u8]) -> Result<HotStandbyFeedback, DecodeError> {
        if raw.len() != Self::STANDBY_LEN {
            return Err(DecodeError::Length {
                message: "hot standby feedback",
                want: Self::STANDBY_LEN,
                got: raw.len(),
            });
        }
        Ok(HotStandbyFeedback {
            ts: raw.get_i64(),
            xmin: raw.get_u64(),
            catalog_xmin: raw.get_u64(),
        })
    }

    /// The bytes that follow the `h` of a standby's message.
    pub fn encode_standby(&self) -> [u8; Self::STANDBY_LEN] {
        let mut raw = [0; Self::STANDBY_LEN];
        raw[..8].copy_from_slice(&self.ts.to_be_bytes());
        raw[8..16].copy_from_slice(&self.xmin.to_be_bytes());
        raw[16..].copy_from_slice(&self.catalog_xmin.to_be_bytes());
        raw
    }

    /// What one standby and the others together need: the latest time, the oldest transactions.
    pub fn merge(self, other: HotStandbyFeedback) -> HotStandbyFeedback {
        HotStandbyFeedback {
            ts: self.ts.max(other.ts),
            xmin: self.xmin.min(other.xmin),
            catalog_xmin: self.catalog_xmin.min(other.catalog_xmin),
        }
    }
}

impl Default for HotStandbyFeedback {
    fn default() -> Self {
        Self::NONE
    }
}
