//! The proposer: the compute's half of the consensus protocol, as a deterministic state machine.
//!
//! It wins an election among the safekeepers, makes their WAL agree, and then hands them the WAL of the
//! local PostgreSQL and finds out how much of it a quorum has made durable. Rules and wire format:
//! `libpq.md`, section 5. The safety argument is in `docs/consensus.md`.
//!
//! Events go in, actions come out ([`Proposer::step`]). The crate reads no clock, randomness, disk or
//! socket: the binary `walproposer` runs it over real connections, the simulator in virtual time.
//!
//! Not here: connections, the replication client of the local server, settings.

mod config;
mod event;
mod peer;
mod proposer;
mod window;

pub use config::{Config, HoldBack, Limits, Mode, PastTerms};
pub use event::{Action, DisconnectReason, Event, Fetch, SkIndex, Stop, Time};
pub use proposer::Proposer;
