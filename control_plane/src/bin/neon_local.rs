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
        eprintln!("command failed: {}", describe(&error));
        std::process::exit(1);
    }
    Ok(())
}

/// The error and its causes, a line each; no backtrace, which says nothing to a user.
fn describe(error: &anyhow::Error) -> String {
    let causes = error.chain().skip(1).map(|cause| format!("\n    {cause}"));
    let causes: String = causes.collect();
    if causes.is_empty() {
        error.to_string()
    } else {
        format!("{error}\n\nCaused by:{causes}")
    }
}
