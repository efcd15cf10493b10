//! What executes a request, and how it can fail.
//!
//! A backend is bound to one subscription. [`Backend::run`] gives a stream of [`Event`]s; **dropping the stream
//! cancels the work** and frees everything behind it, so a client that leaves needs no special path.

pub mod anthropic_api;
pub mod claude_cli;
mod failure;
pub mod http;
mod messages;
pub mod openai_api;

use std::sync::Arc;

use futures_util::future::{BoxFuture, FutureExt as _, ready};
use futures_util::stream::BoxStream;

pub use failure::{Failure, FailureKind, Fault};

use crate::conversation::{Event, Request};

/// The answer to a request as it arrives. Ends after its last event, or after the first failure.
pub type EventStream = BoxStream<'static, Result<Event, Failure>>;

/// On whose behalf a request runs: what one caller left behind is never used for another.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Caller {
    /// The name of the client's key; `anonymous` where no keys are configured.
    pub client: Arc<str>,
}

impl Caller {
    /// Whoever calls where no keys are configured.
    pub fn anonymous() -> Self {
        Self { client: "anonymous".into() }
    }
}

/// Something that can execute requests for one subscription.
pub trait Backend: Send + Sync {
    /// Starts to execute `request` for `caller`. Never blocks.
    fn run(&self, request: &Request, caller: &Caller) -> EventStream;

    /// Names of models that it can be asked for, where it stands beside the pool.
    fn models(&self) -> Vec<String> {
        Vec::new()
    }

    /// Looks whether its subscription could serve, without using anything of it: nothing is billed, and nothing counts
    /// against a budget. Tells what was seen, in a few words that hold no secret.
    fn check(&self) -> BoxFuture<'static, Result<String, Failure>> {
        let detail = "it cannot be asked without a request that is billed";
        ready(Err(Failure::new(FailureKind::InvalidRequest, detail))).boxed()
    }
}
