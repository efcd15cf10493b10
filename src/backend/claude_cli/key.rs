//! What a process holds, as a number: a rolling hash over everything that decides how a conversation goes on.
//!
//! Both sides of the comparison are brought into the same form: a client sends an answer back as one text and a list of
//! calls, however many pieces it was streamed in, and without the thinking.

use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::backend::Caller;
use crate::conversation::{Block, ImageSource, Role, ToolResultContent, Turn};

/// The number of a conversation up to some turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key([u8; 32]);

/// A conversation that grows turn by turn.
#[derive(Clone, Debug)]
pub(super) struct Rolling(Sha256);

impl Rolling {
    /// A conversation of `caller` without turns. What one caller left behind never fits another's request.
    pub(super) fn begin(caller: &Caller, system: &[String]) -> Self {
        let mut rolling = Self(Sha256::new());
        rolling.field('c', caller.client.as_bytes());
        for text in system {
            rolling.field('s', text.as_bytes());
        }
        rolling
    }

    /// Adds a turn as a client sends it.
    pub(super) fn add(&mut self, turn: &Turn) {
        match turn.role {
            Role::User => {
                self.field('U', &[]);
                for block in &turn.blocks {
                    self.block(block);
                }
            }
            Role::Assistant => {
                let mut said = Said::default();
                for block in &turn.blocks {
                    match block {
                        Block::Text(text) => said.text(text),
                        Block::ToolUse { id, name, input } => said.call(id, name, input.clone()),
                        // No answer holds such a thing, so it fits no process.
                        Block::Image(_) | Block::ToolResult { .. } => self.block(block),
                    }
                }
                self.answer(said);
            }
        }
    }

    /// Adds an answer as it was given.
    pub(super) fn answer(&mut self, said: Said) {
        self.field('A', &[]);
        if !said.is_blank {
            self.field('t', &said.text.finalize());
        }
        for Call { id, name, input } in said.calls {
            self.field('i', id.as_bytes());
            self.field('n', name.as_bytes());
            self.value(&input);
        }
    }

    /// The number of the conversation so far.
    pub(super) fn key(&self) -> Key {
        Key(self.0.clone().finalize().into())
    }

    /// Kind and length go before every field, so that no two lists of fields look alike.
    fn field(&mut self, kind: char, bytes: &[u8]) {
        self.0.update([u8::try_from(kind).unwrap_or_default()]);
        self.0.update((bytes.len() as u64).to_le_bytes());
        self.0.update(bytes);
    }

    fn block(&mut self, block: &Block) {
        match block {
            Block::Text(text) => self.field('t', text.as_bytes()),
            Block::Image(source) => self.image(source),
            Block::ToolUse { id, name, input } => {
                self.field('i', id.as_bytes());
                self.field('n', name.as_bytes());
                self.value(input);
            }
            Block::ToolResult { tool_use_id, content, is_error } => {
                self.field(if *is_error { 'e' } else { 'r' }, tool_use_id.as_bytes());
                for part in content {
                    match part {
                        ToolResultContent::Text(text) => self.field('t', text.as_bytes()),
                        ToolResultContent::Image(source) => self.image(source),
                    }
                }
            }
        }
    }

    fn image(&mut self, source: &ImageSource) {
        match source {
            ImageSource::Base64 { media_type, data } => {
                self.field('m', media_type.as_bytes());
                self.field('d', data.as_bytes());
            }
            ImageSource::Url(url) => self.field('u', url.as_bytes()),
        }
    }

    /// Whatever the order of an object's members.
    fn value(&mut self, value: &Value) {
        match value {
            Value::Object(members) => {
                let mut members: Vec<_> = members.iter().collect();
                members.sort_unstable_by_key(|(name, _)| *name);
                self.field('{', &[]);
                for (name, value) in members {
                    self.field('k', name.as_bytes());
                    self.value(value);
                }
                self.field('}', &[]);
            }
            Value::Array(items) => {
                self.field('[', &[]);
                for item in items {
                    self.value(item);
                }
                self.field(']', &[]);
            }
            other => self.field('v', other.to_string().as_bytes()),
        }
    }
}

/// What an answer says, as its client will send it back.
#[derive(Clone, Debug)]
pub(super) struct Said {
    text: Sha256,
    /// Text of nothing but white space is no text: the models refuse it.
    is_blank: bool,
    calls: Vec<Call>,
}

#[derive(Clone, Debug)]
struct Call {
    id: String,
    name: String,
    input: Value,
}

impl Default for Said {
    fn default() -> Self {
        Self { text: Sha256::new(), is_blank: true, calls: Vec::new() }
    }
}

impl Said {
    /// Adds a piece of text.
    pub(super) fn text(&mut self, piece: &str) {
        self.text.update(piece);
        self.is_blank &= piece.trim().is_empty();
    }

    /// Adds a call.
    pub(super) fn call(&mut self, id: &str, name: &str, input: Value) {
        self.calls.push(Call { id: id.to_owned(), name: name.to_owned(), input });
    }

    /// Whether it says nothing: then its client has nothing to send back.
    pub(super) fn is_empty(&self) -> bool {
        self.is_blank && self.calls.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn turn(role: Role, blocks: Vec<Block>) -> Turn {
        Turn { role, blocks }
    }

    fn text(text: &str) -> Block {
        Block::Text(text.to_owned())
    }

    fn caller(name: &str) -> Caller {
        Caller { client: name.into() }
    }

    fn key(name: &str, system: &[&str], turns: &[Turn]) -> Key {
        let system: Vec<String> = system.iter().map(|text| (*text).to_owned()).collect();
        let mut rolling = Rolling::begin(&caller(name), &system);
        for turn in turns {
            rolling.add(turn);
        }
        rolling.key()
    }

    #[test]
    fn an_answer_has_the_number_that_its_client_will_give_it() {
        let question = turn(Role::User, vec![text("hi")]);
        let mut streamed = Rolling::begin(&caller("a"), &[]);
        streamed.add(&question);
        let mut said = Said::default();
        said.text("Let me ");
        said.text("look.");
        said.call("toolu_1", "look_up", json!({ "b": [1, { "y": null, "x": "€" }], "a": 1.5 }));
        assert!(!said.is_empty());
        streamed.answer(said);
        let arguments: Value = serde_json::from_str(r#"{ "a": 1.5, "b": [1, {"x": "\u20ac", "y": null}] }"#).unwrap();
        let call = Block::ToolUse { id: "toolu_1".to_owned(), name: "look_up".to_owned(), input: arguments };
        let sent = turn(Role::Assistant, vec![text("Let me look."), call]);
        assert_eq!(streamed.key(), key("a", &[], &[question, sent]));
    }

    #[test]
    fn whatever_differs_has_another_number() {
        let user = |blocks| turn(Role::User, blocks);
        let result = |is_error| Block::ToolResult {
            tool_use_id: "t".to_owned(),
            content: vec![ToolResultContent::Text("x".to_owned())],
            is_error,
        };
        let image = |url: &str| Block::Image(ImageSource::Url(url.to_owned()));
        let all = [
            key("a", &[], &[]),
            key("b", &[], &[]),
            key("a", &["s"], &[]),
            key("a", &["s", ""], &[]),
            key("a", &[], &[user(vec![text("s")])]),
            key("a", &[], &[user(vec![text("s"), text("")])]),
            key("a", &[], &[user(vec![text("s"), text("t")])]),
            key("a", &[], &[user(vec![text("st")])]),
            key("a", &[], &[turn(Role::Assistant, vec![text("s")])]),
            key("a", &[], &[user(vec![result(false)])]),
            key("a", &[], &[user(vec![result(true)])]),
            key("a", &[], &[user(vec![image("s")])]),
            key("a", &[], &[user(vec![image("t")])]),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[index + 1..].contains(one), "{index}");
        }
    }

    #[test]
    fn blank_text_says_nothing() {
        let mut said = Said::default();
        said.text(" \n");
        assert!(said.is_empty());
    }
}
