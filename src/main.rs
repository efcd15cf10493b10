//! The `auth-pool` program.

fn main() {}
