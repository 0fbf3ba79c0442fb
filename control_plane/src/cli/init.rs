//! `neon_local init`: makes a repository directory.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use utils::auth::Scope;

use crate::account::{Account, create_reachable_dir};
use crate::env::{LocalEnv, PG_VERSION, default_config, parse_config, repo_path};
use crate::output::say;
use crate::pageserver::Pageserver;
use crate::safekeeper::Safekeeper;

/// Arguments of `init`.
#[derive(clap::Args)]
pub struct InitArgs {
    /// Configuration to start from, TOML
    #[arg(long)]
    config: Option<PathBuf>,
    /// Major version of PostgreSQL
    #[arg(long, default_value_t = PG_VERSION)]
    pg_version: u32,
    /// Setting of the pageserver, TOML; repeatable
    #[arg(long = "pageserver-config-override")]
    pageserver_config_override: Vec<String>,
}

/// Makes the directory, keys and the pageserver's configuration. On failure nothing stays.
pub fn run(arguments: InitArgs) -> Result<()> {
    let mut config = match &arguments.config {
        None => default_config(),
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            parse_config(&text, &path.display().to_string())?
        }
    };
    if config.pg_distrib_dir.as_os_str().is_empty()
        && let Some(dir) = std::env::var_os("POSTGRES_DISTRIB_DIR")
    {
        config.pg_distrib_dir = PathBuf::from(dir);
    }
    if config.neon_distrib_dir.as_os_str().is_empty() {
        let program = std::env::current_exe().context("cannot find my own path")?;
        config.neon_distrib_dir = program.parent().context("a program has a directory")?.to_owned();
    }
    let mut env = LocalEnv {
        repo: repo_path()?,
        config,
    };
    check(&env, arguments.pg_version)?;
    std::fs::create_dir_all(&env.repo).with_context(|| format!("cannot create {}", env.repo.display()))?;
    let done = fill(&mut env, &arguments.pageserver_config_override);
    if done.is_err() {
        // Half a repository directory would only stand in the way of the next try.
        let _ = std::fs::remove_dir_all(&env.repo);
    }
    done
}

fn check(env: &LocalEnv, pg_version: u32) -> Result<()> {
    if env.repo.exists() {
        bail!(
            "directory '{}' already exists. Perhaps already initialized?",
            env.repo.display()
        );
    }
    let bin = env.pg_bin_dir(pg_version)?;
    ensure!(
        bin.join("postgres").exists(),
        "Can't find postgres binary at {}",
        bin.display()
    );
    for name in ["pageserver", "safekeeper", "walproposer"] {
        let dir = env.config.neon_distrib_dir.display();
        ensure!(
            env.binary(name).exists(),
            "Can't find binary '{name}' in neon distrib dir '{dir}'"
        );
    }
    Ok(())
}

fn fill(env: &mut LocalEnv, overrides: &[String]) -> Result<()> {
    if env.config.private_key_path.as_os_str().is_empty() {
        make_keys(&env.repo)?;
        env.config.private_key_path = PathBuf::from("auth_private_key.pem");
    }
    env.config.pageserver.auth_token = env.token(None, Scope::PageServerApi)?;
    make_compute_root(env)?;
    for node in Safekeeper::all(env) {
        let dir = node.dir();
        std::fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    env.save()?;
    Pageserver::new(env).init(overrides)
}

fn make_keys(repo: &Path) -> Result<()> {
    let path = |name: &str| repo.join(name).display().to_string();
    let (private, public) = (path("auth_private_key.pem"), path("auth_public_key.pem"));
    let openssl = |arguments: &[&str]| -> Result<()> {
        let output = Command::new("openssl")
            .args(arguments)
            .output()
            .context("cannot run openssl")?;
        let text = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "openssl {} failed: {text}", arguments[0]);
        Ok(())
    };
    openssl(&["genrsa", "-out", &private, "2048"])?;
    openssl(&[
        "rsa", "-in", &private, "-pubout", "-outform", "PEM", "-out", &public,
    ])
}

/// Makes `pgdatadirs/tenants` where PostgreSQL's account can reach it.
fn make_compute_root(env: &LocalEnv) -> Result<()> {
    let path = env.repo.join("pgdatadirs");
    if Account::find()?.reaches(&env.repo) {
        std::fs::create_dir(&path).with_context(|| format!("cannot create {}", path.display()))?;
    } else {
        let elsewhere = create_reachable_dir()?;
        say!(
            "PostgreSQL's account cannot enter {}: data directories of endpoints are in {}",
            env.repo.display(),
            elsewhere.display()
        );
        std::os::unix::fs::symlink(&elsewhere, &path)
            .with_context(|| format!("cannot link {}", path.display()))?;
    }
    std::fs::create_dir(path.join("tenants")).context("cannot create pgdatadirs/tenants")
}
