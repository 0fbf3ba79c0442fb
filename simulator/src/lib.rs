//! A deterministic simulator of the consensus protocol: the very proposer and acceptor of the daemons,
//! in virtual time, with faults drawn from a seed.
//!
//! One [`run`] is one timeline with 3 or 5 safekeepers and several computes that race for it. Messages
//! are delayed, connections break in the middle of what they carry and are made again while the old
//! one still delivers, one direction of a link goes dead, processes and machines crash between any two
//! writes, disks fail, clocks jump. Then the faults end, and the cluster must commit within a bound.
//! After every event the [`oracle`] checks what must always hold.
//!
//! The same seed gives the same run, on any machine: nothing is read but the seed.
//!
//! Not here: the files of a safekeeper (its own crash tests have them), sockets, wiped safekeepers.

mod compute;
mod disk;
mod faults;
mod network;
mod oracle;
mod rng;
mod safekeeper;
#[cfg(test)]
mod tests;
mod trace;
mod wal;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub use trace::TraceMode;

/// A rule that does not hold. The text says which and where.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{0}")]
pub struct Violation(pub String);

/// Shorthand for a violation with a formatted text.
macro_rules! violation {
    ($($arg:tt)*) => { Err($crate::Violation(format!($($arg)*))) };
}
use violation;

/// What a run showed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Report {
    /// The first rule that was found not to hold.
    pub violation: Option<Violation>,
    /// Digest of everything that happened; 0 if nothing was traced.
    pub trace_digest: u64,
    /// Events that happened.
    pub events: u64,
    /// Elections won.
    pub elections: u64,
    /// WAL committed, in bytes.
    pub committed_bytes: u64,
}

/// Runs the world of this seed to its end or to the first violation.
pub fn run(seed: u64, mode: TraceMode) -> Report {
    let mut world = world::World::new(seed, mode);
    // The state machines assert their own invariants: a panic is a violation like any other.
    let result = catch_unwind(AssertUnwindSafe(|| world.run()));
    let violation = match result {
        Ok(result) => result.err(),
        Err(panic) => Some(Violation(format!("panic: {}", panic_text(panic.as_ref())))),
    };
    world.report(violation)
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}
