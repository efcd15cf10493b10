//! What goes wrong between us and a provider, in words that hold no secret.

use bytes::BytesMut;
use reqwest::Response;

use super::Deadlines;
use crate::backend::{Failure, FailureKind};

/// The most of an error's body that is read.
const LONGEST_ERROR: usize = 64 * 1024;

/// The most of a whole answer that is read.
const LONGEST_BODY: usize = 16 * 1024 * 1024;

/// The most of a provider's words that is repeated.
const LONGEST_EXCERPT: usize = 500;

/// A request that had no answer.
pub(in crate::backend) fn unreachable(error: reqwest::Error) -> Failure {
    let what = if error.is_connect() { "the provider cannot be reached" } else { "the provider did not answer" };
    Failure::new(FailureKind::Unavailable { status: None }, format!("{what}: {}", innermost(error)))
}

/// An answer that broke off.
pub(in crate::backend) fn broken(error: reqwest::Error) -> Failure {
    let detail = format!("the provider's answer broke off: {}", innermost(error));
    Failure::new(FailureKind::Unavailable { status: None }, detail)
}

/// The innermost cause. The address is left out: an operator may have put more into it than a host.
fn innermost(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut cause: &dyn std::error::Error = &error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

/// The beginning of an error's body; what comes after it is not waited for.
pub(in crate::backend) async fn read_error(response: Response, deadlines: &Deadlines) -> Vec<u8> {
    read_up_to(LONGEST_ERROR, response, deadlines).await
}

/// A body that is not streamed, as far as it may be long.
pub(in crate::backend) async fn read_body(response: Response, deadlines: &Deadlines) -> Vec<u8> {
    read_up_to(LONGEST_BODY, response, deadlines).await
}

async fn read_up_to(longest: usize, mut response: Response, deadlines: &Deadlines) -> Vec<u8> {
    let mut body = BytesMut::new();
    while let Ok(Ok(Some(chunk))) = deadlines.wait(response.chunk()).await {
        let room = longest - body.len();
        body.extend_from_slice(chunk.get(..room.min(chunk.len())).unwrap_or_default());
        if body.len() >= longest {
            break;
        }
    }
    body.to_vec()
}

/// A provider's words, cut to what a person reads, on one line.
pub(in crate::backend) fn excerpt(text: &str) -> String {
    let mut short: String =
        text.trim().chars().take(LONGEST_EXCERPT).map(|char| if char.is_control() { ' ' } else { char }).collect();
    if text.trim().chars().count() > LONGEST_EXCERPT {
        short.push('…');
    }
    short
}
