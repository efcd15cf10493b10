//! The forms of Anthropic's Messages API, which the Claude CLI passes on as they are: what a request says, the events of an
//! answer, and what a refusal means. Shared by the backends that speak it, directly or through the CLI.

mod body;
mod event;

pub(super) use body::{block, budget, extra_body};
pub(super) use event::{RawEvent, RawUsage, StreamEvent};

/// Whether a 429 says that the account may not do this at all, whenever it tries.
pub(super) fn is_entitlement(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    text.contains("extra usage is required") || text.contains("long context")
}
