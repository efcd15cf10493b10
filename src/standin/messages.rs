//! `POST /v1/messages`: from a request to the reply it gets.

use hyper::StatusCode;
use serde_json::{Value, json};

use super::Options;
use super::answer::Answer;
use super::ask::Ask;
use super::limits::Spent;
use super::record::Bearer;
use super::reply::{OVERLOADED, Reply, Step, error_body};
use super::script::{Action, BreakKind, HangPoint, Pace, Rule};
use super::server::State;
use super::sse::{self, Envelope};
use super::validate;
use crate::units::Timestamp;

/// One request to the model, by somebody known.
pub(super) struct Question<'a> {
    pub(super) state: &'a State,
    pub(super) bearer: &'a Bearer,
    pub(super) body: &'a Value,
    pub(super) ask: Ask<'a>,
    pub(super) number: u64,
    pub(super) at: Timestamp,
}

/// The reply to a request to the model; `body` is `None` if it was not JSON.
pub(super) fn reply(state: &State, bearer: Option<&Bearer>, body: Option<&Value>, number: u64, at: Timestamp) -> Reply {
    let Some(bearer) = bearer else {
        return Reply::error(StatusCode::UNAUTHORIZED, "x-api-key header is required");
    };
    let Some(body) = body else {
        return Reply::error(StatusCode::BAD_REQUEST, "The request body is not valid JSON");
    };
    let question = Question { state, bearer, body, ask: Ask::of(body), number, at };
    match state.script.next(bearer, &question.ask, at) {
        Some(rule) => question.scripted(&rule),
        None => question.refused().unwrap_or_else(|| question.answer(&Answer::to(&question.ask), state.options.pace)),
    }
}

/// The reply to `GET /v1/models`: two of them, to whom no rule refuses everything by a status.
pub(super) fn models(state: &State, bearer: Option<&Bearer>, number: u64, at: Timestamp) -> Reply {
    let Some(bearer) = bearer else {
        return Reply::error(StatusCode::UNAUTHORIZED, "x-api-key header is required");
    };
    if let Some(rule) = state.script.peek(bearer, at).filter(|rule| matches!(rule.action, Action::Status { .. })) {
        let question = Question { state, bearer, body: &Value::Null, ask: Ask::of(&Value::Null), number, at };
        return question.refusal(&rule.action);
    }
    let model =
        |id: &str| json!({ "type": "model", "id": id, "display_name": id, "created_at": "2025-09-29T00:00:00Z" });
    let models = ["claude-sonnet-4-5", "claude-haiku-4-5"];
    let body = json!({
        "data": models.map(model), "has_more": false, "first_id": models[0], "last_id": models[1],
    });
    Reply::json(StatusCode::OK, &body)
}

impl Question<'_> {
    /// The refusal that the real API would give, if it would.
    fn refused(&self) -> Option<Reply> {
        let Options { strict, sampling_rules, .. } = self.state.options;
        if strict && !self.ask.model.starts_with("claude-") {
            return Some(Reply::error(StatusCode::NOT_FOUND, &format!("model: {}", self.ask.model)));
        }
        let structure = strict.then(|| validate::structure(self.body)).flatten();
        let sampling = || sampling_rules.then(|| validate::sampling(self.body)).flatten();
        structure.or_else(sampling).map(|message| Reply::error(StatusCode::BAD_REQUEST, &message))
    }

    fn scripted(&self, rule: &Rule) -> Reply {
        let pace = rule.pace;
        if let Some(answer) = Answer::scripted(&rule.action, &self.ask) {
            return match &rule.action {
                Action::ErrorMidStream { after_deltas, kind } => {
                    let break_off = match kind {
                        BreakKind::Reset => Step::Reset,
                        BreakKind::Eof => Step::Eof,
                        BreakKind::Event => Step::Send(sse::event("error", &error_body(OVERLOADED, "Overloaded"))),
                    };
                    self.broken(&answer, Some(*after_deltas), break_off, pace)
                }
                Action::Hang { before: HangPoint::Mid } => self.broken(&answer, None, Step::Hang, pace),
                Action::Hang { before: HangPoint::FirstEvent } => Reply::stream(vec![Step::Hang]),
                Action::Hang { before: HangPoint::Headers } => {
                    Reply { before: vec![Step::Hang], ..Reply::empty(StatusCode::OK) }
                }
                _ => self.answer(&answer, pace),
            };
        }
        let mut reply = self.refusal(&rule.action);
        reply.before.insert(0, Step::Wait(pace.first_delay()));
        reply
    }

    /// The reply to an action that answers nothing.
    fn refusal(&self, action: &Action) -> Reply {
        match action {
            Action::Status { code, body, headers } => {
                let status = StatusCode::from_u16(*code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                let body = body.clone().unwrap_or_else(|| error_body(status, default_message(status)));
                Reply::json(status, &body).with_headers(headers.clone())
            }
            Action::Limit { window, resets_at, utilization, .. } => {
                let spent = Spent {
                    window,
                    resets_at: resets_at.unwrap_or_else(|| self.at.as_secs() + 5 * 3600),
                    utilization: utilization.unwrap_or(1.0),
                };
                let message = "This request would exceed your account's rate limit. Please try again later.";
                let headers = self.state.limits.rejected(self.bearer, &spent, self.at);
                Reply::error(StatusCode::TOO_MANY_REQUESTS, message).with_headers(headers)
            }
            Action::Throttle { retry_after_s } => {
                let status = StatusCode::TOO_MANY_REQUESTS;
                let headers = retry_after_s.map(|seconds| ("retry-after".to_owned(), seconds.to_string()));
                Reply::error(status, default_message(status)).with_headers(headers)
            }
            Action::ResetBeforeHeaders => Reply { before: vec![Step::Reset], ..Reply::empty(StatusCode::OK) },
            _ => Reply::error(OVERLOADED, default_message(OVERLOADED)),
        }
    }

    fn answer(&self, answer: &Answer, pace: Pace) -> Reply {
        let envelope = self.envelope();
        self.state.ledger.count(self.bearer, self.ask.model, envelope.input, answer.tokens());
        let reply = if self.ask.stream {
            Reply::stream(envelope.events(answer).steps(pace, None))
        } else {
            let mut reply = Reply::json(StatusCode::OK, &envelope.whole(answer));
            reply.before.push(Step::Wait(pace.first_delay()));
            reply
        };
        reply.with_headers(self.state.limits.allowed(self.bearer, self.at))
    }

    /// A stream that ends with `break_off` after so many deltas, or after half of them.
    fn broken(&self, answer: &Answer, after: Option<usize>, break_off: Step, pace: Pace) -> Reply {
        let events = self.envelope().events(answer);
        let after = after.unwrap_or(events.deltas() / 2);
        let mut steps = events.steps(pace, Some(after));
        steps.push(break_off);
        Reply::stream(steps).with_headers(self.state.limits.allowed(self.bearer, self.at))
    }

    fn envelope(&self) -> Envelope<'_> {
        let input = self.state.cache.charge(self.bearer.name(), self.body);
        Envelope { number: self.number, model: self.ask.model, input }
    }
}

fn default_message(status: StatusCode) -> &'static str {
    match status.as_u16() {
        401 => "Invalid bearer token",
        403 => "OAuth token does not meet scope requirement user:inference",
        404 => "model: not found",
        413 => "Request exceeds the maximum size",
        429 => "Too many requests",
        500 => "Internal server error",
        529 => "Overloaded",
        _ => status.canonical_reason().unwrap_or("refused, as the script says"),
    }
}
