//! What the front door refuses before a dialect has seen the request.

use std::time::Duration;

/// A refusal of the front door, in no dialect yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Denial {
    /// Who may come in is not known: keys are kept in the store, which cannot be read.
    KeysUnknown,
    /// The request carries no client key, and keys are configured.
    MissingKey,
    /// The request's key is none of the configured ones.
    WrongKey,
    /// The request's key has expired.
    ExpiredKey,
    /// The request's key is not for this: it lacks the scope.
    Scope {
        /// The scope that is needed.
        needed: &'static str,
    },
    /// The client has sent as many requests as it may for now.
    RateLimited {
        /// How many it may send in a minute.
        per_minute: u32,
        /// When the next one may come.
        retry_after: Duration,
    },
    /// Only an admin key or a peer on this machine may see this.
    AdminOnly,
    /// A page of a foreign origin sent the request, through a browser on this machine.
    CrossSite {
        /// The origin, if the browser told it.
        origin: Option<String>,
    },
    /// The request was sent to a name that is not this machine's own.
    ForeignHost {
        /// The name.
        host: String,
    },
    /// There is nothing at this path.
    UnknownRoute {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
    },
    /// The path does not take this method.
    WrongMethod {
        /// The request's method.
        method: String,
        /// The request's path.
        path: String,
        /// What it takes: the value of the `Allow` header.
        allow: &'static str,
    },
    /// The body is compressed in a way the server does not read.
    Encoding {
        /// The `Content-Encoding`.
        encoding: String,
    },
    /// The body is larger than allowed.
    TooLarge {
        /// What is allowed, in bytes.
        limit: usize,
    },
    /// The bodies of all running requests take all the memory that there is for them.
    BodiesFull,
    /// The body did not arrive in time.
    SlowBody {
        /// The time it had.
        timeout: Duration,
    },
    /// The body ended in the middle, or its framing is wrong.
    BrokenBody,
    /// The request was caused by this very program.
    Loop,
    /// The server itself is at fault.
    Internal,
}
