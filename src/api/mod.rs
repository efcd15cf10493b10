//! What clients speak: one folder a dialect, and the operator's views.
//!
//! A dialect turns bytes into the conversation model and events back into its own shape. It knows nothing of sockets:
//! its answer is a [`Reply`], and [`crate::server`] puts that on the wire.

pub mod admin;
mod denial;
pub mod events;
mod field;
mod json;
pub mod openai;
pub mod ops;
mod query;
mod reply;

use std::sync::Arc;

pub use denial::Denial;
pub use field::{Invalid, InvalidKind};
pub use reply::{Content, Frame, Reply};

/// Who sent a request, as the front door has made sure.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The name of the client's key; `anonymous` where no keys are configured.
    pub client: Arc<str>,
    /// The models the key may use; `None` is all.
    pub models: Option<Arc<[String]>>,
    /// Whether the request may learn which subscription served it: it comes with an admin key or from this machine.
    pub is_operator: bool,
    /// As in the response's `x-request-id`.
    pub request_id: Arc<str>,
    /// The `X-Session-Id` header, unchecked.
    pub session_header: Option<Vec<u8>>,
}

/// The error of the dialect that is spoken under `path`, for what the front door refuses by itself.
pub fn deny(_path: &str, denial: Denial) -> Reply {
    // One dialect so far: who adds another decides here by the path.
    openai::error::Error::from(denial).into()
}
