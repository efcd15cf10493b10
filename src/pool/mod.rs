//! The brain of the pool. Pure: every operation takes the time and returns what happened.

mod command;

pub use command::*;

/// (being built)
#[derive(Clone, Debug)]
pub struct Decision;
