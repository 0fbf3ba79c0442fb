//! Starting and stopping: everything, the pageserver, a safekeeper.

use anyhow::{Result, bail};
use utils::id::NodeId;

use super::StopModeArg;
use crate::env::LocalEnv;
use crate::output::say;
use crate::pageserver::Pageserver;
use crate::process::StopMode;
use crate::safekeeper::Safekeeper;
use crate::{broker, endpoint};

/// Arguments of `start`.
#[derive(clap::Args)]
pub struct StartArgs {
    /// Setting of the pageserver, TOML; repeatable
    #[arg(long = "pageserver-config-override")]
    pageserver_config_override: Vec<String>,
}

/// Arguments of `stop`.
#[derive(clap::Args)]
pub struct StopArgs {
    #[command(flatten)]
    mode: StopModeArg,
}

/// Commands on the pageserver.
#[derive(clap::Subcommand)]
pub enum PageserverCommand {
    /// Start it
    Start(StartArgs),
    /// Stop it
    Stop(StopArgs),
    /// Stop and start it
    Restart(StartArgs),
    /// Say whether it serves
    Status,
}

/// Which safekeeper.
#[derive(clap::Args)]
pub struct SafekeeperArgs {
    /// Id of the safekeeper
    #[arg(default_value_t = 1)]
    id: u64,
}

/// Commands on a safekeeper.
#[derive(clap::Subcommand)]
pub enum SafekeeperCommand {
    /// Start it
    Start(SafekeeperArgs),
    /// Stop it
    Stop {
        #[command(flatten)]
        #[allow(missing_docs)] // A doc comment here would become the help text of the argument.
        which: SafekeeperArgs,
        #[command(flatten)]
        #[allow(missing_docs)] // As above.
        mode: StopModeArg,
    },
    /// Stop and start it
    Restart {
        #[command(flatten)]
        #[allow(missing_docs)] // As above.
        which: SafekeeperArgs,
        #[command(flatten)]
        #[allow(missing_docs)] // As above.
        mode: StopModeArg,
    },
}

/// Starts the broker, the pageserver and the safekeepers; if one fails, stops what was started.
pub async fn start_all(arguments: StartArgs, env: &LocalEnv) -> Result<()> {
    broker::start(env).await?;
    let failed = start_nodes(&arguments, env).await;
    if let Err(what) = failed {
        eprintln!("{what:#}");
        stop_nodes(env, StopMode::Immediate).await;
        std::process::exit(1);
    }
    Ok(())
}

async fn start_nodes(arguments: &StartArgs, env: &LocalEnv) -> Result<()> {
    let pageserver = Pageserver::new(env);
    if let Err(error) = pageserver.start(&arguments.pageserver_config_override).await {
        bail!("pageserver {} start failed: {error:#}", env.config.pageserver.id);
    }
    for node in Safekeeper::all(env) {
        if let Err(error) = node.start().await {
            bail!("safekeeper {} start failed: {error:#}", node.id());
        }
    }
    Ok(())
}

/// Stops everything. What cannot be stopped is reported, and the rest stopped all the same.
pub async fn stop_all(arguments: StopArgs, env: &LocalEnv) -> Result<()> {
    for endpoint in endpoint::all(env)? {
        if endpoint.status() != endpoint::Status::Stopped
            && let Err(error) = endpoint.stop(StopMode::Fast)
        {
            eprintln!("postgres stop failed: {error:#}");
        }
    }
    stop_nodes(env, arguments.mode.mode).await;
    Ok(())
}

async fn stop_nodes(env: &LocalEnv, mode: StopMode) {
    if let Err(error) = Pageserver::new(env).stop(mode).await {
        eprintln!("pageserver {} stop failed: {error:#}", env.config.pageserver.id);
    }
    for node in Safekeeper::all(env) {
        if let Err(error) = node.stop(mode).await {
            eprintln!("safekeeper {} stop failed: {error:#}", node.id());
        }
    }
    if let Err(error) = broker::stop(env).await {
        eprintln!("neon broker stop failed: {error:#}");
    }
}

/// Reports a node's failure the documented way: on stderr, status 1.
fn or_exit(what: &str, result: Result<()>) {
    if let Err(error) = result {
        eprintln!("{what}: {error:#}");
        std::process::exit(1);
    }
}

/// Runs a command on the pageserver.
pub async fn pageserver(command: PageserverCommand, env: &LocalEnv) -> Result<()> {
    let node = Pageserver::new(env);
    match command {
        PageserverCommand::Start(arguments) => {
            let started = node.start(&arguments.pageserver_config_override).await;
            or_exit("pageserver start failed", started);
        }
        PageserverCommand::Stop(arguments) => {
            or_exit("pageserver stop failed", node.stop(arguments.mode.mode).await);
        }
        PageserverCommand::Restart(arguments) => {
            or_exit("pageserver stop failed", node.stop(StopMode::Fast).await);
            let started = node.start(&arguments.pageserver_config_override).await;
            or_exit("pageserver start failed", started);
        }
        PageserverCommand::Status => match node.status().await {
            Ok(()) => say!("Page server is up and running"),
            Err(error) => or_exit("Page server is not available", Err(error)),
        },
    }
    Ok(())
}

/// Runs a command on a safekeeper.
pub async fn safekeeper(command: SafekeeperCommand, env: &LocalEnv) -> Result<()> {
    let find = |which: &SafekeeperArgs| Safekeeper::find(env, NodeId(which.id));
    match command {
        SafekeeperCommand::Start(which) => {
            or_exit("safekeeper start failed", find(&which)?.start().await);
        }
        SafekeeperCommand::Stop { which, mode } => {
            or_exit("safekeeper stop failed", find(&which)?.stop(mode.mode).await);
        }
        SafekeeperCommand::Restart { which, mode } => {
            let node = find(&which)?;
            or_exit("safekeeper stop failed", node.stop(mode.mode).await);
            or_exit("safekeeper start failed", node.start().await);
        }
    }
    Ok(())
}
