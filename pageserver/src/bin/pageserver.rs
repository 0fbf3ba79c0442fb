//! The pageserver daemon: command line, start, and orderly end.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use broker::Broker;
use clap::Parser;
use pageserver::config::{Config, ConfigDocument};
use pageserver::context::{StoreContext, StoreLimits};
use pageserver::import::{ClusterTemplate, Initdb};
use pageserver::page_service::PageService;
use pageserver::server::{PG_VERSION, Server};
use pageserver::tenant::{TenantManager, TenantManagerConfig, TimelineListener};
use pageserver::walreceiver::WalReceivers;
use pageserver::{http, metrics};
use postgres_backend::listen::accept_loop;
use remote_storage::GenericRemoteStorage;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tracing::{error, info};
use utils::auth::JwtAuth;
use utils::logging::{self, LogOutput};
use utils::shutdown::{self, ShutdownSignal};
use utils::{failpoints, pid_file};

/// Page images and WAL records come and go in all sizes: the system's allocator fragments.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Exit status after SIGQUIT.
const EXIT_IMMEDIATE: i32 = 111;
/// Account that runs PostgreSQL's programs where this process is root.
const POSTGRES_ACCOUNT: &str = "postgres";

/// Serves pages of PostgreSQL clusters at any point of their history.
#[derive(Parser)]
#[command(name = "pageserver", disable_version_flag = true)]
struct Arguments {
    /// Working directory; must exist
    #[arg(short = 'D', long, default_value = ".neon")]
    workdir: PathBuf,
    /// A TOML document whose keys replace those of the configuration file; may be repeated
    #[arg(short = 'c', value_name = "TOML")]
    config_override: Vec<String>,
    /// Write the configuration file and exit
    #[arg(long, conflicts_with = "update_config")]
    init: bool,
    /// Write the settings given with -c into the configuration file
    #[arg(long)]
    update_config: bool,
    /// Print the features this program was built with, as JSON, and exit
    #[arg(long)]
    enabled_features: bool,
    /// Print the version and exit
    #[arg(short = 'V', long)]
    version: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if arguments.version {
        println!(
            "Neon page server {} failpoints: {}, features: {:?}",
            utils::VERSION,
            fail::has_failpoints(),
            features()
        );
        return Ok(());
    }
    if arguments.enabled_features {
        println!("{{\"features\": {:?} }}", features());
        return Ok(());
    }
    let workdir = arguments
        .workdir
        .canonicalize()
        .with_context(|| format!("cannot use working directory '{}'", arguments.workdir.display()))?;
    std::env::set_current_dir(&workdir)
        .with_context(|| format!("cannot change to working directory '{}'", workdir.display()))?;
    if arguments.init {
        return init(&workdir, &arguments.config_override);
    }
    let document = ConfigDocument::load(&workdir, &arguments.config_override)?;
    let config = document.settings()?;
    if arguments.update_config {
        document.save()?;
    }
    start(config)
}

fn features() -> Vec<&'static str> {
    match cfg!(feature = "testing") {
        true => vec!["testing"],
        false => vec![],
    }
}

fn init(workdir: &Path, overrides: &[String]) -> Result<()> {
    let document = ConfigDocument::initial(workdir, overrides)?;
    document.settings()?;
    Ok(document.save()?)
}

fn start(config: Config) -> Result<()> {
    logging::init(config.log_format, LogOutput::Stdout);
    // Held until the process ends, however it does.
    let _pid_file = pid_file::claim(&config.workdir.join("pageserver.pid"))?;
    failpoints::configure_from_env().map_err(anyhow::Error::msg)?;
    metrics::init();
    info!("version: {}, features: {:?}", utils::VERSION, features());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(run(config))
}

/// What runs until the end.
struct Services {
    server: Arc<Server>,
    /// Ends the libpq services.
    stop_page_service: CancellationToken,
    page_service: JoinHandle<()>,
    /// Ends the management API, which goes on until all else has ended.
    stop_http: CancellationToken,
    http: JoinHandle<std::io::Result<()>>,
}

async fn run(config: Config) -> Result<()> {
    // Ports first: if they are taken, nothing has happened yet.
    let pg_listener = bind(&config.listen_pg_addr, "listen_pg_addr").await?;
    let http_listener = bind(&config.listen_http_addr, "listen_http_addr").await?;
    let server = make_server(config).await?;
    let services = serve(Arc::clone(&server), pg_listener, http_listener);
    let eviction = start_eviction(&server);
    let loading = tokio::spawn(load(server));
    let signal = shutdown::wait().await.context("cannot wait for signals")?;
    info!("got signal {signal:?}");
    if signal == ShutdownSignal::Quit {
        std::process::exit(EXIT_IMMEDIATE);
    }
    loading.abort();
    eviction.cancel();
    stop(services).await;
    info!("shut down");
    Ok(())
}

async fn bind(address: &str, key: &str) -> Result<TcpListener> {
    // An address without a port means PostgreSQL's.
    let with_port = match address.rsplit_once(':') {
        Some((_, port)) if port.parse::<u16>().is_ok() => address.to_owned(),
        _ => format!("{address}:5432"),
    };
    TcpListener::bind(&with_port)
        .await
        .with_context(|| format!("cannot listen on '{with_port}' ({key})"))
}

async fn make_server(config: Config) -> Result<Arc<Server>> {
    let auth = match &config.auth_public_key {
        Some(path) => Some(Arc::new(JwtAuth::from_key_path(path)?)),
        None => None,
    };
    let broker = Broker::connect(&config.broker)
        .await
        .with_context(|| format!("cannot use broker endpoints {:?}", config.broker.endpoints))?;
    let token = std::env::var("NEON_AUTH_TOKEN").ok();
    let receivers = Arc::new(WalReceivers::new(broker, token.map(Into::into)));
    let limits = StoreLimits {
        wait_lsn_timeout: config.wait_lsn_timeout,
        page_cache_bytes: config.page_cache_pages * 8192,
        max_file_descriptors: config.max_file_descriptors as usize,
        ..Default::default()
    };
    let remote = open_remote_storage(&config).await?;
    let tenants = Arc::new(TenantManager::new(TenantManagerConfig {
        workdir: config.workdir.clone(),
        default_tenant_config: config.tenant_config.clone(),
        context: StoreContext::with_remote(&limits, remote),
        listener: Arc::clone(&receivers) as Arc<dyn TimelineListener>,
    }));
    let initdb = Initdb {
        bin_dir: postgres_bin_dir(&config),
        lib_dir: config
            .pg_distrib_dir
            .as_ref()
            .map(|dir| dir.join(format!("v{PG_VERSION}/lib"))),
        account: POSTGRES_ACCOUNT.to_owned(),
        superuser: config.superuser.clone(),
    };
    Ok(Arc::new(Server {
        template: ClusterTemplate::new(&config.workdir, initdb),
        config,
        tenants,
        receivers,
        auth,
    }))
}

async fn open_remote_storage(config: &Config) -> Result<Option<GenericRemoteStorage>> {
    let Some(described) = &config.remote_storage else {
        return Ok(None);
    };
    let storage = GenericRemoteStorage::from_config(described)
        .await
        .context("cannot use remote_storage")?;
    Ok(Some(match config.test_remote_failures {
        0 => storage,
        failures => storage.unreliable(failures),
    }))
}

/// Where PostgreSQL's programs are: as configured, as `pg_config` says, or where Debian puts them.
fn postgres_bin_dir(config: &Config) -> PathBuf {
    if let Some(dir) = &config.pg_distrib_dir {
        return dir.join(format!("v{PG_VERSION}/bin"));
    }
    let debian = PathBuf::from(format!("/usr/lib/postgresql/{PG_VERSION}/bin"));
    if debian.is_dir() {
        return debian;
    }
    let output = std::process::Command::new("pg_config").arg("--bindir").output();
    match output {
        Ok(output) if output.status.success() => {
            PathBuf::from(String::from_utf8_lossy(&output.stdout).trim())
        }
        _ => debian,
    }
}

fn serve(server: Arc<Server>, pg_listener: TcpListener, http_listener: TcpListener) -> Services {
    let (stop_page_service, stop_http) = (CancellationToken::new(), CancellationToken::new());
    let for_handlers = Arc::clone(&server);
    let page_service = tokio::spawn(accept_loop(
        pg_listener,
        server.config.auth,
        stop_page_service.clone(),
        move |_| PageService::new(Arc::clone(&for_handlers)),
    ));
    let launched_at = humantime::format_rfc3339_millis(std::time::SystemTime::now()).to_string();
    let router = http::router(Arc::clone(&server), &launched_at);
    let http = tokio::spawn(utils::http::serve(http_listener, router, stop_http.clone()));
    let config = &server.config;
    info!(
        "serving pages on {}, management API on {}",
        config.listen_pg_addr, config.listen_http_addr
    );
    Services {
        server,
        stop_page_service,
        page_service,
        stop_http,
        http,
    }
}

/// Starts watching the disk, if that is configured. It goes on until the result is cancelled.
fn start_eviction(server: &Arc<Server>) -> CancellationToken {
    let cancel = CancellationToken::new();
    let config = server.config.disk_usage_based_eviction.clone();
    let (tenants, stop) = (Arc::clone(&server.tenants), cancel.clone());
    tokio::spawn(async move { tenants.watch_disk_usage(config, stop).await });
    cancel
}

/// Loads all tenants. What is wrong with one of them shows in its state.
async fn load(server: Arc<Server>) {
    if let Err(error) = server.tenants.load_all().await {
        error!("cannot load tenants: {:#}", anyhow::Error::new(error));
        std::process::exit(1);
    }
    info!("loaded {} tenants", server.tenants.list().len());
    // So that the first new cluster need not wait for initdb. Nothing depends on it.
    if let Err(error) = server.template.prepare().await {
        info!(
            "cannot prepare the template of new clusters: {:#}",
            anyhow::Error::new(error)
        );
    }
}

async fn stop(services: Services) {
    services.stop_page_service.cancel();
    if let Err(error) = services.page_service.await {
        error!("page service failed: {error}");
    }
    services.server.tenants.shutdown().await;
    services.stop_http.cancel();
    match services.http.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => error!("management API failed: {error}"),
        Err(error) => error!("management API failed: {error}"),
    }
}
