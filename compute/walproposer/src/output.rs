//! Lines on standard output, which the extension's background worker reads.

use std::io::Write;
use std::thread;
use std::time::Duration;

use safekeeper_api::protocol::PageserverFeedback;
use tokio::sync::mpsc;
use tokio::time::Instant;
use utils::lsn::Lsn;

/// Lines that may wait for a reader. More are dropped: each line replaces the one before it.
const LINES_MAX: usize = 16;

/// Feedback is passed on so often: there may be some for every commit, and each line wakes the reader.
const FEEDBACK_PERIOD: Duration = Duration::from_millis(10);

/// Writes without ever making the caller wait.
#[derive(Debug)]
pub struct Output {
    lines: mpsc::Sender<String>,
    /// The latest feedback, while it waits for its turn.
    waiting: Option<PageserverFeedback>,
    /// When the next may be passed on.
    next_at: Instant,
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
        Output {
            lines,
            waiting: None,
            next_at: Instant::now(),
        }
    }

    /// The election is won and the local server streams from `lsn`.
    pub fn streaming(&self, lsn: Lsn) {
        self.put(format!("streaming {lsn}"));
    }

    /// A pageserver has got further.
    pub fn feedback(&mut self, feedback: PageserverFeedback) {
        self.waiting = Some(feedback);
        self.pass_on();
    }

    /// When [`Self::pass_on`] has something to do.
    pub fn due(&self) -> Option<Instant> {
        self.waiting.map(|_| self.next_at)
    }

    /// Passes feedback on if it waits and it is time.
    pub fn pass_on(&mut self) {
        let now = Instant::now();
        if now < self.next_at {
            return;
        }
        let Some(feedback) = self.waiting.take() else {
            return;
        };
        self.next_at = now + FEEDBACK_PERIOD;
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
