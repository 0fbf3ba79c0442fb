//! The safekeeper daemon: `safekeeper -D <dir> --id <n> --listen-pg <host:port> --listen-http <host:port>`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use broker::BrokerConfig;
use clap::Parser;
use postgres_backend::AuthMethod;
use remote_storage::{GenericRemoteStorage, RemoteStorageConfig};
use safekeeper::config::{Config, WalBackup};
use safekeeper::control_file;
use safekeeper::dump::{Part, dump_control};
use safekeeper::server::ConnectionHandler;
use safekeeper::timeline_map::TimelineMap;
use safekeeper::{Sync, background, http, offload};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tracing::info;
use utils::auth::JwtAuth;
use utils::crashsafe::{self, TEMP_SUFFIX};
use utils::id::NodeId;
use utils::logging::{self, LogFormat, LogOutput};
use utils::pid_file;

/// Buffers of WAL come and go by the megabyte: the system's allocator gives each back to the kernel, which then clears
/// every page of the next one.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

const PID_FILE_NAME: &str = "safekeeper.pid";
const ID_FILE_NAME: &str = "safekeeper.id";

/// Keeps the WAL of computes on disk, as one of a quorum.
#[derive(Debug, Parser)]
#[command(name = "safekeeper", version = utils::VERSION)]
struct Args {
    /// Data directory
    #[arg(short = 'D', long, default_value = "./")]
    datadir: PathBuf,
    /// Number of this safekeeper; stored on the first start
    #[arg(long)]
    id: Option<u64>,
    /// Store the number and exit
    #[arg(long)]
    init: bool,
    /// Address for proposers and pageservers, also told to others
    #[arg(short = 'l', long, default_value = "127.0.0.1:5454")]
    listen_pg: String,
    /// Address of the management service
    #[arg(long, default_value = "127.0.0.1:7676")]
    listen_http: String,
    /// Never fsync; for tests only
    #[arg(short = 'n', long)]
    no_sync: bool,
    /// Print a control file as JSON and exit
    #[arg(long, value_name = "PATH")]
    dump_control_file: Option<PathBuf>,
    /// One etcd endpoint
    #[arg(long, value_name = "URI")]
    broker_endpoint: Option<String>,
    /// All etcd endpoints
    #[arg(long, value_name = "URI,...", value_delimiter = ',')]
    broker_endpoints: Vec<String>,
    /// First component of all etcd keys
    #[arg(long, default_value = broker::DEFAULT_PREFIX)]
    broker_etcd_prefix: String,
    /// Accepted for compatibility; etcd leases need no such interval
    #[arg(long, value_parser = humantime::parse_duration, default_value = "5000ms")]
    broker_keepalive_interval: Duration,
    /// A peer silent for this long is taken for dead
    #[arg(long, value_parser = humantime::parse_duration, default_value = "5000ms")]
    heartbeat_timeout: Duration,
    /// Object storage for WAL, as an inline TOML table
    #[arg(long, value_name = "TOML")]
    remote_storage: Option<String>,
    /// Bytes behind others from which this safekeeper does not offload
    #[arg(long, default_value_t = 128 * 1024 * 1024)]
    max_offloader_lag: u64,
    /// Accepted for compatibility; offloading shares the threads of everything else
    #[arg(long)]
    wal_backup_threads: Option<usize>,
    /// Ignore the backup horizon when removing WAL
    #[arg(long)]
    disable_wal_backup: bool,
    /// PEM file with the key that tokens are verified with; without it everybody is let in
    #[arg(long, value_name = "PATH")]
    auth_validation_public_key_path: Option<PathBuf>,
    /// plain or json
    #[arg(long, default_value = "plain")]
    log_format: LogFormat,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let Some(path) = &args.dump_control_file {
        let control = control_file::load(path)?;
        println!(
            "{}",
            serde_json::to_string(&dump_control(&control, Part::Wanted))?
        );
        return Ok(());
    }
    logging::init(args.log_format, LogOutput::Stdout);
    utils::failpoints::configure_from_env().map_err(anyhow::Error::msg)?;
    // Relative paths on the command line are those of the caller.
    let auth = args
        .auth_validation_public_key_path
        .as_deref()
        .map(JwtAuth::from_key_path)
        .transpose()?;
    std::env::set_current_dir(&args.datadir)
        .with_context(|| format!("cannot use data directory {}", args.datadir.display()))?;
    let _pid_file = pid_file::claim(Path::new(PID_FILE_NAME))?;
    let id = establish_id(args.id)?;
    if args.init {
        return Ok(());
    }
    info!("version {}, safekeeper {id}", utils::VERSION);
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(async {
            let conf = config(&args, id, auth).await?;
            serve(Arc::new(conf)).await
        })
}

async fn config(args: &Args, id: NodeId, auth: Option<JwtAuth>) -> anyhow::Result<Config> {
    let mut endpoints = args.broker_endpoints.clone();
    endpoints.extend(args.broker_endpoint.clone());
    let broker = (!endpoints.is_empty()).then(|| BrokerConfig {
        endpoints,
        prefix: args.broker_etcd_prefix.clone(),
    });
    Ok(Config {
        id,
        workdir: std::env::current_dir().context("cannot name the data directory")?,
        listen_pg_addr: args.listen_pg.clone(),
        listen_http_addr: args.listen_http.clone(),
        sync: if args.no_sync { Sync::No } else { Sync::Yes },
        broker,
        heartbeat_timeout: args.heartbeat_timeout,
        wal_backup: if args.disable_wal_backup {
            WalBackup::Disabled
        } else {
            WalBackup::Enabled
        },
        remote_storage: remote_storage(args.remote_storage.as_deref()).await?,
        max_offloader_lag_bytes: args.max_offloader_lag,
        auth: auth.map(Arc::new),
    })
}

async fn remote_storage(table: Option<&str>) -> anyhow::Result<Option<GenericRemoteStorage>> {
    let config = table.map(RemoteStorageConfig::from_inline).transpose();
    match config.context("bad --remote-storage")?.flatten() {
        Some(config) => Ok(Some(GenericRemoteStorage::from_config(&config).await?)),
        None => Ok(None),
    }
}

/// The number stored in the data directory, stored there first if it is new.
fn establish_id(given: Option<u64>) -> anyhow::Result<NodeId> {
    let path = Path::new(ID_FILE_NAME);
    let stored = match std::fs::read_to_string(path) {
        Ok(text) => {
            let number = text.trim().parse::<u64>();
            Some(number.with_context(|| format!("{ID_FILE_NAME} does not hold a number"))?)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error).context(format!("cannot read {ID_FILE_NAME}")),
    };
    match (stored, given) {
        (Some(stored), Some(given)) if stored != given => {
            bail!("safekeeper already initialized with id {stored}, can't set {given}")
        }
        (Some(stored), _) => Ok(NodeId(stored)),
        (None, Some(given)) => {
            let temp = crashsafe::with_suffix(path, TEMP_SUFFIX);
            crashsafe::write_atomically(path, &temp, given.to_string().as_bytes())?;
            Ok(NodeId(given))
        }
        (None, None) => bail!("safekeeper id is not specified"),
    }
}

async fn serve(conf: Arc<Config>) -> anyhow::Result<()> {
    utils::metrics::init();
    let bind = async |address: &str| {
        let bound = TcpListener::bind(address).await;
        bound.with_context(|| format!("cannot listen on {address}"))
    };
    let pg_listener = bind(&conf.listen_pg_addr).await?;
    let http_listener = bind(&conf.listen_http_addr).await?;
    let loading = Arc::clone(&conf);
    let map = tokio::task::spawn_blocking(move || TimelineMap::load(loading))
        .await?
        .context("cannot load timelines")?;
    let map = Arc::new(map);

    tokio::spawn(background::open_all(Arc::clone(&map)));
    tokio::spawn(background::remove_old_wal(Arc::clone(&map)));
    if let Some(broker) = &conf.broker {
        tokio::spawn(background::publish(Arc::clone(&map), broker.clone()));
        tokio::spawn(background::hear_peers(Arc::clone(&map), broker.clone()));
        if let Some(storage) = conf.remote_storage.clone()
            && conf.wal_backup == WalBackup::Enabled
        {
            tokio::spawn(offload::run(Arc::clone(&map), storage, broker.clone()));
        }
    }
    let auth = if conf.auth.is_some() {
        AuthMethod::Jwt
    } else {
        AuthMethod::Trust
    };
    let shutdown = CancellationToken::new();
    let for_pg = Arc::clone(&map);
    let pg_server = postgres_backend::listen::accept_loop(pg_listener, auth, shutdown.clone(), move |_| {
        ConnectionHandler::new(Arc::clone(&for_pg))
    });
    let http_server = utils::http::serve(http_listener, http::router(map), shutdown);
    info!(
        "serving proposers and readers on {}, HTTP on {}",
        conf.listen_pg_addr, conf.listen_http_addr
    );
    tokio::select! {
        signal = utils::shutdown::wait() => {
            // Everything acknowledged is durable: there is nothing to be finished.
            info!("got {:?}, exiting", signal.context("cannot wait for signals")?);
            std::process::exit(0);
        }
        () = pg_server => bail!("the libpq service ended by itself"),
        result = http_server => {
            result.context("the HTTP service failed")?;
            bail!("the HTTP service ended by itself")
        }
    }
}
