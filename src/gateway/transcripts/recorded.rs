//! An answer of a session on its way to its client, of which a copy stays here.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::stream::{Stream, StreamExt as _};
use serde_json::{Map, Value};

use super::{Asked, Events, Visit};
use crate::conversation::{Block, Event, Role, Turn};
use crate::gateway::GatewayError;

/// The answer; when it is complete, the session goes on with it.
pub(super) struct Recorded {
    events: Events,
    gathered: Option<Gathered>,
    /// Whether the answer is complete.
    is_over: bool,
    visit: Visit,
}

/// A conversation that can be remembered, as far as it is known.
struct Gathered {
    asked: Asked,
    heard: Heard,
}

impl Recorded {
    /// `asked`: what was said before; `None` if that is too long to be remembered.
    pub(super) fn new(events: Events, asked: Option<Asked>, visit: Visit) -> Self {
        let gathered = asked.map(|asked| Gathered { asked, heard: Heard::default() });
        Self { events, gathered, is_over: false, visit }
    }

    /// Whether the conversation is one that will be remembered.
    #[cfg(test)]
    pub(super) fn is_gathered(&self) -> bool {
        self.gathered.is_some()
    }

    /// Takes over an event, as long as the conversation is one that can be remembered.
    fn note(&mut self, event: &Event) {
        let Some(Gathered { asked, heard }) = &mut self.gathered else { return };
        heard.note(event);
        if asked.bytes + heard.bytes > self.visit.transcripts.0.bounds.each {
            self.gathered = None;
        }
    }

    /// The answer is complete: what was said is known from now on, or known to be lost.
    fn finish(&mut self) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let transcript = match self.gathered.take() {
            Some(Gathered { asked, heard }) => {
                // An answer that says nothing is none: the session stays where it was.
                let Some(turn) = heard.turn() else { return };
                let mut transcript = asked.into_transcript();
                transcript.turns.push(turn);
                Some(transcript)
            }
            None => None,
        };
        self.visit.transcripts.record(&self.visit.name, transcript);
    }
}

/// What was heard of an answer.
#[derive(Debug, Default)]
struct Heard {
    text: String,
    calls: Vec<(String, String, String)>,
    bytes: usize,
}

impl Heard {
    fn note(&mut self, event: &Event) {
        match event {
            Event::Text(text) => {
                self.text.push_str(text);
                self.bytes += text.len();
            }
            Event::ToolUse { id, name, .. } => {
                self.calls.push((id.clone(), name.clone(), String::new()));
                self.bytes += size_of::<Block>() + id.len() + name.len();
            }
            Event::ToolInput { index, json } => {
                if let Some((_, _, arguments)) = self.calls.get_mut(*index) {
                    arguments.push_str(json);
                    self.bytes += json.len();
                }
            }
            _ => {}
        }
    }

    /// The answer as a client would send it back; `None` if it says nothing.
    fn turn(self) -> Option<Turn> {
        let mut blocks = Vec::with_capacity(1 + self.calls.len());
        if !self.text.trim().is_empty() {
            blocks.push(Block::Text(self.text));
        }
        for (id, name, arguments) in self.calls {
            let input = serde_json::from_str(&arguments).ok().filter(Value::is_object);
            let input = input.unwrap_or_else(|| Value::Object(Map::new()));
            blocks.push(Block::ToolUse { id, name, input });
        }
        (!blocks.is_empty()).then_some(Turn { role: Role::Assistant, blocks })
    }
}

impl Stream for Recorded {
    type Item = Result<Event, GatewayError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let event = ready!(self.events.poll_next_unpin(cx));
        if let Some(Ok(event)) = &event {
            self.note(event);
            if matches!(event, Event::Finished { .. }) {
                self.finish();
            }
        }
        Poll::Ready(event)
    }
}
