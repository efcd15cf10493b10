//! (being built)

pub mod standin;
