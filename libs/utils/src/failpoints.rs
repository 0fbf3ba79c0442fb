//! Failpoints: named places where a test makes a process stop, wait or fail.
//!
//! The grammar is that of the `fail` crate, plus the action `exit`: log and leave the process with
//! status 1. Places are marked with `fail::fail_point!`. They are compiled in when the `fail`
//! crate's feature `failpoints` is on, which a daemon's cargo feature `testing` does.

use fail::cfg_callback;

/// Sets the failpoint `name` to `actions`, `[<pct>%][<cnt>*]<task>[(arg)]` joined by `->`, or `exit`.
///
/// # Errors
/// What is wrong with the actions.
pub fn configure(name: &str, actions: &str) -> Result<(), String> {
    if actions != "exit" {
        return fail::cfg(name, actions);
    }
    let place = name.to_owned();
    cfg_callback(name, move || {
        tracing::info!("Exit requested by failpoint {place}");
        std::process::exit(1);
    })
}

/// Sets all failpoints of the environment variable `FAILPOINTS`, `name=actions;...`.
///
/// # Errors
/// Which entry is malformed, and how.
pub fn configure_from_env() -> Result<(), String> {
    let Ok(list) = std::env::var("FAILPOINTS") else {
        return Ok(());
    };
    for entry in list.split(';').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (name, actions) = entry
            .split_once('=')
            .ok_or_else(|| format!("failpoint '{entry}' has no '='"))?;
        configure(name.trim(), actions.trim()).map_err(|why| format!("failpoint '{name}': {why}"))?;
    }
    Ok(())
}
