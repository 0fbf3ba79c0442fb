//! Real safekeeper processes, driven by raw protocol messages.

// The lint knows test functions, not the helpers of a test crate.
#![allow(clippy::unwrap_used)]

mod broker;
mod consensus;
mod faults;
mod hostile;
mod http;
mod pull;
mod replication;
mod standby;
mod support;
