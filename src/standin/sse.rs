//! An answer on the wire: as server-sent events, or as one JSON object.

use bytes::Bytes;
use serde_json::{Value, json};

use super::answer::{Answer, pieces};
use super::cache::InputUsage;
use super::reply::Step;
use super::script::Pace;

/// Everything an answer's wire form needs besides what is said.
pub(super) struct Envelope<'a> {
    pub(super) number: u64,
    pub(super) model: &'a str,
    pub(super) input: InputUsage,
}

/// An answer as events.
pub(super) struct Events {
    /// `message_start`.
    pub(super) start: Bytes,
    /// Everything between the start and the end, in order.
    pub(super) content: Vec<Event>,
    /// `message_delta` and `message_stop`.
    pub(super) end: Bytes,
}

/// One event; `delta` tells those that bring something new from those that open and close blocks.
pub(super) struct Event {
    pub(super) delta: bool,
    pub(super) bytes: Bytes,
}

impl Envelope<'_> {
    fn message_id(&self) -> String {
        format!("msg_standin_{:06}", self.number)
    }

    fn call_id(&self, index: usize) -> String {
        format!("toolu_standin_{:06}_{index}", self.number)
    }

    fn usage(&self, output: usize) -> Value {
        json!({
            "input_tokens": self.input.fresh,
            "cache_creation_input_tokens": self.input.written(),
            "cache_read_input_tokens": self.input.read,
            "cache_creation": {
                "ephemeral_5m_input_tokens": self.input.written_5m,
                "ephemeral_1h_input_tokens": self.input.written_1h,
            },
            "output_tokens": output,
            "service_tier": "standard",
        })
    }

    fn final_usage(&self, answer: &Answer) -> Value {
        let mut usage = self.usage(answer.tokens());
        usage["output_tokens_details"] = json!({"thinking_tokens": answer.thinking_tokens()});
        usage
    }

    /// The answer to a request that did not ask for a stream.
    pub(super) fn whole(&self, answer: &Answer) -> Value {
        let mut content = Vec::new();
        if let Some(thinking) = &answer.thinking {
            content.push(json!({"type": "thinking", "thinking": thinking, "signature": signature()}));
        }
        if !answer.text.is_empty() {
            content.push(json!({"type": "text", "text": answer.text}));
        }
        for (index, call) in answer.calls.iter().enumerate() {
            let id = self.call_id(index);
            content.push(json!({"type": "tool_use", "id": id, "name": call.name, "input": call.input}));
        }
        json!({
            "id": self.message_id(),
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": answer.stop.reason(),
            "stop_sequence": answer.stop.sequence(),
            "usage": self.final_usage(answer),
        })
    }

    /// The answer as a stream.
    pub(super) fn events(&self, answer: &Answer) -> Events {
        let mut blocks = Blocks::default();
        if let Some(thinking) = &answer.thinking {
            let mut deltas: Vec<Value> =
                pieces(thinking).map(|piece| json!({"type": "thinking_delta", "thinking": piece})).collect();
            deltas.push(json!({"type": "signature_delta", "signature": signature()}));
            blocks.push(&json!({"type": "thinking", "thinking": "", "signature": ""}), deltas);
        }
        if !answer.text.is_empty() {
            let deltas = pieces(&answer.text).map(|piece| json!({"type": "text_delta", "text": piece}));
            blocks.push(&json!({"type": "text", "text": ""}), deltas);
        }
        for (index, call) in answer.calls.iter().enumerate() {
            let open = json!({"type": "tool_use", "id": self.call_id(index), "name": call.name, "input": {}});
            let arguments = call.input.to_string();
            let deltas = halves(&arguments).map(|piece| json!({"type": "input_json_delta", "partial_json": piece}));
            blocks.push(&open, deltas);
        }
        let message = json!({
            "id": self.message_id(),
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": [],
            "stop_reason": null,
            "stop_sequence": null,
            "usage": self.usage(1),
        });
        let mut delta = json!({"stop_reason": answer.stop.reason(), "stop_sequence": answer.stop.sequence()});
        if answer.stop.reason() == "refusal" {
            delta["stop_details"] = json!({"type": "refusal", "category": null, "explanation": null});
        }
        let mut end = event("message_delta", &json!({"delta": delta, "usage": self.final_usage(answer)})).to_vec();
        end.extend_from_slice(&event("message_stop", &json!({})));
        Events { start: event("message_start", &json!({"message": message})), content: blocks.0, end: end.into() }
    }
}

impl Events {
    /// How many deltas there are.
    pub(super) fn deltas(&self) -> usize {
        self.content.iter().filter(|event| event.delta).count()
    }

    /// The stream at `pace`, broken off after `deltas` of them if given.
    pub(super) fn steps(self, pace: Pace, deltas: Option<usize>) -> Vec<Step> {
        let mut steps = vec![Step::Wait(pace.first_delay()), Step::Send(self.start)];
        let mut sent = 0;
        for event in self.content {
            if event.delta {
                if Some(sent) == deltas {
                    return steps;
                }
                if sent > 0 {
                    steps.push(Step::Wait(pace.chunk_delay()));
                }
                sent += 1;
            }
            steps.push(Step::Send(event.bytes));
        }
        if deltas.is_none() {
            steps.push(Step::Send(self.end));
        }
        steps
    }
}

#[derive(Default)]
struct Blocks(Vec<Event>);

impl Blocks {
    fn push(&mut self, open: &Value, deltas: impl IntoIterator<Item = Value>) {
        let index = self.0.iter().filter(|event| event.bytes.starts_with(b"event: content_block_stop")).count();
        let start = event("content_block_start", &json!({"index": index, "content_block": open}));
        self.0.push(Event { delta: false, bytes: start });
        for delta in deltas {
            let bytes = event("content_block_delta", &json!({"index": index, "delta": delta}));
            self.0.push(Event { delta: true, bytes });
        }
        let stop = event("content_block_stop", &json!({"index": index}));
        self.0.push(Event { delta: false, bytes: stop });
    }
}

/// One server-sent event.
pub(super) fn event(kind: &str, data: &Value) -> Bytes {
    let mut data = data.clone();
    data["type"] = json!(kind);
    Bytes::from(format!("event: {kind}\ndata: {data}\n\n"))
}

/// Opaque to everybody but the provider.
const fn signature() -> &'static str {
    "c3RhbmQtaW4gc2lnbmF0dXJl"
}

/// A text in two parts, so that its reader has to join them.
fn halves(text: &str) -> impl Iterator<Item = &str> {
    let middle = (text.len() / 2..text.len()).find(|&at| text.is_char_boundary(at)).unwrap_or(text.len());
    let (left, right) = text.split_at(middle);
    [left, right].into_iter().filter(|half| !half.is_empty())
}
