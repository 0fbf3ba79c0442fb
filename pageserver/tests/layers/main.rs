//! Timelines against a model, through everything that rewrites layers: flush, compaction, image layers, garbage
//! collection, restarts, and death at every durable step.

// Only `#[test]` functions are recognised as tests by the lint's own exception.
#![allow(clippy::unwrap_used)]

mod crash;
mod harness;
mod history;
