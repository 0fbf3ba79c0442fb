//! The program `walproposer`: the local PostgreSQL's synchronous standby, which makes WAL durable on a
//! quorum of safekeepers.
//!
//! What is decided is decided in the library `walproposer`, without IO. Here is the IO around it, in one
//! task: [`driver`] polls the connections ([`link`]), hands what they bring to the state machine and
//! carries its actions out.
//!
//! Not here: restarts after a failure. The extension's background worker starts this program again,
//! unless it ends with the exit status that says "fenced off".

pub mod conf_file;
pub mod driver;
pub mod link;
pub mod local;
pub mod output;
pub mod past_terms;
pub mod polling;
pub mod settings;
pub mod slot_wal;
