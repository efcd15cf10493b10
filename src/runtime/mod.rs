//! The machine's side of running: its clock and its tasks.
//!
//! One home each for what everybody else must not touch: the wall clock ([`clock`]) and `tokio::spawn` ([`tasks`]).

pub mod address;
pub mod clock;
pub mod instance;
pub mod memory;
pub mod pressure;
pub mod priority;
pub mod scratch;
pub mod signals;
pub mod tasks;
