//! The one inner model of a conversation.
//!
//! Every dialect that clients speak is turned into a [`Request`] and every backend answers with a stream of
//! [`Event`]s. The shape is Anthropic's, because both the CLI and the API speak it natively: nothing is lost on
//! the way in, and the only translation happens at the edge, in `api`.
//!
//! This room imports nothing else of ours but [`crate::units`].

mod event;
mod model;
mod output;
mod request;
mod usage;

pub use event::{Event, LimitReport, LimitStatus, Overage, StopReason, Window, WindowUse};
pub use model::{Catalog, Family, LongContext, Model, Price, Thinking};
pub use output::{OutputCheck, native};
pub use request::{Block, Effort, ImageSource, Options, Request, Role, Tool, ToolChoice, ToolResultContent, Turn};
pub use usage::Usage;
