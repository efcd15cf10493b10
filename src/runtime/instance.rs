//! This run of the program, so that a request which comes back to it is recognised.

use std::sync::OnceLock;

use uuid::Uuid;

/// The header that every request carries which this program causes at an address that its owner has named.
pub const HOP_HEADER: &str = "x-auth-pool-hop";

/// The name of this run; another one after every start.
pub fn id() -> &'static str {
    static ID: OnceLock<String> = OnceLock::new();
    ID.get_or_init(|| Uuid::new_v4().simple().to_string())
}
