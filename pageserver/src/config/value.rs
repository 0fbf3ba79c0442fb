//! Values of settings: what TOML has, and durations and names written as strings.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use pageserver_api::tenant_config::TenantConfigOverrides;
use toml_edit::Item;
use utils::logging::LogFormat;

use super::AuthType;
use crate::tenant::disk_usage::DiskUsageConfig;

/// What is wrong with a value.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ValueError(String);

impl ValueError {
    pub(super) fn new(reason: impl ToString) -> Self {
        ValueError(reason.to_string().trim_end().to_owned())
    }
}

/// Types a setting may have.
pub(super) trait Setting: Sized {
    fn from_item(item: &Item) -> Result<Self, ValueError>;
}

fn text(item: &Item) -> Result<&str, ValueError> {
    item.as_str().ok_or_else(|| ValueError::new("expected a string"))
}

/// The item as a document's only value, for what is read through serde.
fn deserialized<T: serde::de::DeserializeOwned>(item: &Item) -> Result<T, ValueError> {
    #[derive(serde::Deserialize)]
    struct Wrapper<T> {
        value: T,
    }
    let mut document = toml_edit::DocumentMut::new();
    document.insert("value", item.clone());
    let wrapper: Wrapper<T> =
        toml::from_str(&document.to_string()).map_err(|error| ValueError::new(error.message()))?;
    Ok(wrapper.value)
}

impl Setting for String {
    fn from_item(item: &Item) -> Result<Self, ValueError> {
        text(item).map(str::to_owned)
    }
}

impl Setting for PathBuf {
    fn from_item(item: &Item) -> Result<Self, ValueError> {
        text(item).map(PathBuf::from)
    }
}

impl Setting for u64 {
    fn from_item(item: &Item) -> Result<Self, ValueError> {
        let number = item.as_integer().and_then(|number| u64::try_from(number).ok());
        number.ok_or_else(|| ValueError::new("expected a number that is not negative"))
    }
}

impl Setting for DiskUsageConfig {
    fn from_item(item: &Item) -> Result<Self, ValueError> {
        deserialized(item)
    }
}

impl Setting for bool {
    fn from_item(item: &Item) -> Result<Self, ValueError> {
        item.as_bool()
            .ok_or_else(|| ValueError::new("expected true or false"))
    }
}

impl Setting for Duration {
    fn from_item(item: &Item) -> Result<Self, ValueError> {
        humantime::parse_duration(text(item)?).map_err(ValueError::new)
    }
}

impl Setting for Vec<String> {
    fn from_item(item: &Item) -> Result<Self, ValueError> {
        deserialized(item)
    }
}

impl Setting for toml::Table {
    fn from_item(item: &Item) -> Result<Self, ValueError> {
        deserialized(item)
    }
}

impl Setting for LogFormat {
    fn from_item(item: &Item) -> Result<Self, ValueError> {
        // `test` is what older suites write for "as the test runner likes it".
        match text(item)? {
            "test" => Ok(LogFormat::Plain),
            name => LogFormat::from_str(name).map_err(ValueError::new),
        }
    }
}

impl Setting for AuthType {
    fn from_item(item: &Item) -> Result<Self, ValueError> {
        text(item)?.parse().map_err(ValueError::new)
    }
}

impl Setting for TenantConfigOverrides {
    fn from_item(item: &Item) -> Result<Self, ValueError> {
        let table: toml::Table = deserialized(item)?;
        // The HTTP API ignores unknown fields; a configuration file must not hide a typing error.
        let known = serde_json::to_value(pageserver_api::tenant_config::TenantConfig::default())
            .expect("settings have a JSON form");
        if let Some(unknown) = table.keys().find(|key| known.get(key).is_none()) {
            return Err(ValueError::new(format!(
                "unrecognized tenant setting '{unknown}'"
            )));
        }
        table
            .try_into()
            .map_err(|error: toml::de::Error| ValueError::new(error.message()))
    }
}
