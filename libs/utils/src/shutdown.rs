//! Signals that end a daemon.

use tokio::signal::unix::{SignalKind, signal};

/// How a daemon was asked to end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ShutdownSignal {
    /// SIGINT.
    Interrupt,
    /// SIGTERM.
    Terminate,
    /// SIGQUIT: at once, cleaning up nothing.
    Quit,
}

/// Waits for the first of SIGINT, SIGTERM and SIGQUIT.
///
/// # Errors
/// The operating system refused to install a handler.
pub async fn wait() -> std::io::Result<ShutdownSignal> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut quit = signal(SignalKind::quit())?;
    Ok(tokio::select! {
        _ = interrupt.recv() => ShutdownSignal::Interrupt,
        _ = terminate.recv() => ShutdownSignal::Terminate,
        _ = quit.recv() => ShutdownSignal::Quit,
    })
}
