//! Reading request bodies, within bounds.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::HeaderMap;
use hyper::body::{Body as _, Incoming};
use hyper::header::{CONTENT_ENCODING, EXPECT};

use super::Settings;
use super::budget::Held;
use crate::api::Denial;

/// How much of a refused body is still read, and for how long.
const DISCARD_BYTES: usize = 64 << 20;
const DISCARD_TIME: Duration = Duration::from_secs(2);

/// Reads the whole body, whether its length was announced or not. `held` is what it takes of the memory for bodies.
pub(super) async fn read(
    body: &mut Incoming,
    headers: &HeaderMap,
    settings: &Settings,
    held: &mut Held,
) -> Result<Bytes, Denial> {
    if let Some(encoding) = headers.get(CONTENT_ENCODING)
        && !encoding.as_bytes().eq_ignore_ascii_case(b"identity")
    {
        let encoding = String::from_utf8_lossy(encoding.as_bytes()).chars().take(32).collect();
        return Err(Denial::Encoding { encoding });
    }
    let limit = settings.max_body_bytes;
    // An announced length is believed, so that a client that waits for our "continue" need not send anything.
    if body.size_hint().lower() > limit as u64 {
        return Err(Denial::TooLarge { limit });
    }
    let gathered = tokio::time::timeout(settings.body_timeout, gather(body, limit, held)).await;
    gathered.unwrap_or(Err(Denial::SlowBody { timeout: settings.body_timeout }))
}

async fn gather(body: &mut Incoming, limit: usize, held: &mut Held) -> Result<Bytes, Denial> {
    let mut pieces: Vec<Bytes> = Vec::new();
    let mut length = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| {
            tracing::debug!(%error, "the body broke off");
            Denial::BrokenBody
        })?;
        // What is no data are trailers, which mean nothing here.
        let Ok(data) = frame.into_data() else { continue };
        length += data.len();
        if length > limit {
            return Err(Denial::TooLarge { limit });
        }
        held.grow(data.len()).map_err(|_| Denial::BodiesFull)?;
        pieces.push(data);
    }
    Ok(match <[Bytes; 1]>::try_from(pieces) {
        Ok([only]) => only,
        Err(pieces) => pieces.concat().into(),
    })
}

/// Reads the rest of a body that nobody wants, so that its sender gets to read the answer: closing a connection with unread
/// data on it can destroy the answer on its way.
pub(super) async fn discard(mut body: Incoming, headers: &HeaderMap) {
    if body.is_end_stream() || headers.contains_key(EXPECT) {
        return;
    }
    let drain = async {
        let mut seen = 0;
        while seen < DISCARD_BYTES
            && let Some(Ok(frame)) = body.frame().await
        {
            seen += frame.data_ref().map_or(0, Bytes::len);
        }
    };
    // Whoever sends more, or more slowly, may miss the answer.
    let _ = tokio::time::timeout(DISCARD_TIME, drain).await;
}
