//! `neon_local tenant`.

use anyhow::{Context, Result, bail};
use pageserver_api::models::TimelineCreateRequest;
use serde_json::{Map, Value};
use utils::id::{TenantId, TimelineId};

use crate::env::{LocalEnv, PG_VERSION};
use crate::output::say;
use crate::pageserver::Pageserver;

/// Branch every new tenant has.
const FIRST_BRANCH: &str = "main";

/// Settings a tenant can have, and whether their value is a number or a truth value in JSON.
const SETTINGS: [(&str, Form); 14] = [
    ("checkpoint_distance", Form::Json),
    ("checkpoint_timeout", Form::Text),
    ("compaction_target_size", Form::Json),
    ("compaction_period", Form::Text),
    ("compaction_threshold", Form::Json),
    ("gc_horizon", Form::Json),
    ("gc_period", Form::Text),
    ("image_creation_threshold", Form::Json),
    ("pitr_interval", Form::Text),
    ("walreceiver_connect_timeout", Form::Text),
    ("lagging_wal_timeout", Form::Text),
    ("max_lsn_wal_lag", Form::Json),
    ("trace_read_requests", Form::Json),
    ("eviction_policy", Form::Json),
];

#[derive(Clone, Copy)]
enum Form {
    /// A JSON number, truth value or object.
    Json,
    /// A duration, which is a JSON string.
    Text,
}

/// Commands on tenants.
#[derive(clap::Subcommand)]
pub enum TenantCommand {
    /// List all tenants
    List,
    /// Create a tenant with a first timeline, its branch 'main'
    Create(CreateArgs),
    /// Make a tenant the one that commands mean when they name none
    SetDefault {
        /// The tenant
        #[arg(long)]
        tenant_id: TenantId,
    },
    /// Replace a tenant's settings
    Config {
        /// The tenant
        #[arg(long)]
        tenant_id: Option<TenantId>,
        /// Setting, key:value; repeatable
        #[arg(short = 'c', value_name = "KEY:VALUE")]
        config: Vec<String>,
    },
}

/// Arguments of `tenant create`.
#[derive(clap::Args)]
pub struct CreateArgs {
    /// Id of the tenant; generated if not given
    #[arg(long)]
    tenant_id: Option<TenantId>,
    /// Id of its first timeline; generated if not given
    #[arg(long)]
    timeline_id: Option<TimelineId>,
    /// Setting, key:value; repeatable
    #[arg(short = 'c', value_name = "KEY:VALUE")]
    config: Vec<String>,
    /// Major version of PostgreSQL
    #[arg(long, default_value_t = PG_VERSION)]
    pg_version: u32,
    /// Make it the tenant that commands mean when they name none
    #[arg(long)]
    set_default: bool,
}

/// Settings that are known, as JSON, and the names of those that are not.
fn parse_settings(given: &[String]) -> Result<(Map<String, Value>, Vec<String>)> {
    let (mut known, mut unknown) = (Map::new(), Vec::new());
    for setting in given {
        let (key, value) = setting
            .split_once(':')
            .with_context(|| format!("'{setting}' is not of the form key:value"))?;
        let Some((_, form)) = SETTINGS.iter().find(|(name, _)| *name == key) else {
            unknown.push(key.to_owned());
            continue;
        };
        let value = match form {
            Form::Text => Value::String(value.to_owned()),
            Form::Json => serde_json::from_str(value)
                .with_context(|| format!("'{value}' cannot be the value of {key}"))?,
        };
        known.insert(key.to_owned(), value);
    }
    Ok((known, unknown))
}

/// Runs a command on tenants.
pub async fn run(command: TenantCommand, env: &mut LocalEnv) -> Result<()> {
    match command {
        TenantCommand::List => {
            for tenant in Pageserver::new(env).tenants().await? {
                say!("{} {}", tenant.id, tenant.state.as_str());
            }
            Ok(())
        }
        TenantCommand::Create(arguments) => create(arguments, env).await,
        TenantCommand::SetDefault { tenant_id } => set_default(tenant_id, env),
        TenantCommand::Config { tenant_id, config } => {
            let tenant = env.tenant_or_default(tenant_id)?;
            let (settings, _ignored) = parse_settings(&config)?;
            Pageserver::new(env).configure_tenant(tenant, settings).await?;
            say!("tenant {tenant} successfully configured on the pageserver");
            Ok(())
        }
    }
}

fn set_default(tenant: TenantId, env: &mut LocalEnv) -> Result<()> {
    say!("Setting tenant {tenant} as a default one");
    env.config.default_tenant_id = Some(tenant);
    env.save()
}

async fn create(arguments: CreateArgs, env: &mut LocalEnv) -> Result<()> {
    let (settings, unknown) = parse_settings(&arguments.config)?;
    if !unknown.is_empty() {
        bail!("Unrecognized tenant settings: {}", unknown.join(", "));
    }
    env.pg_bin_dir(arguments.pg_version)?;
    let wanted = arguments.tenant_id.unwrap_or_else(TenantId::generate);
    let pageserver = Pageserver::new(env);
    let tenant = pageserver.create_tenant(wanted, settings).await?;
    say!("tenant {tenant} successfully created on the pageserver");
    let request = TimelineCreateRequest {
        new_timeline_id: Some(arguments.timeline_id.unwrap_or_else(TimelineId::generate)),
        pg_version: Some(arguments.pg_version),
        ..TimelineCreateRequest::default()
    };
    let timeline = pageserver.create_timeline(tenant, &request).await?;
    say!(
        "Created an initial timeline '{}' at Lsn {} for tenant: {tenant}",
        timeline.timeline_id,
        timeline.last_record_lsn
    );
    env.map_branch(FIRST_BRANCH, tenant, timeline.timeline_id)?;
    env.save()?;
    if arguments.set_default {
        set_default(tenant, env)
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_become_json() {
        let given = ["checkpoint_distance:1024", "gc_period:1 h", "nonsense:1"].map(str::to_owned);
        let (known, unknown) = parse_settings(&given).unwrap();
        let expected = serde_json::json!({"checkpoint_distance": 1024, "gc_period": "1 h"});
        assert_eq!(Value::Object(known), expected);
        assert_eq!(unknown, ["nonsense"]);
        assert!(parse_settings(&["gc_horizon:many".to_owned()]).is_err());
        assert!(parse_settings(&["gc_horizon".to_owned()]).is_err());
    }
}
