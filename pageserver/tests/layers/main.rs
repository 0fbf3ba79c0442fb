//! Timelines against a model, through everything that rewrites layers: flush, compaction, image layers, garbage
//! collection, restarts, and death at every durable step, with and without object storage.

// Only `#[test]` functions are recognised as tests by the lint's own exception.
#![allow(clippy::unwrap_used)]

mod crash;
mod harness;
mod history;
mod kill;
mod remote;
