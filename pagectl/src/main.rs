//! `pagectl`: looks at the files and objects of timelines. See `docs/pagectl.md`.

use std::io::{BufWriter, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use pagectl::dump::{self, LayerDetail};
use pagectl::layer_map::{svg, text};
use pagectl::scrub;
use pagectl::source::Source;
use pagectl::view::TimelineView;
use remote_storage::{GenericRemoteStorage, RemoteStorageConfig};

/// Exit status when a scrub found damage.
const EXIT_DAMAGED: u8 = 1;
/// Exit status when the command could not be carried out.
const EXIT_FAILED: u8 = 2;

/// Looks at what a pageserver has written, without changing anything.
#[derive(Parser)]
#[command(name = "pagectl")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show a layer file
    DumpLayer {
        /// The file, under any name
        file: PathBuf,
        /// Show each value
        #[arg(long)]
        values: bool,
    },
    /// Show an index_part.json
    DumpIndex {
        /// The file, a copy of the object
        file: PathBuf,
    },
    /// Show a timeline's metadata file
    DumpMetadata {
        /// The file
        file: PathBuf,
    },
    /// Show which layers a timeline has, the newest first
    LayerMap {
        #[command(flatten)]
        timeline: TimelineArguments,
        /// Draw it into this file instead, keys across and LSNs up
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Read everything of a timeline and say what is damaged, missing or left over. Exit status 1: something is damaged
    Scrub {
        #[command(flatten)]
        timeline: TimelineArguments,
    },
}

#[derive(Args)]
struct TimelineArguments {
    /// Its directory, .../tenants/<tenant>/timelines/<timeline>; it may be missing if there is object storage
    dir: PathBuf,
    /// Look at object storage, too: the table remote_storage of pageserver.toml, inline
    #[arg(long, value_name = "TABLE")]
    remote_storage: Option<String>,
}

impl TimelineArguments {
    async fn source(&self) -> Result<Source> {
        let mut remote = None;
        if let Some(table) = &self.remote_storage {
            let config = RemoteStorageConfig::from_inline(table).context("cannot use --remote-storage")?;
            let config = config.context("--remote-storage names no object storage")?;
            let storage = GenericRemoteStorage::from_config(&config).await;
            remote = Some(storage.context("cannot use object storage")?);
        }
        Source::new(&self.dir, remote)
    }
}

async fn run(command: Command, out: &mut impl Write) -> Result<ExitCode> {
    match command {
        Command::DumpLayer { file, values } => {
            let detail = if values {
                LayerDetail::Values
            } else {
                LayerDetail::Summary
            };
            dump::layer(&file, detail, out)?;
        }
        Command::DumpIndex { file } => dump::index(&file, out)?,
        Command::DumpMetadata { file } => dump::metadata(&file, out)?,
        Command::LayerMap { timeline, svg: None } => {
            text::write(&TimelineView::read(&timeline.source().await?).await?, out)?;
        }
        Command::LayerMap {
            timeline,
            svg: Some(file),
        } => {
            let picture = svg::draw(&TimelineView::read(&timeline.source().await?).await?);
            std::fs::write(&file, picture).with_context(|| format!("cannot write {}", file.display()))?;
        }
        Command::Scrub { timeline } => {
            let report = scrub::scrub(&timeline.source().await?).await?;
            report.write(out)?;
            if report.has_damage() {
                return Ok(ExitCode::from(EXIT_DAMAGED));
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether the reader of our output has seen enough.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::BrokenPipe)
}

#[tokio::main]
async fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let mut out = BufWriter::new(std::io::stdout());
    let outcome = run(arguments.command, &mut out).await;
    let flushed = out.flush().map_err(anyhow::Error::from);
    match outcome.and_then(|code| flushed.map(|()| code)) {
        Ok(code) => code,
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pagectl: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}
