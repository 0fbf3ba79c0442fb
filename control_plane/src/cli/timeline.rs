//! `neon_local timeline`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use pageserver_api::models::TimelineCreateRequest;
use utils::id::{TenantId, TimelineId};
use utils::lsn::Lsn;

use crate::endpoint::{self, EndpointMode, NewEndpoint};
use crate::env::{LocalEnv, PG_VERSION};
use crate::output::{say, say_part};
use crate::pageserver::Pageserver;
use crate::safekeeper;
use crate::timeline_tree;

/// Commands on timelines.
#[derive(clap::Subcommand)]
pub enum TimelineCommand {
    /// Show a tenant's timelines as a tree
    List {
        /// The tenant
        #[arg(long)]
        tenant_id: Option<TenantId>,
    },
    /// Create a new, empty cluster
    Create {
        /// The tenant
        #[arg(long)]
        tenant_id: Option<TenantId>,
        /// Name of the branch
        #[arg(long)]
        branch_name: Option<String>,
        /// Major version of PostgreSQL
        #[arg(long, default_value_t = PG_VERSION)]
        pg_version: u32,
    },
    /// Branch off another branch, at its end or at an LSN
    Branch {
        /// The tenant
        #[arg(long)]
        tenant_id: Option<TenantId>,
        /// Name of the new branch
        #[arg(long)]
        branch_name: Option<String>,
        /// Branch to start from
        #[arg(long, default_value = "main")]
        ancestor_branch_name: String,
        /// Where to start; the end of the ancestor if not given
        #[arg(long)]
        ancestor_start_lsn: Option<Lsn>,
    },
    /// Import a base backup, and WAL that follows it, as a new timeline
    Import(ImportArgs),
}

/// Arguments of `timeline import`.
#[derive(clap::Args)]
pub struct ImportArgs {
    /// The tenant
    #[arg(long)]
    tenant_id: Option<TenantId>,
    /// Id of the new timeline
    #[arg(long)]
    timeline_id: TimelineId,
    /// Name of the new branch and of an endpoint on it
    #[arg(long)]
    node_name: String,
    /// Base backup, tar
    #[arg(long)]
    base_tarfile: PathBuf,
    /// LSN of the base backup
    #[arg(long)]
    base_lsn: Lsn,
    /// WAL segments, tar
    #[arg(long)]
    wal_tarfile: Option<PathBuf>,
    /// End of the WAL to import
    #[arg(long)]
    end_lsn: Option<Lsn>,
    /// Major version of PostgreSQL
    #[arg(long, default_value_t = PG_VERSION)]
    pg_version: u32,
}

/// Runs a command on timelines.
pub async fn run(command: TimelineCommand, env: &mut LocalEnv) -> Result<()> {
    match command {
        TimelineCommand::List { tenant_id } => list(env.tenant_or_default(tenant_id)?, env).await,
        TimelineCommand::Create {
            tenant_id,
            branch_name,
            pg_version,
        } => {
            let tenant = env.tenant_or_default(tenant_id)?;
            env.pg_bin_dir(pg_version)?;
            let request = TimelineCreateRequest {
                pg_version: Some(pg_version),
                ..TimelineCreateRequest::default()
            };
            make(tenant, branch_name, request, "", env).await
        }
        TimelineCommand::Branch {
            tenant_id,
            branch_name,
            ancestor_branch_name,
            ancestor_start_lsn,
        } => {
            let tenant = env.tenant_or_default(tenant_id)?;
            let ancestor = env
                .timeline_of_branch(&ancestor_branch_name, tenant)
                .with_context(|| format!("Found no timeline id for branch name '{ancestor_branch_name}'"))?;
            // The pageserver may not have all that is committed yet; it waits for the LSN it is given.
            let start = match ancestor_start_lsn {
                Some(lsn) => Some(lsn),
                None => safekeeper::committed_lsn(env, tenant, ancestor).await?,
            };
            let request = TimelineCreateRequest {
                ancestor_timeline_id: Some(ancestor),
                ancestor_start_lsn: start,
                ..TimelineCreateRequest::default()
            };
            let tail = format!(". Ancestor timeline: '{ancestor_branch_name}'");
            make(tenant, branch_name, request, &tail, env).await
        }
        TimelineCommand::Import(arguments) => import(arguments, env).await,
    }
}

async fn list(tenant: TenantId, env: &LocalEnv) -> Result<()> {
    let timelines = Pageserver::new(env).timelines(tenant).await?;
    let name_of = |timeline| env.branch_of_timeline(tenant, timeline).map(str::to_owned);
    say_part!("{}", timeline_tree::render(&timelines, name_of));
    Ok(())
}

async fn make(
    tenant: TenantId,
    branch: Option<String>,
    request: TimelineCreateRequest,
    tail: &str,
    env: &mut LocalEnv,
) -> Result<()> {
    let branch = branch.context("No branch name provided")?;
    env.check_branch_is_free(&branch, tenant)?;
    let request = TimelineCreateRequest {
        new_timeline_id: Some(TimelineId::generate()),
        ..request
    };
    let timeline = Pageserver::new(env).create_timeline(tenant, &request).await?;
    let id = timeline.timeline_id;
    env.map_branch(&branch, tenant, id)?;
    env.save()?;
    // A branch begins where it left its ancestor, whatever it has received since.
    let lsn = timeline.ancestor_lsn.unwrap_or(timeline.last_record_lsn);
    say!("Created timeline '{id}' at Lsn {lsn} for tenant: {tenant}{tail}");
    Ok(())
}

async fn import(arguments: ImportArgs, env: &mut LocalEnv) -> Result<()> {
    let tenant = env.tenant_or_default(arguments.tenant_id)?;
    let (timeline, base_lsn) = (arguments.timeline_id, arguments.base_lsn);
    let wal = arguments.wal_tarfile.zip(arguments.end_lsn);
    let end_lsn = wal.as_ref().map_or(base_lsn, |(_, end_lsn)| *end_lsn);
    env.check_branch_is_free(&arguments.node_name, tenant)?;
    say!("Importing timeline into pageserver ...");
    let pageserver = Pageserver::new(env);
    let version = arguments.pg_version;
    let base = format!("import basebackup {tenant} {timeline} {base_lsn} {end_lsn} {version}");
    pageserver.copy_in(tenant, &base, &arguments.base_tarfile).await?;
    if let Some((file, end_lsn)) = wal {
        let command = format!("import wal {tenant} {timeline} {base_lsn} {end_lsn}");
        pageserver.copy_in(tenant, &command, &file).await?;
    }
    env.map_branch(&arguments.node_name, tenant, timeline)?;
    env.save()?;
    say!("Creating node for imported timeline ...");
    let new = NewEndpoint {
        name: arguments.node_name,
        tenant_id: tenant,
        timeline_id: timeline,
        mode: EndpointMode::Primary,
        port: None,
        pg_version: version,
    };
    endpoint::create(env, new)?;
    say!("Done");
    Ok(())
}
