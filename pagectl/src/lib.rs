//! Looking at what a timeline has become, without a server: its files, its objects, and whether they are sound.
//!
//! Invariants
//! * Nothing is changed: neither a file of the server nor an object.
//! * What is read may be damaged in any way. That is reported, naming the file or object, and never ends the program.
//!
//! Not here: the formats. They are the pageserver's, and read by its code.

pub mod dump;
pub mod layer_map;
pub mod scrub;
pub mod source;
pub mod view;
