//! JSON web tokens: who may do what on pageservers and safekeepers.
//!
//! Tokens are RS256. `exp` is honoured if it is there, and not required. A valid signature opens a
//! connection; each command or route then asks [`Claims`] whether it may touch the tenant.

use std::path::Path;

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};

use crate::id::TenantId;

const ALGORITHM: Algorithm = Algorithm::RS256;

/// What the bearer of a token may do.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Everything that concerns one tenant.
    Tenant,
    /// Everything on a pageserver.
    PageServerApi,
    /// Everything on a safekeeper.
    SafekeeperData,
}

/// Contents of a token.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
pub struct Claims {
    /// Tenant a token of scope `tenant` is for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<TenantId>,
    /// What the bearer may do.
    pub scope: Scope,
}

impl Claims {
    /// Claims of a token for one tenant, or for a whole server.
    pub fn new(tenant_id: Option<TenantId>, scope: Scope) -> Self {
        Claims { tenant_id, scope }
    }

    fn may_access_tenant(&self, wanted: Option<TenantId>) -> Result<(), AuthError> {
        match (wanted, self.tenant_id) {
            (None, _) => Err(AuthError::ServerWide),
            (Some(_), None) => Err(AuthError::TenantMissing),
            (Some(wanted), Some(own)) if wanted == own => Ok(()),
            (Some(_), Some(_)) => Err(AuthError::TenantMismatch),
        }
    }

    /// Whether the bearer may use the pageserver for `tenant`, or as a whole (`None`).
    pub fn check_pageserver(&self, tenant: Option<TenantId>) -> Result<(), AuthError> {
        match self.scope {
            Scope::PageServerApi => Ok(()),
            Scope::Tenant => self.may_access_tenant(tenant),
            Scope::SafekeeperData => Err(AuthError::WrongScope("SafekeeperData", "Pageserver")),
        }
    }

    /// Whether the bearer may use the safekeeper for `tenant`, or as a whole (`None`).
    pub fn check_safekeeper(&self, tenant: Option<TenantId>) -> Result<(), AuthError> {
        match self.scope {
            Scope::SafekeeperData => Ok(()),
            Scope::Tenant => self.may_access_tenant(tenant),
            Scope::PageServerApi => Err(AuthError::WrongScope("PageServerApi", "Safekeeper")),
        }
    }
}

/// Why a bearer was turned away. The texts are part of the interface.
#[derive(Debug, Clone, Eq, PartialEq, thiserror::Error)]
pub enum AuthError {
    /// The token is for another tenant.
    #[error("Tenant id mismatch. Permission denied")]
    TenantMismatch,
    /// A tenant's token was used for the server as a whole.
    #[error("Attempt to access management api with tenant scope. Permission denied")]
    ServerWide,
    /// Scope `tenant` without a tenant.
    #[error("jwt token scope is Tenant, but tenant id is missing")]
    TenantMissing,
    /// The scope belongs to another kind of server.
    #[error("{0} scope makes no sense for {1}")]
    WrongScope(&'static str, &'static str),
    /// Signature, format or expiry are wrong. Says nothing of the token's contents.
    #[error("malformed jwt token")]
    Malformed,
}

/// A key file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file could not be read.
    #[error("cannot read key file {path}")]
    Read {
        /// The file.
        path: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The file holds no RSA key in PEM format.
    #[error("{path} holds no RSA key in PEM format")]
    Format {
        /// The file.
        path: String,
        /// The cause.
        source: jsonwebtoken::errors::Error,
    },
    /// The token could not be signed.
    #[error("cannot sign token")]
    Sign(#[source] jsonwebtoken::errors::Error),
}

fn read_key(path: &Path) -> Result<(String, Vec<u8>), KeyError> {
    let name = path.display().to_string();
    match std::fs::read(path) {
        Ok(pem) => Ok((name, pem)),
        Err(source) => Err(KeyError::Read { path: name, source }),
    }
}

/// Verifies tokens with a public key.
pub struct JwtAuth {
    key: DecodingKey,
    validation: Validation,
}

impl JwtAuth {
    /// Uses the RSA public key in the PEM file `path`.
    pub fn from_key_path(path: &Path) -> Result<Self, KeyError> {
        let (name, pem) = read_key(path)?;
        let key =
            DecodingKey::from_rsa_pem(&pem).map_err(|source| KeyError::Format { path: name, source })?;
        let mut validation = Validation::new(ALGORITHM);
        validation.required_spec_claims.clear();
        Ok(JwtAuth { key, validation })
    }

    /// The claims of a token with a valid signature that has not expired.
    pub fn decode(&self, token: &str) -> Result<Claims, AuthError> {
        let data = jsonwebtoken::decode::<Claims>(token, &self.key, &self.validation)
            .map_err(|_| AuthError::Malformed)?;
        if data.claims.scope == Scope::Tenant && data.claims.tenant_id.is_none() {
            return Err(AuthError::TenantMissing);
        }
        Ok(data.claims)
    }
}

impl std::fmt::Debug for JwtAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JwtAuth")
    }
}

/// Signs `claims` with the RSA private key in the PEM file `private_key`.
pub fn sign(claims: &Claims, private_key: &Path) -> Result<String, KeyError> {
    let (name, pem) = read_key(private_key)?;
    let key = EncodingKey::from_rsa_pem(&pem).map_err(|source| KeyError::Format { path: name, source })?;
    jsonwebtoken::encode(&Header::new(ALGORITHM), claims, &key).map_err(KeyError::Sign)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn key_pair(dir: &Path) -> (std::path::PathBuf, std::path::PathBuf) {
        let (private, public) = (dir.join("private.pem"), dir.join("public.pem"));
        let openssl = |args: &[&str]| {
            let output = Command::new("openssl").args(args).output().unwrap();
            assert!(output.status.success(), "{output:?}");
        };
        openssl(&["genrsa", "-out", private.to_str().unwrap(), "2048"]);
        let (private_text, public_text) = (private.to_str().unwrap(), public.to_str().unwrap());
        openssl(&[
            "rsa",
            "-in",
            private_text,
            "-pubout",
            "-outform",
            "PEM",
            "-out",
            public_text,
        ]);
        (private, public)
    }

    #[test]
    fn tokens_round_trip_and_forgeries_fail() {
        let dir = tempfile::tempdir().unwrap();
        let (private, public) = key_pair(dir.path());
        let auth = JwtAuth::from_key_path(&public).unwrap();
        let tenant = TenantId::generate();
        let claims = Claims::new(Some(tenant), Scope::Tenant);
        let token = sign(&claims, &private).unwrap();
        assert_eq!(auth.decode(&token), Ok(claims));
        let mut forged = token.into_bytes();
        let last = forged.len() - 10;
        forged[last] = if forged[last] == b'A' { b'B' } else { b'A' };
        assert_eq!(
            auth.decode(std::str::from_utf8(&forged).unwrap()),
            Err(AuthError::Malformed)
        );
        assert_eq!(auth.decode("x.y.z"), Err(AuthError::Malformed));
        let nobody = sign(&Claims::new(None, Scope::Tenant), &private).unwrap();
        assert_eq!(auth.decode(&nobody), Err(AuthError::TenantMissing));
    }

    #[test]
    fn scopes_open_what_they_should() {
        let (own, other) = (TenantId::generate(), TenantId::generate());
        let tenant = Claims::new(Some(own), Scope::Tenant);
        assert_eq!(tenant.check_pageserver(Some(own)), Ok(()));
        assert_eq!(tenant.check_safekeeper(Some(own)), Ok(()));
        assert_eq!(
            tenant.check_pageserver(Some(other)),
            Err(AuthError::TenantMismatch)
        );
        assert_eq!(tenant.check_safekeeper(None), Err(AuthError::ServerWide));
        assert_eq!(
            Claims::new(None, Scope::PageServerApi).check_pageserver(None),
            Ok(())
        );
        assert!(
            Claims::new(None, Scope::PageServerApi)
                .check_safekeeper(Some(own))
                .is_err()
        );
        assert!(
            Claims::new(None, Scope::SafekeeperData)
                .check_pageserver(Some(own))
                .is_err()
        );
    }

    #[test]
    fn claims_have_the_documented_json() {
        let json = serde_json::to_string(&Claims::new(None, Scope::PageServerApi)).unwrap();
        assert_eq!(json, r#"{"scope":"pageserverapi"}"#);
    }
}
