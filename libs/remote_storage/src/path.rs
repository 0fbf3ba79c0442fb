//! Names of objects.

use std::fmt;
use std::str::FromStr;

/// A relative, `/`-separated name of an object or of a group of objects.
///
/// No component is empty, `.` or `..`, so a name never leaves the storage's root.
#[derive(Clone, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct RemotePath(String);

/// The text cannot be the name of an object.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
#[error("'{0}' is not a relative path of non-empty components")]
pub struct BadRemotePath(pub String);

impl RemotePath {
    /// The name `component` under this one.
    pub fn join(&self, component: &str) -> Result<Self, BadRemotePath> {
        format!("{}/{component}", self.0).parse()
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last component.
    pub fn object_name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or(&self.0)
    }
}

impl FromStr for RemotePath {
    type Err = BadRemotePath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let good = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if text.split('/').all(good) {
            Ok(RemotePath(text.to_owned()))
        } else {
            Err(BadRemotePath(text.to_owned()))
        }
    }
}

impl fmt::Display for RemotePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_below_the_root() {
        assert_eq!(
            "tenants/x"
                .parse::<RemotePath>()
                .unwrap()
                .join("y")
                .unwrap()
                .object_name(),
            "y"
        );
        for bad in ["", "/a", "a/", "a//b", "../a", "a/./b", "a/..", "a\0b"] {
            assert!(bad.parse::<RemotePath>().is_err(), "{bad:?}");
        }
    }
}
