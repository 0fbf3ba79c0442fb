//! What happened, line by line: nothing, a digest, or the lines themselves.

use std::fmt;

/// What becomes of the lines.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum TraceMode {
    /// Nothing: the fastest.
    Off,
    /// They are digested, so that two runs can be compared.
    Digest,
    /// They are printed on standard error, and digested.
    Print,
}

/// Receives the lines of one run.
#[derive(Debug)]
pub(crate) struct Trace {
    mode: TraceMode,
    digest: u64,
}

impl Trace {
    pub(crate) fn new(mode: TraceMode) -> Trace {
        Trace { mode, digest: 0 }
    }

    pub(crate) fn digest(&self) -> u64 {
        self.digest
    }

    /// Takes a line, which is formatted only if somebody wants it.
    pub(crate) fn line(&mut self, now: u64, line: fmt::Arguments<'_>) {
        if self.mode == TraceMode::Off {
            return;
        }
        let line = format!("{:>10.3} {line}", now as f64 / 1000.0);
        for byte in line.bytes() {
            // FNV-1a.
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3);
        }
        if self.mode == TraceMode::Print {
            eprintln!("{line}");
        }
    }
}
