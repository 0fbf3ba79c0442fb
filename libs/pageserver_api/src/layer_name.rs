//! Names of layer files (storage formats, section 2): the rectangle of keys and LSNs a layer covers.
//!
//! Key text is 36 upper-case hexadecimal digits, LSN text 16, ends are exclusive:
//! `<key start>-<key end>__<lsn start>-<lsn end>` is a delta layer, `<key start>-<key end>__<lsn>` an image
//! layer. A name is parsed once, where it enters the process; past that point only this type is used.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use utils::lsn::Lsn;

use crate::key::Key;

/// Name of a layer, and all there is to know about where it lies.
#[derive(Clone, Debug, Eq, PartialEq, Hash)]
pub enum LayerFileName {
    /// All versions of all keys within the rectangle.
    Delta {
        /// Keys, end exclusive.
        key_range: Range<Key>,
        /// LSNs of the versions, end exclusive.
        lsn_range: Range<Lsn>,
    },
    /// The values, as of one LSN, of all keys that exist in the key range.
    Image {
        /// Keys, end exclusive.
        key_range: Range<Key>,
        /// Versions up to and including this LSN are contained.
        lsn: Lsn,
    },
}

/// The text is not the name of a layer file.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
#[error("'{0}' is not a layer file name")]
pub struct ParseLayerFileNameError(pub String);

impl LayerFileName {
    /// The keys covered.
    pub fn key_range(&self) -> &Range<Key> {
        match self {
            LayerFileName::Delta { key_range, .. } | LayerFileName::Image { key_range, .. } => key_range,
        }
    }

    /// The LSNs covered; an image layer at L covers `L..L+1`.
    pub fn lsn_range(&self) -> Range<Lsn> {
        match self {
            LayerFileName::Delta { lsn_range, .. } => lsn_range.clone(),
            LayerFileName::Image { lsn, .. } => *lsn..Lsn(lsn.0 + 1),
        }
    }

    /// Whether this is a delta layer.
    pub fn is_delta(&self) -> bool {
        matches!(self, LayerFileName::Delta { .. })
    }

    /// Whether this is a delta layer as it comes from memory: over all keys, not compacted yet.
    pub fn is_l0(&self) -> bool {
        self.is_delta() && *self.key_range() == (Key::MIN..Key::MAX)
    }
}

impl fmt::Display for LayerFileName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let keys = self.key_range();
        write!(f, "{}-{}__", keys.start, keys.end)?;
        match self {
            LayerFileName::Delta { lsn_range, .. } => {
                write!(f, "{:016X}-{:016X}", lsn_range.start.0, lsn_range.end.0)
            }
            LayerFileName::Image { lsn, .. } => write!(f, "{:016X}", lsn.0),
        }
    }
}

/// Upper-case hexadecimal digits only: a name has one spelling.
fn has_digits(text: &str, count: usize) -> bool {
    text.len() == count && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'A'..=b'F'))
}

fn parse_key(text: &str) -> Option<Key> {
    has_digits(text, 2 * Key::LEN)
        .then(|| text.parse().ok())
        .flatten()
}

fn parse_lsn(text: &str) -> Option<Lsn> {
    has_digits(text, 16)
        .then(|| u64::from_str_radix(text, 16).ok().map(Lsn))
        .flatten()
}

fn parse(text: &str) -> Option<LayerFileName> {
    let (keys, lsns) = text.split_once("__")?;
    let (start, end) = keys.split_once('-')?;
    let key_range = parse_key(start)?..parse_key(end)?;
    if key_range.is_empty() {
        return None;
    }
    match lsns.split_once('-') {
        Some((start, end)) => {
            let lsn_range = parse_lsn(start)?..parse_lsn(end)?;
            (!lsn_range.is_empty()).then_some(LayerFileName::Delta { key_range, lsn_range })
        }
        None => {
            let lsn = parse_lsn(lsns).filter(|lsn| *lsn < Lsn::MAX)?;
            Some(LayerFileName::Image { key_range, lsn })
        }
    }
}

impl FromStr for LayerFileName {
    type Err = ParseLayerFileNameError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).ok_or_else(|| ParseLayerFileNameError(text.to_owned()))
    }
}

impl Serialize for LayerFileName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LayerFileName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DELTA: &str = "000000067F000032BE0000400000000020B6-000000067F000032BE0000400000000030B6\
                         __000000578C6B2900-0000005793A50051";
    const IMAGE: &str = "000000067F000032BE0000400000000020B6-000000067F000032BE0000400000000030B6\
                         __000000578C6B2900";
    const L0: &str = "000000000000000000000000000000000000-FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF\
                      __0000000001696070-00000000016960E9";

    #[test]
    fn names_survive_a_round_trip() {
        for (text, delta, l0) in [(DELTA, true, false), (IMAGE, false, false), (L0, true, true)] {
            let name: LayerFileName = text.parse().unwrap();
            assert_eq!(name.to_string(), text);
            assert_eq!((name.is_delta(), name.is_l0()), (delta, l0), "{text}");
        }
        let image: LayerFileName = IMAGE.parse().unwrap();
        assert_eq!(image.lsn_range(), Lsn(0x0057_8C6B_2900)..Lsn(0x0057_8C6B_2901));
    }

    #[test]
    fn anything_else_is_refused() {
        let backwards = "000000067F000032BE0000400000000030B6-000000067F000032BE0000400000000020B6\
                         __000000578C6B2900";
        let no_lsns = "000000067F000032BE0000400000000020B6-000000067F000032BE0000400000000030B6\
                       __0000000000000010-0000000000000010";
        for text in [
            "",
            "metadata",
            &DELTA.to_lowercase(),
            &DELTA[1..],
            &IMAGE[..IMAGE.len() - 1],
            &format!("{DELTA}.0.old"),
            &format!("{IMAGE}.abcdefgh.___temp"),
            &IMAGE.replace("__00000057", "__FFFFFFFFFFFFFFFF"),
            "000000067F000032BE0000400000000020é6-000000067F000032BE0000400000000030B6__000000578C6B2900",
            backwards,
            no_lsns,
        ] {
            assert!(text.parse::<LayerFileName>().is_err(), "{text}");
        }
    }
}
