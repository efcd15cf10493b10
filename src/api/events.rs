//! `GET /api/events/stream`: what happens in the pool, as server-sent events.

use std::sync::Arc;

use futures_util::StreamExt as _;
use http::header::{self, HeaderName};
use serde_json::json;

use super::openai::error::Error;
use super::query::{self, invalid};
use super::{Frame, Invalid, Reply};
use crate::gateway::{Feed, FeedFilter, Told, Topic};

/// Follows the feed. `own` is the organisation whose events the caller may see; `None` is all of them.
///
/// `?types=allocation,usage` and `?organizationId=ID` narrow it down. Begins after the event that `last_event_id` names,
/// which a browser sends by itself when it comes back; `?lastEventId=ID` says the same.
pub fn stream(feed: &Feed, own: Option<&Arc<str>>, last_event_id: Option<&str>, query: Option<&str>) -> Reply {
    match wanted(own, query) {
        Ok((filter, after)) => {
            let told = feed.follow(last_event_id.or(after.as_deref()), filter);
            Reply::events(told.map(frame).boxed())
                .with_header(header::CACHE_CONTROL, "no-cache")
                // Asks nginx in front of us not to collect the stream.
                .with_header(HeaderName::from_static("x-accel-buffering"), "no")
        }
        Err(refusal) => refusal.into(),
    }
}

fn frame(told: Told) -> Frame {
    match told {
        Told::Begin { id, missed } => {
            Frame { id: Some(id), event: Some("open"), data: json!({ "missed": missed }).to_string() }
        }
        Told::Event { id, topic, data } => Frame { id: Some(id), event: Some(topic.as_str()), data: data.to_string() },
        Told::Missed(missed) => {
            Frame { id: None, event: Some("missed"), data: json!({ "missed": missed }).to_string() }
        }
    }
}

fn wanted(own: Option<&Arc<str>>, query: Option<&str>) -> Result<(FeedFilter, Option<String>), Error> {
    let mut filter = FeedFilter { organization: own.cloned(), topics: Vec::new() };
    let mut after = None;
    for (name, value) in query::pairs(query) {
        match name.as_str() {
            "organizationId" if value.is_empty() => return Err(invalid(&name, "must not be empty").into()),
            "organizationId" if own.is_some_and(|own| **own != *value) => return Err(super::admin::foreign(&name)),
            "organizationId" => filter.organization = Some(value.into()),
            "lastEventId" => after = Some(value),
            "types" => filter.topics = value.split(',').map(topic).collect::<Result<_, _>>()?,
            _ => {
                let known = "is not known; there are organizationId, types and lastEventId";
                return Err(invalid(&name, known).into());
            }
        }
    }
    Ok((filter, after))
}

fn topic(name: &str) -> Result<Topic, Invalid> {
    Topic::parse(name).ok_or_else(|| {
        let known = Topic::ALL.map(Topic::as_str).join(", ");
        invalid("types", format_args!("is a list of {known}, divided by commas"))
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;

    #[test]
    fn a_query_is_read_whole_or_refused() {
        let acme: Arc<str> = "acme".into();
        let (filter, after) = wanted(None, Some("types=usage,alert&organizationId=o&lastEventId=a-1")).unwrap();
        assert_eq!(filter.topics, [Topic::Usage, Topic::Alert]);
        assert_eq!((filter.organization.as_deref(), after.as_deref()), (Some("o"), Some("a-1")));
        assert_eq!(wanted(Some(&acme), None).unwrap().0.organization, Some(acme.clone()));
        assert!(wanted(Some(&acme), Some("organizationId=acme")).is_ok());
        for (query, param) in [
            ("types=", "types"),
            ("types=usage,", "types"),
            ("type=usage", "type"),
            ("organizationId=", "organizationId"),
        ] {
            assert_eq!(wanted(None, Some(query)).unwrap_err().param.as_deref(), Some(param), "{query}");
        }
        let reply = stream(&Feed::default(), Some(&acme), None, Some("organizationId=other"));
        assert_eq!(reply.status, StatusCode::FORBIDDEN);
    }
}
