use proptest::prelude::*;

use super::*;

fn tcp(host: &str, port: u16, user: &str) -> Config {
    Config::new(Host::Tcp(host.to_owned()), port, user)
}

fn check(text: &str, expected: Config) {
    assert_eq!(text.parse(), Ok(expected), "{text}");
}

#[test]
fn keyword_form() {
    check("", tcp("localhost", 5432, "postgres"));
    check("host=h port=1 user=u", tcp("h", 1, "u"));
    let mut config = tcp("h", 5432, "postgres");
    config.password = Some(Secret("a b'\\".into()));
    config.options = Some("-c timeline_id=1 tenant_id=2".into());
    config.replication = Some(Replication::Physical);
    check(
        r"  host = h password='a b\'\\' options='-c timeline_id=1 tenant_id=2' replication=true ",
        config,
    );
    let mut config = Config::new(Host::Unix("/run/pg".into()), 7, "postgres");
    config.connect_timeout = Some(Duration::from_secs(3));
    assert_eq!(config.to_string(), "/run/pg/.s.PGSQL.7");
    check("host=/run/pg port=7 connect_timeout=3 sslmode=disable", config);
}

#[test]
fn url_form() {
    check("postgresql://", tcp("localhost", 5432, "postgres"));
    check(
        "postgresql://no_user:@127.0.0.1:64000",
        tcp("127.0.0.1", 64000, "no_user"),
    );
    check("postgres://u@[::1]:1", tcp("::1", 1, "u"));
    let mut config = tcp("h", 5432, "u@x");
    config.password = Some(Secret("p/w".into()));
    config.dbname = Some("db".into());
    config.application_name = Some("a b".into());
    check("postgresql://u%40x:p%2Fw@h/db?application_name=a%20b", config);
    check(
        "postgresql:///?host=/run",
        Config::new(Host::Unix("/run".into()), 5432, "postgres"),
    );
}

#[test]
fn errors_name_the_setting_and_never_the_text() {
    for (text, message) in [
        ("host", "malformed connection string: a setting has no '='"),
        ("host='a", "malformed connection string: a quote is not closed"),
        ("colour=blue", "unknown connection setting 'colour'"),
        ("port=70000", "connection setting 'port' has an invalid value"),
        (
            "sslmode=require",
            "connection setting 'sslmode' has an invalid value",
        ),
        ("host=a,b", "connection setting 'host' has an invalid value"),
        (
            "postgresql://u%4@h",
            "malformed connection string: a percent sign is not followed by two hexadecimal digits",
        ),
    ] {
        assert_eq!(text.parse::<Config>().unwrap_err().to_string(), message, "{text}");
    }
}

#[test]
fn passwords_are_not_shown() {
    let config: Config = "host=h user=u password=hunter2".parse().unwrap();
    assert_eq!(config.password.as_ref().map(Secret::expose), Some("hunter2"));
    assert!(!format!("{config:?} {config}").contains("hunter2"));
}

proptest! {
    #[test]
    fn any_text_parses_or_fails(text in ".{0,60}") {
        let _ = text.parse::<Config>();
        let _ = format!("postgresql://{text}").parse::<Config>();
    }
}
