//! Lines on standard output, which the extension's background worker reads.

use std::io::Write;
use std::thread;

use safekeeper_api::protocol::PageserverFeedback;
use tokio::sync::mpsc;
use utils::lsn::Lsn;

/// Lines that may wait for a reader. More are dropped: each line replaces the one before it.
const LINES_MAX: usize = 16;

/// Writes without ever making the caller wait.
#[derive(Debug)]
pub struct Output {
    lines: mpsc::Sender<String>,
}

impl Output {
    /// Starts a thread that writes to standard output.
    #[expect(clippy::new_without_default, reason = "starting a thread is not a default")]
    pub fn new() -> Output {
        let (lines, mut received) = mpsc::channel::<String>(LINES_MAX);
        thread::spawn(move || {
            while let Some(line) = received.blocking_recv() {
                // Nobody reads any more: then nobody misses what is not written.
                let mut out = std::io::stdout().lock();
                if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
                    return;
                }
            }
        });
        Output { lines }
    }

    /// The election is won and the local server streams from `lsn`.
    pub fn streaming(&self, lsn: Lsn) {
        self.put(format!("streaming {lsn}"));
    }

    /// A pageserver has got further.
    pub fn feedback(&self, feedback: &PageserverFeedback) {
        self.put(format!(
            "feedback {} {} {} {}",
            feedback.current_timeline_size,
            feedback.ps_writelsn.0,
            feedback.ps_flushlsn.0,
            feedback.ps_applylsn.0
        ));
    }

    fn put(&self, line: String) {
        if self.lines.try_send(line).is_err() {
            tracing::debug!("nobody reads standard output: a line is dropped");
        }
    }
}
