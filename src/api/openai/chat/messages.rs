//! OpenAI's flat list of messages as a system prompt and alternating turns.

use serde_json::{Map, Value};

use super::content::{Part, Speaker, parts};
use super::tools::{call_id, tool_name};
use crate::api::field::{Invalid, Path, array, excerpt, object, require, string, take};
use crate::conversation::{Block, Role, ToolResultContent, Turn};

/// The most calls in one message: as many as OpenAI takes.
const MOST_CALLS: usize = 128;

/// What a list of messages says.
#[derive(Debug, Default)]
pub(super) struct Conversation {
    /// System and developer messages, in order, wherever they stood.
    pub(super) system: Vec<String>,
    /// Alternating turns that begin and end with the user's.
    pub(super) turns: Vec<Turn>,
    /// Calls of the last assistant message that no tool message has answered yet.
    open: Vec<String>,
    /// Which message made them.
    asked_by: usize,
    /// See [`conversation`].
    continues: bool,
}

/// Reads `messages`. `continues`: whether they may go on with a conversation that the server knows, and so begin with the
/// results of calls that are not among them.
pub(super) fn conversation(messages: Value, continues: bool, at: &Path<'_>) -> Result<Conversation, Invalid> {
    let messages = array(messages, at)?;
    if messages.is_empty() {
        return Err(at.invalid("must hold at least one message"));
    }
    let mut conversation = Conversation { continues, ..Conversation::default() };
    let last = messages.len() - 1;
    for (index, message) in messages.into_iter().enumerate() {
        conversation.add(index, message, at)?;
    }
    conversation.check_answered(at)?;
    match conversation.turns.last() {
        None => Err(at.invalid("must hold at least one user message")),
        Some(turn) if turn.role == Role::Assistant => Err(at
            .index(last)
            .key("role")
            .unsupported("is not supported for the last message: end with a user or a tool message")),
        Some(_) => Ok(conversation),
    }
}

impl Conversation {
    fn add(&mut self, index: usize, message: Value, list: &Path<'_>) -> Result<(), Invalid> {
        let at = list.index(index);
        let mut message = object(message, &at)?;
        let role_at = at.key("role");
        let role = string(require(&mut message, "role", &at)?, &role_at)?;
        match role.as_str() {
            "system" | "developer" => {
                let content = require(&mut message, "content", &at)?;
                let texts = parts(content, Speaker::System, &at.key("content"))?;
                self.system.extend(texts.into_iter().filter_map(text));
                Ok(())
            }
            "user" => {
                self.check_answered(list)?;
                let content_at = at.key("content");
                let blocks = parts(require(&mut message, "content", &at)?, Speaker::User, &content_at)?;
                if blocks.is_empty() {
                    return Err(content_at.invalid("must not be empty"));
                }
                self.say(Role::User, blocks.into_iter().map(block));
                Ok(())
            }
            "assistant" => {
                self.check_answered(list)?;
                let blocks = assistant(&mut message, &at)?;
                if self.turns.is_empty() && !blocks.is_empty() {
                    return Err(role_at.invalid("must be 'user' in the conversation's first message"));
                }
                self.open = blocks
                    .iter()
                    .filter_map(|block| if let Block::ToolUse { id, .. } = block { Some(id.clone()) } else { None })
                    .collect();
                self.asked_by = index;
                self.say(Role::Assistant, blocks);
                Ok(())
            }
            "tool" => {
                let result = self.tool_result(&mut message, &at)?;
                self.say(Role::User, [result]);
                Ok(())
            }
            "function" => Err(role_at.unsupported("is 'function', which is deprecated: use 'tool'")),
            other => {
                let other = excerpt(other);
                Err(role_at.invalid(format_args!(
                    "must be 'system', 'developer', 'user', 'assistant' or 'tool', not '{other}'"
                )))
            }
        }
    }

    /// Adds blocks to the turn of `role`, a new one if the other side spoke last.
    fn say(&mut self, role: Role, blocks: impl IntoIterator<Item = Block>) {
        let mut blocks = blocks.into_iter().peekable();
        if blocks.peek().is_none() {
            return;
        }
        match self.turns.last_mut() {
            Some(turn) if turn.role == role => turn.blocks.extend(blocks),
            _ => self.turns.push(Turn { role, blocks: blocks.collect() }),
        }
    }

    fn tool_result(&mut self, message: &mut Map<String, Value>, at: &Path<'_>) -> Result<Block, Invalid> {
        let id_at = at.key("tool_call_id");
        let id = call_id(string(require(message, "tool_call_id", at)?, &id_at)?, &id_at)?;
        match self.open.iter().position(|open| *open == id) {
            Some(place) => {
                self.open.remove(place);
            }
            // Whether the server knows the call is for it to say.
            None if self.continues && self.begins_with_results() => {}
            None => {
                let id = excerpt(&id);
                return Err(id_at.invalid(format_args!(
                    "is '{id}', which is no unanswered call of the assistant message before it"
                )));
            }
        }
        let content = parts(require(message, "content", at)?, Speaker::Tool, &at.key("content"))?;
        let content = content.into_iter().map(|part| match part {
            Part::Text(text) => ToolResultContent::Text(text),
            Part::Image(image) => ToolResultContent::Image(image),
        });
        Ok(Block::ToolResult { tool_use_id: id, content: content.collect(), is_error: false })
    }

    /// Whether nothing but results has been said so far.
    fn begins_with_results(&self) -> bool {
        let mut blocks = self.turns.iter().flat_map(|turn| &turn.blocks);
        blocks.all(|block| matches!(block, Block::ToolResult { .. }))
    }

    /// Every call needs its result before anybody else speaks.
    fn check_answered(&self, list: &Path<'_>) -> Result<(), Invalid> {
        match self.open.first() {
            None => Ok(()),
            Some(id) => Err(list.index(self.asked_by).key("tool_calls").invalid(format_args!(
                "must be followed by a tool message for each call, and there is none for '{}'",
                excerpt(id)
            ))),
        }
    }
}

/// The blocks of an assistant message; none if it says nothing, as after an answer that was broken off.
fn assistant(message: &mut Map<String, Value>, at: &Path<'_>) -> Result<Vec<Block>, Invalid> {
    if take(message, "function_call").is_some() {
        return Err(at.key("function_call").unsupported("is not supported: it is deprecated; use 'tool_calls'"));
    }
    if take(message, "audio").is_some() {
        return Err(at.key("audio").unsupported("is not supported: send the text of the answer"));
    }
    let mut said = false;
    let mut blocks = Vec::new();
    for name in ["content", "refusal"] {
        if let Some(content) = take(message, name) {
            said = true;
            blocks.extend(parts(content, Speaker::Assistant, &at.key(name))?.into_iter().map(block));
        }
    }
    if let Some(calls) = take(message, "tool_calls") {
        let list_at = at.key("tool_calls");
        let calls = array(calls, &list_at)?;
        if calls.len() > MOST_CALLS {
            return Err(list_at.invalid(format_args!("may hold {MOST_CALLS} calls at most, not {}", calls.len())));
        }
        let mut ids = Vec::with_capacity(calls.len());
        for (index, call) in calls.into_iter().enumerate() {
            let call_at = list_at.index(index);
            let (id, call) = tool_call(call, &call_at)?;
            if ids.contains(&id) {
                return Err(call_at.key("id").invalid("is the id of another call in the same message"));
            }
            ids.push(id);
            blocks.push(call);
        }
        said |= !ids.is_empty();
    }
    if said { Ok(blocks) } else { Err(at.key("content").missing()) }
}

fn tool_call(call: Value, at: &Path<'_>) -> Result<(String, Block), Invalid> {
    let mut call = object(call, at)?;
    let id_at = at.key("id");
    let id = call_id(string(require(&mut call, "id", at)?, &id_at)?, &id_at)?;
    if let Some(kind) = take(&mut call, "type")
        && kind != "function"
    {
        return Err(at.key("type").unsupported("must be 'function': other kinds of calls are not supported"));
    }
    let function_at = at.key("function");
    let mut function = object(require(&mut call, "function", at)?, &function_at)?;
    let name_at = function_at.key("name");
    let name = tool_name(string(require(&mut function, "name", &function_at)?, &name_at)?, &name_at)?;
    let arguments_at = function_at.key("arguments");
    let arguments = string(require(&mut function, "arguments", &function_at)?, &arguments_at)?;
    let input = if arguments.trim().is_empty() {
        // What some servers send for a call without arguments.
        Value::Object(Map::new())
    } else {
        serde_json::from_str(&arguments)
            .ok()
            .filter(Value::is_object)
            .ok_or_else(|| arguments_at.invalid("must be a JSON object as text"))?
    };
    Ok((id.clone(), Block::ToolUse { id, name, input }))
}

fn block(part: Part) -> Block {
    match part {
        Part::Text(text) => Block::Text(text),
        Part::Image(image) => Block::Image(image),
    }
}

fn text(part: Part) -> Option<String> {
    match part {
        Part::Text(text) => Some(text),
        Part::Image(_) => None,
    }
}

#[cfg(test)]
mod tests;
