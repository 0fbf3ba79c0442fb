//! Daemons in the background: started so that they outlive us, known by their pid files.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use utils::pid_file::{self, Holder};

use crate::http::RefusedError;
use crate::output::{say, say_part};

/// How long a daemon may take to start or stop.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pause between two looks. Short, because a healthy daemon starts in a fraction of a second.
const POLL: Duration = Duration::from_millis(20);
const DOT_EVERY: Duration = Duration::from_secs(1);
const NOTICE_AFTER: Duration = Duration::from_secs(5);

/// Environment variables that daemons inherit; all others are cleared.
const PASSED_ON: &[&str] = &[
    "PATH",
    "LLVM_PROFILE_FILE",
    "FAILPOINTS",
    "RUST_LOG",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "NEON_POSTGRES_ACCOUNT",
];

/// Who writes and locks the pid file.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum PidFileOwner {
    /// The daemon itself.
    Daemon,
    /// We do, and the daemon inherits the locked file: for programs that know nothing of it.
    Starter,
}

/// A daemon as neon_local runs it.
pub struct Daemon {
    /// For people, and for the name of the log: `<name>.log` in `dir`.
    pub name: String,
    /// Where the log goes.
    pub dir: PathBuf,
    /// Pid file.
    pub pid_file: PathBuf,
    /// Who keeps the pid file.
    pub pid_file_owner: PidFileOwner,
}

/// How to stop a daemon or compute.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
pub enum StopMode {
    /// Let it finish what it has.
    Fast,
    /// At once.
    Immediate,
}

impl Daemon {
    /// Where its output goes.
    pub fn log_path(&self) -> PathBuf {
        self.dir.join(format!("{}.log", self.name))
    }

    /// Starts the program and waits until it holds its pid file and `ready` succeeds.
    ///
    /// `ready` says `Ok(false)` while there is no answer yet; an error ends the wait.
    ///
    /// # Errors
    /// It did not start, ended, or answered with an error. The message names the log.
    pub async fn start<F>(
        &self,
        program: &Path,
        arguments: &[OsString],
        environment: &[(&str, String)],
        ready: impl Fn() -> F,
    ) -> Result<()>
    where
        F: Future<Output = Result<()>>,
    {
        if self.runs_already(&ready).await? {
            return Ok(());
        }
        let mut child = self.spawn(program, arguments, environment)?;
        let pid = child.id();
        let is_up = async || -> Result<bool> {
            if pid_file::holder(&self.pid_file)? != Holder::Process(pid) {
                return Ok(false);
            }
            match ready().await {
                Ok(()) => Ok(true),
                Err(error) if error.is::<RefusedError>() => Err(error),
                Err(_) => Ok(false),
            }
        };
        match self.wait_for(&mut child, is_up).await {
            Ok(()) => {
                say!("\n{} started, pid: {pid}", self.name);
                Ok(())
            }
            Err(error) => {
                // It may have ended by itself, then there is nothing to kill.
                let _ = child.kill();
                let _ = child.wait();
                Err(error.context(format!("see its log: {}", self.log_path().display())))
            }
        }
    }

    /// Whether it runs and serves. One that was killed a moment ago may still hold its pid file: that passes.
    async fn runs_already<F>(&self, ready: impl Fn() -> F) -> Result<bool>
    where
        F: Future<Output = Result<()>>,
    {
        let started = Instant::now();
        while let Holder::Process(pid) = pid_file::holder(&self.pid_file)? {
            if ready().await.is_ok() {
                say!("{} is already running, pid: {pid}", self.name);
                return Ok(true);
            }
            if started.elapsed() > PATIENCE {
                bail!("{} runs with pid {pid}, but does not answer", self.name);
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(false)
    }

    fn spawn(&self, program: &Path, arguments: &[OsString], environment: &[(&str, String)]) -> Result<Child> {
        let log_path = self.log_path();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log_path)
            .with_context(|| format!("cannot open log {}", log_path.display()))?;
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env_clear()
            .current_dir(&self.dir)
            .process_group(0)
            .stdin(Stdio::null());
        command
            .stdout(log.try_clone().context("cannot share the log")?)
            .stderr(log);
        command.env(
            "RUST_BACKTRACE",
            std::env::var("RUST_BACKTRACE").unwrap_or_else(|_| "1".to_owned()),
        );
        let passed_on = PASSED_ON
            .iter()
            .filter_map(|name| Some((*name, std::env::var_os(name)?)));
        command
            .envs(passed_on)
            .envs(environment.iter().map(|(name, value)| (name, value)));
        let claimed = match self.pid_file_owner {
            PidFileOwner::Daemon => None,
            PidFileOwner::Starter => Some(self.claim_for(&mut command)?),
        };
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        if let Some(mut file) = claimed {
            write!(file, "{}", child.id()).context("cannot write pid file")?;
        }
        Ok(child)
    }

    /// Locks the pid file and lets `command` inherit it: the lock lives as long as the process does.
    fn claim_for(&self, command: &mut Command) -> Result<File> {
        let path = &self.pid_file;
        let file = File::options()
            .create(true)
            .truncate(true)
            .write(true)
            .open(path)
            .and_then(|file| file.try_lock().map_err(Into::into).map(|()| file))
            .with_context(|| format!("cannot lock pid file {}", path.display()))?;
        let fd = file.as_raw_fd();
        // SAFETY: between fork and exec only `fcntl` is called, which is async-signal-safe; the
        // descriptor is open in the child because `file` lives until after the spawn.
        unsafe {
            command.pre_exec(move || {
                let fd = std::os::fd::BorrowedFd::borrow_raw(fd);
                nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty()))?;
                Ok(())
            });
        }
        Ok(file)
    }

    async fn wait_for(&self, child: &mut Child, is_up: impl AsyncFn() -> Result<bool>) -> Result<()> {
        let started = Instant::now();
        let mut progress = Progress::new(format!("{} has not started yet, continuing to wait", self.name));
        while started.elapsed() < PATIENCE {
            if is_up()
                .await
                .with_context(|| format!("{} answers with an error", self.name))?
            {
                return Ok(());
            }
            if let Some(status) = child.try_wait().context("cannot look after the process")? {
                bail!("{} ended while starting, {status}", self.name);
            }
            progress.tick(started.elapsed());
            tokio::time::sleep(POLL).await;
        }
        bail!("{} did not start in {} seconds", self.name, PATIENCE.as_secs());
    }

    /// Stops whoever holds the pid file, and waits until it has ended. Nobody holding it is a success.
    pub async fn stop(&self, mode: StopMode) -> Result<()> {
        let name = &self.name;
        let pid = match pid_file::holder(&self.pid_file)? {
            Holder::NoFile => {
                say!(
                    "{name} is already stopped: no pid file present at {:?}",
                    self.pid_file
                );
                return Ok(());
            }
            Holder::Nobody => {
                say!("No process is holding the pidfile. {name} is already stopped");
                return Ok(());
            }
            Holder::Process(pid) => pid,
        };
        let (signal, manner) = match mode {
            StopMode::Fast => (Signal::SIGTERM, "gracefully"),
            StopMode::Immediate => (Signal::SIGQUIT, "immediately"),
        };
        say_part!("Stopping {name} with pid {pid} {manner}..");
        match kill(Pid::from_raw(pid as i32), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
            Err(error) => return Err(error).with_context(|| format!("cannot signal {name}, pid {pid}")),
        }
        let started = Instant::now();
        let mut progress = Progress::new(format!("{name} has not stopped yet, continuing to wait"));
        while started.elapsed() < PATIENCE {
            if pid_file::holder(&self.pid_file)? != Holder::Process(pid) {
                say!("\n{name} stopped");
                return Ok(());
            }
            progress.tick(started.elapsed());
            tokio::time::sleep(POLL).await;
        }
        bail!(
            "{name} with pid {pid} did not stop in {} seconds",
            PATIENCE.as_secs()
        );
    }
}

/// A dot each second, a word when it takes long.
struct Progress {
    dots: u64,
    notice: Option<String>,
}

impl Progress {
    fn new(notice: String) -> Self {
        Progress {
            dots: 0,
            notice: Some(notice),
        }
    }

    fn tick(&mut self, elapsed: Duration) {
        if elapsed.as_secs() / DOT_EVERY.as_secs() > self.dots {
            self.dots += 1;
            say_part!(".");
        }
        if elapsed > NOTICE_AFTER
            && let Some(notice) = self.notice.take()
        {
            say_part!("\n{notice}");
        }
    }
}
