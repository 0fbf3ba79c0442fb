//! The command line: one module for each group of commands.

mod endpoint;
mod init;
mod nodes;
mod tenant;
mod timeline;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::env::LocalEnv;
use crate::process::StopMode;

/// Runs a whole cluster on this machine.
#[derive(Parser)]
#[command(name = "Neon CLI", bin_name = "neon_local", version = utils::VERSION, arg_required_else_help = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    /// Make a repository directory ($NEON_REPO_DIR, default .neon)
    Init(init::InitArgs),
    /// Start the broker, the pageserver and all safekeepers
    Start(nodes::StartArgs),
    /// Stop all endpoints, safekeepers, the pageserver and the broker
    Stop(nodes::StopArgs),
    /// Manage tenants
    #[command(subcommand, arg_required_else_help = true)]
    Tenant(tenant::TenantCommand),
    /// Manage timelines: create, branch, list
    #[command(subcommand, arg_required_else_help = true)]
    Timeline(timeline::TimelineCommand),
    /// Manage endpoints: the PostgreSQL servers clients connect to
    #[command(subcommand, alias = "pg", arg_required_else_help = true)]
    Endpoint(endpoint::EndpointCommand),
    /// Manage the pageserver
    #[command(subcommand, arg_required_else_help = true)]
    Pageserver(nodes::PageserverCommand),
    /// Manage safekeepers
    #[command(subcommand, arg_required_else_help = true)]
    Safekeeper(nodes::SafekeeperCommand),
}

/// `-m`, shared by all stopping commands.
#[derive(clap::Args)]
pub struct StopModeArg {
    /// fast: finish what is under way; immediate: at once
    #[arg(short = 'm', long = "stop-mode", default_value = "fast")]
    mode: StopMode,
}

impl Command {
    /// Whether the command works on an existing repository directory.
    pub fn needs_repo(&self) -> bool {
        !matches!(self, Command::Init(_))
    }
}

/// Runs a command. One that changes the configuration saves it when it has succeeded.
pub async fn run(command: Command, env: Option<LocalEnv>) -> Result<()> {
    if let Command::Init(arguments) = command {
        return init::run(arguments);
    }
    let mut env = env.context("this command needs a repository directory")?;
    match command {
        Command::Init(_) => unreachable!("handled above"),
        Command::Start(arguments) => nodes::start_all(arguments, &env).await,
        Command::Stop(arguments) => nodes::stop_all(arguments, &env).await,
        Command::Tenant(command) => tenant::run(command, &mut env).await,
        Command::Timeline(command) => timeline::run(command, &mut env).await,
        Command::Endpoint(command) => endpoint::run(command, &env).await,
        Command::Pageserver(command) => nodes::pageserver(command, &env).await,
        Command::Safekeeper(command) => nodes::safekeeper(command, &env).await,
    }
}
