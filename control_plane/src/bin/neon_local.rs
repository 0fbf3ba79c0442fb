//! Entry point of `neon_local`.

use clap::Parser;
use control_plane::cli::{Cli, run};
use control_plane::env::LocalEnv;

#[tokio::main(worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    // Without a repository directory nothing but `init` makes sense; that is an error of `main`.
    let env = if cli.command.needs_repo() {
        Some(LocalEnv::load()?)
    } else {
        None
    };
    if let Err(error) = run(cli.command, env).await {
        eprintln!("command failed: {error:?}");
        std::process::exit(1);
    }
    Ok(())
}
