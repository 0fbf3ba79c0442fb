//! Settings of a tenant (configuration, section 7.3): what is set for one tenant, what holds for it.
//!
//! The same names and forms are used in `pageserver.toml`, in `tenants/<id>/config` and in HTTP bodies.

use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize};

/// When layers leave the local disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
pub enum EvictionPolicy {
    /// Never.
    NoEviction,
    /// When nobody read them for a time.
    LayerAccessThreshold {
        /// Time between two looks at the layers.
        #[serde(with = "humantime_serde")]
        period: Duration,
        /// Age of the last read from which on a layer is evicted.
        #[serde(with = "humantime_serde")]
        threshold: Duration,
    },
}

/// Defines the effective settings and the overrides from one table, so that they cannot differ.
macro_rules! tenant_settings {
    ($($(#[doc = $doc:literal])* $(#[serde($one:meta)])* [$($many:meta)?] $name:ident: $type:ty = $default:expr;)*) => {
        /// Settings that hold for a tenant.
        #[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
        pub struct TenantConfig {
            $($(#[doc = $doc])* $(#[serde($one)])* pub $name: $type,)*
        }

        /// Settings made for one tenant; what is `None` comes from the server's defaults.
        #[derive(Clone, Debug, Default, Eq, PartialEq, Serialize, Deserialize)]
        #[serde(default)]
        pub struct TenantConfigOverrides {
            $(
                $(#[doc = $doc])*
                #[serde(skip_serializing_if = "Option::is_none")]
                $(#[serde($many)])?
                pub $name: Option<$type>,
            )*
        }

        impl Default for TenantConfig {
            fn default() -> Self {
                TenantConfig { $($name: $default,)* }
            }
        }

        impl TenantConfigOverrides {
            /// The settings that hold where `defaults` are the server's.
            pub fn over(&self, defaults: &TenantConfig) -> TenantConfig {
                TenantConfig {
                    $($name: self.$name.clone().unwrap_or_else(|| defaults.$name.clone()),)*
                }
            }
        }
    };
}

tenant_settings! {
    /// Bytes of WAL after which the open layer is frozen and flushed.
    [] checkpoint_distance: u64 = 256 * 1024 * 1024;
    /// Time after which the open layer is frozen and flushed.
    #[serde(with = "humantime_serde")]
    [with = "humantime_serde"] checkpoint_timeout: Duration = Duration::from_secs(600);
    /// Wanted size of layer files that compaction writes, in bytes.
    [] compaction_target_size: u64 = 128 * 1024 * 1024;
    /// Time between two compactions; 0 is off.
    #[serde(with = "humantime_serde")]
    [with = "humantime_serde"] compaction_period: Duration = Duration::from_secs(20);
    /// Number of level 0 layers that are compacted together.
    [] compaction_threshold: usize = 10;
    /// Bytes of WAL behind the last record that stay readable.
    [] gc_horizon: u64 = 64 * 1024 * 1024;
    /// Time between two garbage collections; 0 is off.
    #[serde(with = "humantime_serde")]
    [with = "humantime_serde"] gc_period: Duration = Duration::from_secs(3600);
    /// Number of delta layers over the same keys that make a new image layer worth while.
    [] image_creation_threshold: usize = 3;
    /// Time behind now that stays readable.
    #[serde(with = "humantime_serde")]
    [with = "humantime_serde"] pitr_interval: Duration = Duration::from_secs(7 * 24 * 3600);
    /// How long connecting to a safekeeper may take.
    #[serde(with = "humantime_serde")]
    [with = "humantime_serde"] walreceiver_connect_timeout: Duration = Duration::from_secs(2);
    /// Silence of a safekeeper after which another one is tried.
    #[serde(with = "humantime_serde")]
    [with = "humantime_serde"] lagging_wal_timeout: Duration = Duration::from_secs(3);
    /// Bytes of WAL another safekeeper must be ahead to be preferred.
    #[serde(deserialize_with = "number_or_text")]
    [deserialize_with = "optional_number_or_text"] max_lsn_wal_lag: NonZeroU64 =
        NonZeroU64::new(10 * 1024 * 1024).expect("it is a positive constant");
    /// Whether read requests are recorded in files.
    [] trace_read_requests: bool = false;
    /// When layers leave the local disk.
    [] eviction_policy: EvictionPolicy = EvictionPolicy::NoEviction;
}

/// Older configuration files hold this number as a string.
fn number_or_text<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NonZeroU64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        Number(NonZeroU64),
        Text(String),
    }
    match Form::deserialize(deserializer)? {
        Form::Number(number) => Ok(number),
        Form::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

fn optional_number_or_text<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<NonZeroU64>, D::Error> {
    #[derive(Deserialize)]
    struct Wrapper(#[serde(deserialize_with = "number_or_text")] NonZeroU64);
    Ok(Option::<Wrapper>::deserialize(deserializer)?.map(|Wrapper(number)| number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_keep_what_is_not_set() {
        let text = r#"{"checkpoint_distance": 1000, "gc_period": "1h 5m", "max_lsn_wal_lag": "17",
                       "pitr_interval": null, "tenant_id": "ignored",
                       "eviction_policy": {"kind": "LayerAccessThreshold", "period": "20m", "threshold": "1h"}}"#;
        let overrides: TenantConfigOverrides = serde_json::from_str(text).unwrap();
        let config = overrides.over(&TenantConfig::default());
        assert_eq!(config.checkpoint_distance, 1000);
        assert_eq!(config.gc_period, Duration::from_secs(3900));
        assert_eq!(config.max_lsn_wal_lag.get(), 17);
        assert_eq!(config.compaction_threshold, 10);
        let again = serde_json::to_value(&overrides).unwrap();
        assert_eq!(again["gc_period"], "1h 5m");
        assert_eq!(again["eviction_policy"]["period"], "20m");
        assert_eq!(again.as_object().unwrap().len(), 4);
    }

    #[test]
    fn effective_settings_use_the_documented_texts() {
        let shown = serde_json::to_value(TenantConfig::default()).unwrap();
        assert_eq!(shown["compaction_period"], "20s");
        assert_eq!(shown["pitr_interval"], "7days");
        assert_eq!(shown["max_lsn_wal_lag"], 10485760);
        assert_eq!(shown.as_object().unwrap().len(), 14);
    }

    #[test]
    fn zero_lag_is_refused() {
        let parsed = serde_json::from_str::<TenantConfigOverrides>(r#"{"max_lsn_wal_lag": 0}"#);
        assert!(parsed.is_err());
    }
}
