//! A dialect's answer, before it is put on the wire.

use bytes::Bytes;
use futures_util::stream::BoxStream;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use serde::Serialize;

/// The answer to one HTTP request.
pub struct Reply {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, without those that describe the body.
    pub headers: HeaderMap,
    /// Its body.
    pub content: Content,
}

/// The body of a [`Reply`].
pub enum Content {
    /// None.
    Empty,
    /// A JSON document.
    Json(Bytes),
    /// Server-sent events. The stream is dropped when the client leaves, and with it the work behind it.
    Events(BoxStream<'static, Frame>),
}

/// One server-sent event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// Its `id:` line, where a client that comes back can go on from it; holds no line break.
    pub id: Option<String>,
    /// Its `event:` line, in dialects that name their events.
    pub event: Option<&'static str>,
    /// Its `data:` line; holds no line break.
    pub data: String,
}

impl Frame {
    /// An event without a name.
    pub fn data(data: impl Into<String>) -> Self {
        Self { id: None, event: None, data: data.into() }
    }
}

impl Reply {
    /// A JSON document.
    pub fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Self {
        match serde_json::to_vec(value) {
            Ok(bytes) => Self { status, headers: HeaderMap::new(), content: Content::Json(bytes.into()) },
            Err(error) => {
                tracing::error!(%error, "an answer could not be written as JSON");
                Self::empty(StatusCode::INTERNAL_SERVER_ERROR)
            }
        }
    }

    /// A stream of events.
    pub fn events(frames: BoxStream<'static, Frame>) -> Self {
        Self { status: StatusCode::OK, headers: HeaderMap::new(), content: Content::Events(frames) }
    }

    /// No body.
    pub fn empty(status: StatusCode) -> Self {
        Self { status, headers: HeaderMap::new(), content: Content::Empty }
    }

    /// Adds a header. Characters that no header may hold are replaced, so text of any origin is safe here.
    #[must_use]
    pub fn with_header(mut self, name: HeaderName, value: &str) -> Self {
        let clean: String =
            value.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '?' }).take(512).collect();
        if let Ok(value) = HeaderValue::from_str(clean.trim()) {
            self.headers.insert(name, value);
        }
        self
    }
}
