//! What safekeepers and their clients agree on: consensus messages and HTTP models.

pub mod debug_dump;
pub mod models;
pub mod mutation;
pub mod protocol;
pub mod timeline_info;
