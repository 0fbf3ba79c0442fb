use super::*;

fn settings(text: &str, overrides: &[&str]) -> Result<Config, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(FILE_NAME), text).unwrap();
    let overrides: Vec<String> = overrides.iter().map(|text| (*text).to_owned()).collect();
    ConfigDocument::load(dir.path(), &overrides)?.settings()
}

#[test]
fn defaults_and_overrides() {
    let config = settings("id = 7", &[]).unwrap();
    assert_eq!(config.id, NodeId(7));
    assert_eq!(config.listen_pg_addr, "127.0.0.1:64000");
    assert_eq!(config.wait_lsn_timeout, Duration::from_secs(60));
    assert_eq!(config.broker.endpoints, ["http://127.0.0.1:50051"]);
    assert_eq!(config.tenant_config, TenantConfig::default());
    assert_eq!((config.auth, config.auth_public_key), (AuthMethod::Trust, None));

    let file = "id = 7\nwait_lsn_timeout = '5 s'\n[tenant_config]\ngc_horizon = 1\ngc_period = '1m'\n";
    let config = settings(
        file,
        &[
            "listen_pg_addr='127.0.0.1:1'\nlog_format='json'",
            "tenant_config={gc_horizon=5, max_lsn_wal_lag='9'}",
        ],
    )
    .unwrap();
    assert_eq!(config.listen_pg_addr, "127.0.0.1:1");
    assert_eq!(config.wait_lsn_timeout, Duration::from_secs(5));
    assert_eq!(config.tenant_config.gc_horizon, 5);
    assert_eq!(
        config.tenant_config.gc_period,
        Duration::from_secs(3600),
        "tables are replaced as a whole"
    );
    assert_eq!(config.tenant_config.max_lsn_wal_lag.get(), 9);
}

#[test]
fn both_spellings_of_the_broker() {
    let endpoints = |text: &str| {
        settings(&format!("id = 1\n{text}"), &[])
            .unwrap()
            .broker
            .endpoints
    };
    assert_eq!(
        endpoints("broker_endpoint = 'http://127.0.0.1:2/'"),
        ["http://127.0.0.1:2/"]
    );
    assert_eq!(
        endpoints("broker_endpoints = ['http://a:1', 'http://b:2']"),
        ["http://a:1", "http://b:2"]
    );
}

#[test]
fn errors_name_the_key() {
    let check = |text: &str, message: &str| {
        let error = settings(text, &[]).unwrap_err();
        assert_eq!(error.to_string(), message, "{text}");
    };
    check("", "pageserver option 'id' is missing");
    check(
        "id = 'x'",
        "pageserver option 'id': expected a number that is not negative",
    );
    check(
        "id = 1\ncolour = 'blue'",
        "unrecognized pageserver option 'colour'",
    );
    check(
        "id = 1\nauth_type = 'None'",
        "pageserver option 'auth_type': 'None' is neither Trust nor NeonJWT",
    );
    check(
        "id = 1\nwait_lsn_timeout = 60",
        "pageserver option 'wait_lsn_timeout': expected a string",
    );
    check(
        "id = 1\n[tenant_config]\ngc_horizont = 60",
        "pageserver option 'tenant_config': unrecognized tenant setting 'gc_horizont'",
    );
    let error = settings("id = 1\nauth_type = 'NeonJWT'", &[])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("pageserver option 'auth_validation_public_key_path': cannot read"),
        "{error}"
    );
    let error = settings("id = 1", &["= 5"]).unwrap_err().to_string();
    assert_eq!(error, "override \"= 5\" is not a TOML document");
}

#[test]
fn init_writes_what_load_reads_and_runs_once() {
    let dir = tempfile::tempdir().unwrap();
    let overrides = ["id=3".to_owned(), "tenant_config={gc_horizon=9}".to_owned()];
    let initial = ConfigDocument::initial(dir.path(), &overrides).unwrap();
    initial.settings().unwrap();
    initial.save().unwrap();
    let config = ConfigDocument::load(dir.path(), &[]).unwrap().settings().unwrap();
    assert_eq!((config.id, config.tenant_config.gc_horizon), (NodeId(3), 9));
    assert!(matches!(
        ConfigDocument::initial(dir.path(), &overrides),
        Err(ConfigError::Exists(_))
    ));
    let changed = ConfigDocument::load(dir.path(), &["id=4".to_owned()]).unwrap_err();
    assert_eq!(
        changed.to_string(),
        "pageserver option 'id' is 3 in the configuration file and cannot be changed to 4"
    );
    ConfigDocument::load(dir.path(), &["id=3".to_owned()]).unwrap();
}
