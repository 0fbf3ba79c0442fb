//! Identifiers: 16 random bytes, written as 32 lower-case hexadecimal digits.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The text is not 32 hexadecimal digits.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
#[error("'{0}' is not an id (expected 32 hexadecimal digits)")]
pub struct ParseIdError(pub String);

/// 16 bytes with the text form all our identifiers share.
#[derive(Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
struct Id([u8; 16]);

impl FromStr for Id {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut raw = [0; 16];
        hex::decode_to_slice(text, &mut raw).map_err(|_| ParseIdError(text.to_owned()))?;
        Ok(Id(raw))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = [0; 32];
        hex::encode_to_slice(self.0, &mut text).expect("32 digits hold 16 bytes");
        f.write_str(std::str::from_utf8(&text).expect("hexadecimal digits are ASCII"))
    }
}

macro_rules! id_newtype {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
        pub struct $name(Id);

        impl $name {
            /// A new random identifier.
            pub fn generate() -> Self {
                $name(Id(rand::random()))
            }

            /// The 16 bytes as they stand in binary formats.
            pub fn as_bytes(&self) -> [u8; 16] {
                self.0.0
            }
        }

        impl From<[u8; 16]> for $name {
            fn from(raw: [u8; 16]) -> Self {
                $name(Id(raw))
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                text.parse().map($name)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

id_newtype! {
    /// A tenant: one customer's set of timelines, sharing nothing with other tenants.
    TenantId
}

id_newtype! {
    /// A timeline: one branch of one database cluster's history. Unique within its tenant.
    TimelineId
}

/// The full name of a timeline. The text form is `<tenant>/<timeline>`.
#[derive(Clone, Copy, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct TenantTimelineId {
    /// The tenant that owns the timeline.
    pub tenant_id: TenantId,
    /// The timeline.
    pub timeline_id: TimelineId,
}

impl TenantTimelineId {
    /// Joins the two halves.
    pub fn new(tenant_id: TenantId, timeline_id: TimelineId) -> Self {
        TenantTimelineId {
            tenant_id,
            timeline_id,
        }
    }
}

impl fmt::Display for TenantTimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant_id, self.timeline_id)
    }
}

impl fmt::Debug for TenantTimelineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Number of a safekeeper or pageserver, chosen by its operator and unique within the cluster.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct NodeId(pub u64);

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form() {
        let text = "0123456789abcdef0123456789abcdef";
        assert_eq!(text.parse::<TenantId>().unwrap().to_string(), text);
        for bad in [
            "",
            "0123",
            "0123456789abcdef0123456789abcdeg",
            "0123456789abcdef0123456789abcdef00",
        ] {
            assert!(bad.parse::<TimelineId>().is_err(), "{bad}");
        }
    }
}
