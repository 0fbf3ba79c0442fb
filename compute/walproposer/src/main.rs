//! `walproposer`: streams the WAL of the local PostgreSQL to the safekeepers, or only makes them agree, or fetches old WAL.
//!
//! Standard output is an interface: `streaming X/X` and `feedback <size> <write> <flush> <apply>` lines
//! for the extension, or the one LSN that `--sync-safekeepers` finds. The log goes to standard error.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Parser;
use compute_walproposer::driver::{Driver, Exit, Streaming};
use compute_walproposer::local::Local;
use compute_walproposer::output::Output;
use compute_walproposer::past_terms::{self, PastTermsFile};
use compute_walproposer::settings::Settings;
use compute_walproposer::slot_wal::{self, HeldWal};
use rand::RngExt;
use safekeeper_api::protocol::{ProposerGreeting, ProposerId};
use tracing::{error, info, warn};
use utils::logging::{LogFormat, LogOutput};
use utils::lsn::Lsn;
use walproposer::{Config, HoldBack, Limits, Mode, PastTerms, Stop};

/// Exit status that says: a newer proposer has taken over, never start again.
const EXIT_FENCED: u8 = 3;

const WAL_SEGMENT_SIZE: u32 = 16 << 20;
/// Version named when only synchronising: safekeepers compare the major version.
const SYNC_PG_VERSION: u32 = 150_000;
/// PostgreSQL's own timeline number never changes here.
const PG_TIMELINE: u32 = 1;

/// How long a new commit LSN waits for WAL to travel with on its way to safekeepers.
const COMMIT_PAUSE: Duration = Duration::from_millis(1);

/// How often an election lost to another proposer is tried again when only synchronising.
const SYNC_ATTEMPTS_MAX: usize = 10;
const SYNC_PAUSE_MILLIS: std::ops::Range<u64> = 50..500;

/// Makes the WAL of the local PostgreSQL durable on a quorum of safekeepers.
#[derive(Debug, Parser)]
struct Args {
    /// Make the safekeepers agree, print where their WAL ends, and exit
    #[arg(long, conflicts_with_all = ["connect", "start_lsn", "system_id", "pg_version"])]
    sync_safekeepers: bool,
    /// Fetch the WAL before this LSN that replication slots in the data directory need, and exit
    #[arg(long, conflicts_with_all = ["sync_safekeepers", "connect", "start_lsn", "system_id", "pg_version"])]
    fetch_slot_wal: Option<Lsn>,
    /// Connection string of the local server
    #[arg(long, required_unless_present_any = ["sync_safekeepers", "fetch_slot_wal"])]
    connect: Option<String>,
    /// Where the local server's own WAL begins
    #[arg(long, required_unless_present_any = ["sync_safekeepers", "fetch_slot_wal"])]
    start_lsn: Option<Lsn>,
    /// System identifier of the local server
    #[arg(long, required_unless_present_any = ["sync_safekeepers", "fetch_slot_wal"])]
    system_id: Option<u64>,
    /// Version number of the local server, such as 150004
    #[arg(long, required_unless_present_any = ["sync_safekeepers", "fetch_slot_wal"])]
    pg_version: Option<u32>,
    /// Data directory
    #[arg(long, env = "PGDATA")]
    pgdata: PathBuf,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    utils::logging::init(LogFormat::Plain, LogOutput::Stderr);
    let args = Args::parse();
    let result = match (args.sync_safekeepers, args.fetch_slot_wal) {
        (true, _) => synchronise(&args).await,
        (false, Some(end)) => fetch_slot_wal(&args, end).await,
        (false, None) => stream(&args).await,
    };
    result.unwrap_or_else(|error| {
        error!("{error:#}");
        ExitCode::FAILURE
    })
}

async fn synchronise(args: &Args) -> Result<ExitCode> {
    let settings = Settings::load(&args.pgdata)?;
    for _ in 0..SYNC_ATTEMPTS_MAX {
        let greeting = greeting(&settings, 0, SYNC_PG_VERSION);
        let config = config(&settings, Mode::Sync, greeting, PastTerms::default());
        let driver = Driver::new(settings.clone(), config, None)?;
        match driver.run(asked_to_stop()).await? {
            Exit::Proposer(Stop::Synced { lsn, term }) => {
                if !lsn.is_valid() {
                    past_terms::store_empty_at(&args.pgdata, settings.timeline_id, term)?;
                }
                println!("{lsn}");
                return Ok(ExitCode::SUCCESS);
            }
            Exit::Proposer(stop @ (Stop::Fenced { .. } | Stop::LostElection(_))) => {
                info!("{stop}; trying again");
                let pause = rand::rng().random_range(SYNC_PAUSE_MILLIS);
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            Exit::Proposer(stop) => bail!("{stop}"),
            Exit::Asked | Exit::ServerEnded => bail!("interrupted"),
        }
    }
    bail!("another proposer keeps winning the election: is a compute running on this timeline?")
}

async fn fetch_slot_wal(args: &Args, end: Lsn) -> Result<ExitCode> {
    slot_wal::fetch(&Settings::load(&args.pgdata)?, &args.pgdata, end).await?;
    Ok(ExitCode::SUCCESS)
}

async fn stream(args: &Args) -> Result<ExitCode> {
    let (Some(connect), Some(start_lsn), Some(system_id), Some(pg_version)) =
        (&args.connect, args.start_lsn, args.system_id, args.pg_version)
    else {
        bail!("--connect, --start-lsn, --system-id and --pg-version are required");
    };
    if !start_lsn.is_valid() {
        bail!("--start-lsn must not be 0/0");
    }
    let settings = Settings::load(&args.pgdata)?;
    let past = PastTermsFile::new(&args.pgdata, start_lsn);
    let greeting = greeting(&settings, system_id, pg_version);
    let mut terms = past.load()?;
    terms.empty_at = past_terms::load_empty_at(&args.pgdata, settings.timeline_id)?;
    let config = config(&settings, Mode::Stream { start_lsn }, greeting, terms);
    let streaming = Streaming {
        local: Local::prepare(connect, system_id).await?,
        past: PastTermsFile::new(&args.pgdata, start_lsn),
        output: Output::new(),
        held: HeldWal::new(&args.pgdata)?,
    };
    let driver = Driver::new(settings, config, Some(streaming))?;
    match driver.run(asked_to_stop()).await? {
        Exit::Proposer(stop) if stop.is_final() => {
            error!("{stop}");
            Ok(ExitCode::from(EXIT_FENCED))
        }
        Exit::Proposer(stop) => {
            warn!("{stop}");
            Ok(ExitCode::FAILURE)
        }
        exit @ (Exit::Asked | Exit::ServerEnded) => {
            info!("stopping: {exit:?}");
            // Asked by whoever started it, the server may run on, and the next proposer needs the terms.
            if matches!(exit, Exit::ServerEnded) {
                past.remove()?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn greeting(settings: &Settings, system_id: u64, pg_version: u32) -> ProposerGreeting {
    ProposerGreeting {
        pg_version,
        proposer_id: ProposerId(rand::random()),
        system_id,
        timeline_id: settings.timeline_id,
        tenant_id: settings.tenant_id,
        pg_timeline: PG_TIMELINE,
        wal_seg_size: WAL_SEGMENT_SIZE,
    }
}

fn config(settings: &Settings, mode: Mode, greeting: ProposerGreeting, past: PastTerms) -> Config {
    Config {
        commit_pause: match mode {
            Mode::Stream { .. } => COMMIT_PAUSE,
            // Whoever synchronises waits for the safekeepers to know.
            Mode::Sync => Duration::ZERO,
        },
        mode,
        greeting,
        safekeepers: settings.safekeepers.len(),
        reconnect_timeout: settings.reconnect_timeout,
        connect_timeout: settings.connect_timeout,
        hold_back: HoldBack {
            delay: settings.hold_delay,
            ..HoldBack::PRODUCTION
        },
        limits: Limits::PRODUCTION,
        past,
    }
}

async fn asked_to_stop() {
    if let Err(error) = utils::shutdown::wait().await.context("signals") {
        error!("{error:#}");
    }
}
