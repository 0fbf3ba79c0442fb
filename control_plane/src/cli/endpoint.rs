//! `neon_local endpoint`, also known as `neon_local pg`.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use pageserver_api::models::TimelineInfo;
use utils::id::{TenantId, TimelineId};
use utils::lsn::Lsn;

use crate::endpoint::{self, Endpoint, EndpointMode, NewEndpoint};
use crate::env::{LocalEnv, PG_VERSION};
use crate::output::{say, say_part};
use crate::pageserver::Pageserver;
use crate::process::StopMode;

/// Commands on endpoints.
#[derive(clap::Subcommand)]
pub enum EndpointCommand {
    /// List endpoints
    List {
        /// The tenant
        #[arg(long)]
        tenant_id: Option<TenantId>,
    },
    /// Create an endpoint on a branch, without starting it
    Create(CreateArgs),
    /// Start an endpoint, creating it if needed
    Start(StartArgs),
    /// Stop an endpoint
    Stop {
        /// Name of the endpoint
        node: String,
        /// The tenant
        #[arg(long)]
        tenant_id: Option<TenantId>,
        /// Stop at once and remove its directory
        #[arg(long)]
        destroy: bool,
    },
}

/// What an endpoint is made of.
#[derive(clap::Args)]
pub struct WhatArgs {
    /// The tenant
    #[arg(long)]
    tenant_id: Option<TenantId>,
    /// The branch
    #[arg(long, default_value = "main")]
    branch_name: String,
    /// Show the branch as of this LSN for ever, read only
    #[arg(long)]
    lsn: Option<Lsn>,
    /// Follow the branch's primary, read only
    #[arg(long, conflicts_with = "lsn")]
    hot_standby: bool,
    /// Port to listen on; the next free one if not given
    #[arg(long)]
    port: Option<u16>,
    /// Major version of PostgreSQL
    #[arg(long, default_value_t = PG_VERSION)]
    pg_version: u32,
}

/// Arguments of `endpoint create`.
#[derive(clap::Args)]
pub struct CreateArgs {
    /// Name of the endpoint; <branch>_node if not given
    node: Option<String>,
    #[command(flatten)]
    what: WhatArgs,
    /// No effect: creating an endpoint writes its configuration only
    #[arg(long)]
    config_only: bool,
}

/// Arguments of `endpoint start`.
#[derive(clap::Args)]
pub struct StartArgs {
    /// Name of the endpoint
    node: String,
    #[command(flatten)]
    what: WhatArgs,
    /// No effect: the branch says which timeline
    #[arg(long)]
    timeline_id: Option<TimelineId>,
}

/// Runs a command on endpoints.
pub async fn run(command: EndpointCommand, env: &LocalEnv) -> Result<()> {
    match command {
        EndpointCommand::List { tenant_id } => list(env.tenant_or_default(tenant_id)?, env).await,
        EndpointCommand::Create(arguments) => {
            let name = arguments
                .node
                .unwrap_or_else(|| format!("{}_node", arguments.what.branch_name));
            create(name, arguments.what, env).map(drop)
        }
        EndpointCommand::Start(arguments) => start(arguments, env).await,
        EndpointCommand::Stop {
            node,
            tenant_id,
            destroy,
        } => {
            let tenant = env.tenant_or_default(tenant_id)?;
            let found = endpoint::find(env, tenant, &node)?;
            let found = found.with_context(|| format!("postgres {node} is not found"))?;
            if destroy {
                found.destroy()
            } else {
                found.stop(StopMode::Fast)
            }
        }
    }
}

fn create(name: String, what: WhatArgs, env: &LocalEnv) -> Result<Endpoint<'_>> {
    let tenant = env.tenant_or_default(what.tenant_id)?;
    let timeline = env
        .timeline_of_branch(&what.branch_name, tenant)
        .with_context(|| format!("Found no timeline id for branch name '{}'", what.branch_name))?;
    let mode = match what.lsn {
        Some(lsn) => EndpointMode::Static(lsn),
        None if what.hot_standby => EndpointMode::HotStandby,
        None => EndpointMode::Primary,
    };
    let new = NewEndpoint {
        name,
        tenant_id: tenant,
        timeline_id: timeline,
        mode,
        port: what.port,
        pg_version: what.pg_version,
    };
    endpoint::create(env, new)
}

async fn start(arguments: StartArgs, env: &LocalEnv) -> Result<()> {
    let tenant = env.tenant_or_default(arguments.what.tenant_id)?;
    let name = arguments.node;
    let endpoint = match endpoint::find(env, tenant, &name)? {
        Some(found) => {
            if let Some(port) = arguments.what.port.filter(|port| *port != found.conf.port) {
                bail!(
                    "endpoint '{name}' exists with port {}, not {port}",
                    found.conf.port
                );
            }
            say!("Starting existing postgres {name}...");
            found
        }
        None => {
            let version = arguments.what.pg_version;
            let new = create(name, arguments.what, env)?;
            let timeline = new.conf.timeline_id;
            say!(
                "Starting new postgres (v{version}) {} on timeline {timeline} ...",
                new.name
            );
            new
        }
    };
    endpoint.start().await
}

async fn list(tenant: TenantId, env: &LocalEnv) -> Result<()> {
    // The list is useful without the pageserver: positions are then unknown.
    let timelines: HashMap<TimelineId, TimelineInfo> = match Pageserver::new(env).timelines(tenant).await {
        Ok(timelines) => timelines
            .into_iter()
            .map(|info| (info.timeline_id, info))
            .collect(),
        Err(error) => {
            eprintln!("cannot ask the pageserver for LSNs: {error:#}");
            HashMap::new()
        }
    };
    let header = ["NODE", "ADDRESS", "TIMELINE", "BRANCH NAME", "LSN", "STATUS"].map(str::to_owned);
    let mut rows = vec![header];
    for endpoint in endpoint::all(env)?
        .into_iter()
        .filter(|endpoint| endpoint.conf.tenant_id == tenant)
    {
        let timeline = endpoint.conf.timeline_id;
        let end = timelines.get(&timeline).map(|info| info.last_record_lsn);
        let lsn = match endpoint.conf.mode {
            EndpointMode::Static(lsn) => Some(lsn),
            EndpointMode::Primary | EndpointMode::HotStandby => end,
        };
        let lsn = lsn.map_or_else(|| "?".to_owned(), |lsn| lsn.to_string());
        rows.push([
            endpoint.name.clone(),
            endpoint.address(),
            timeline.to_string(),
            env.branch_of_timeline(tenant, timeline).unwrap_or("?").to_owned(),
            lsn,
            endpoint.status().to_string(),
        ]);
    }
    say_part!("{}", table(&rows));
    Ok(())
}

/// Columns padded with blanks, two between them.
fn table(rows: &[[String; 6]]) -> String {
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..6).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}
