//! The client's tools, as the CLI knows them.
//!
//! The provider gets the client's own definitions, word by word, as a part of the request's body. The CLI for its part
//! is told of a *shell* for each: a tool of the same name that takes any arguments, on a server of ours that it reaches
//! through its own pipes. So the CLI delivers the model's calls to us and waits for the results, with the conversation
//! in its memory, while the client does the work.
//!
//! What the CLI would change on the way (see [`is_exact`]) does not go this way: the conversation is then replayed in
//! another process, where results are plain history.

use serde::Deserialize;
use serde_json::{Value, json};

use super::input;
use crate::conversation::{Block, ImageSource, Tool, ToolResultContent, Turn};

/// The name of our server; `--allowedTools` names it too.
pub(super) const SERVER: &str = "x";

/// Characters of a result above which the CLI keeps the result to itself. More than this it does not let us ask for.
const MOST_RESULT_CHARS: usize = 500_000;

/// Bytes of a result, as JSON, that stay below that however they are counted.
const MOST_RESULT_BYTES: usize = 480_000;

/// Bytes of a failed call's text that the CLI passes on whole.
const MOST_ERROR_BYTES: usize = 9_000;

/// The tools that a process knows.
#[derive(Debug, Default)]
pub(super) struct Shells {
    names: Vec<String>,
    /// Whether the process knows our server.
    is_registered: bool,
    /// Whether it has asked for the list of tools. Before that no call can be delivered.
    is_listed: bool,
    /// Changes so far: each needs a server with a name of its own, see [`Shells::refresh`].
    changes: u32,
    /// Servers that have to be asked for their tools before the conversation may go on.
    awaited: Vec<String>,
}

/// A call that the CLI has delivered and that waits for its result.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OpenCall {
    /// The id that the provider knows it by.
    pub tool_use: String,
    /// The control request that the answer belongs to, and the message in it.
    request: String,
    rpc: Value,
}

/// A message of the CLI to a server of ours.
#[derive(Debug, PartialEq, Deserialize)]
pub(super) struct ServerMessage {
    /// The control request that carries it.
    #[serde(skip)]
    request_id: String,
    #[serde(rename = "server_name", default)]
    server: String,
    message: Rpc,
}

#[derive(Debug, PartialEq, Deserialize)]
struct Rpc {
    #[serde(default)]
    id: Value,
    #[serde(default)]
    method: String,
    #[serde(default)]
    params: Value,
}

impl ServerMessage {
    /// The same message, in the control request of this id.
    pub(super) fn carried_by(self, request_id: String) -> Self {
        Self { request_id, ..self }
    }
}

/// What to do about a message.
#[derive(Debug)]
pub(super) enum Response {
    /// Write these lines.
    Write(Vec<u8>),
    /// A call: the answer comes from the client.
    Call(OpenCall),
}

impl Shells {
    /// The shells for a process that has not been told of any tool yet; `None` in the list of servers where there is none.
    pub(super) fn new(tools: &[Tool]) -> Self {
        let names: Vec<String> = tools.iter().map(|tool| tool.name.clone()).collect();
        let is_registered = !names.is_empty();
        Self { names, is_registered, ..Self::default() }
    }

    /// Whether the process knows our server.
    pub(super) fn is_registered(&self) -> bool {
        self.is_registered
    }

    /// Whether a call of `name` will be delivered to us.
    pub(super) fn deliver(&self, name: &str) -> bool {
        self.is_registered && self.is_listed && self.names.iter().any(|known| known == name)
    }

    /// Whether every server that had to has been asked for its tools.
    pub(super) fn is_settled(&self) -> bool {
        self.awaited.is_empty()
    }

    /// Makes shells for those of `tools` that have none. If there are such, appends the request that makes the CLI ask
    /// for the list again, and the conversation may go on when [`Self::is_settled`]. Whether it did.
    ///
    /// A CLI does not look at a server again that it knows. When the set of servers changes, it looks at all of them: so
    /// an empty server with a new name comes along.
    pub(super) fn refresh(&mut self, tools: &[Tool], lines: &mut Vec<u8>) -> bool {
        let known = self.names.len();
        for tool in tools {
            if !self.names.contains(&tool.name) {
                self.names.push(tool.name.clone());
            }
        }
        if self.names.len() == known {
            return false;
        }
        self.awaited = vec![SERVER.to_owned()];
        if self.is_registered {
            self.changes += 1;
            self.awaited.push(format!("{SERVER}{}", self.changes));
        }
        self.is_registered = true;
        let servers: serde_json::Map<String, Value> =
            self.awaited.iter().map(|name| (name.clone(), json!({ "type": "sdk", "name": name }))).collect();
        input::control(lines, input::SERVERS, &json!({ "subtype": "mcp_set_servers", "servers": servers }));
        true
    }

    /// Answers a message of the CLI.
    pub(super) fn respond(&mut self, message: ServerMessage) -> Response {
        let ServerMessage { request_id, server, message: Rpc { id, method, params } } = message;
        let result = match method.as_str() {
            "tools/call" => {
                // The id is the only link between a call and what the client was told of it.
                let known = params["_meta"]["claudecode/toolUseId"].as_str();
                if let Some(known) = known {
                    return Response::Call(OpenCall { tool_use: known.to_owned(), request: request_id, rpc: id });
                }
                let text = "the call has no id";
                json!({ "content": [{ "type": "text", "text": text }], "isError": true })
            }
            "tools/list" => {
                self.is_listed |= server == SERVER;
                self.awaited.retain(|awaited| *awaited != server);
                let tools: Vec<Value> =
                    if server == SERVER { self.names.iter().map(|name| shell(name)).collect() } else { Vec::new() };
                json!({ "tools": tools })
            }
            "initialize" => json!({
                "protocolVersion": params.get("protocolVersion").cloned().unwrap_or_else(|| json!("2025-06-18")),
                "capabilities": { "tools": {} },
                "serverInfo": { "name": server, "version": env!("CARGO_PKG_VERSION") },
            }),
            _ => json!({}),
        };
        Response::Write(respond(&request_id, &id, &result))
    }
}

/// A tool that takes whatever the model writes. `readOnlyHint` has parallel calls delivered at once.
fn shell(name: &str) -> Value {
    json!({
        "name": name,
        "description": name,
        "inputSchema": { "type": "object" },
        "annotations": { "readOnlyHint": true },
        "_meta": { "anthropic/alwaysLoad": true, "anthropic/maxResultSizeChars": MOST_RESULT_CHARS },
    })
}

fn respond(request_id: &str, rpc_id: &Value, result: &Value) -> Vec<u8> {
    // A notification has no id, but its answer must have one.
    let id = if rpc_id.is_null() { &json!(0) } else { rpc_id };
    let mut line = Vec::new();
    input::push(
        &mut line,
        &json!({
            "type": "control_response",
            "response": {
                "subtype": "success",
                "request_id": request_id,
                "response": { "mcp_response": { "jsonrpc": "2.0", "id": id, "result": result } },
            },
        }),
    );
    line
}

/// What answers the calls that a process waits for, and what the client says after the results.
#[derive(Debug)]
pub(super) struct Results<'a> {
    /// In the client's order: the call, and the line that answers it.
    pub answers: Vec<(String, Vec<u8>)>,
    /// The rest of the turn.
    pub rest: &'a [Block],
}

/// The answers to `calls` in `turn`, if they are all there, nothing else is, and the CLI will pass them on as they are.
pub(super) fn results<'a>(calls: &[OpenCall], turn: &'a Turn) -> Option<Results<'a>> {
    let (results, rest) = turn.blocks.split_at_checked(calls.len())?;
    let mut answers = Vec::with_capacity(results.len());
    for result in results {
        let Block::ToolResult { tool_use_id, content, is_error } = result else { return None };
        let call = calls.iter().find(|call| call.tool_use == *tool_use_id)?;
        if answers.iter().any(|(known, _)| known == tool_use_id) {
            return None;
        }
        let parts: Vec<Value> = content.iter().map(part).collect::<Option<_>>()?;
        let body = json!({ "content": parts, "isError": is_error });
        if !is_exact(content, *is_error, &body) {
            return None;
        }
        answers.push((tool_use_id.clone(), respond(&call.request, &call.rpc, &body)));
    }
    let is_plain = rest.iter().all(|block| matches!(block, Block::Text(_) | Block::Image(_)));
    is_plain.then_some(Results { answers, rest })
}

/// Whether the CLI passes a result on as it is. It has words of its own for results that say nothing, keeps long ones
/// to itself, shortens long errors, joins an error's parts to one text, and takes away the blanks around that.
fn is_exact(content: &[ToolResultContent], is_error: bool, body: &Value) -> bool {
    let says_something = content.iter().any(|part| match part {
        ToolResultContent::Text(text) => !text.trim().is_empty(),
        ToolResultContent::Image(_) => true,
    });
    let size = body.to_string().len();
    let is_blank = |character: char| character.is_whitespace() || character == '\u{feff}';
    let is_one_text = matches!(content, [ToolResultContent::Text(text)] if text.trim_matches(is_blank) == text);
    says_something && if is_error { is_one_text && size <= MOST_ERROR_BYTES } else { size <= MOST_RESULT_BYTES }
}

/// A piece of a result in the words of the server protocol; `None` if it has none for it.
fn part(part: &ToolResultContent) -> Option<Value> {
    match part {
        ToolResultContent::Text(text) => Some(json!({ "type": "text", "text": text })),
        ToolResultContent::Image(ImageSource::Base64 { media_type, data }) => {
            Some(json!({ "type": "image", "data": data, "mimeType": media_type }))
        }
        ToolResultContent::Image(ImageSource::Url(_)) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conversation::Role;

    fn open(id: &str) -> OpenCall {
        OpenCall { tool_use: id.to_owned(), request: format!("request of {id}"), rpc: json!(7) }
    }

    fn text(text: &str) -> ToolResultContent {
        ToolResultContent::Text(text.to_owned())
    }

    fn picture(source: ImageSource) -> ToolResultContent {
        ToolResultContent::Image(source)
    }

    fn png() -> ToolResultContent {
        picture(ImageSource::Base64 { media_type: "image/png".to_owned(), data: "aGk=".to_owned() })
    }

    fn result(id: &str, content: Vec<ToolResultContent>, is_error: bool) -> Block {
        Block::ToolResult { tool_use_id: id.to_owned(), content, is_error }
    }

    /// What the live process is answered, if it may have the result.
    fn answer(content: Vec<ToolResultContent>, is_error: bool) -> Option<Value> {
        let turn = Turn { role: Role::User, blocks: vec![result("a", content, is_error)] };
        let results = results(&[open("a")], &turn)?;
        let [(id, line)] = &results.answers[..] else { panic!("one answer: {:?}", results.answers) };
        assert_eq!(id, "a");
        let line: Value = serde_json::from_slice(line).unwrap();
        assert_eq!(line["response"]["request_id"], "request of a");
        assert_eq!(line["response"]["response"]["mcp_response"]["id"], 7);
        Some(line["response"]["response"]["mcp_response"]["result"].clone())
    }

    #[test]
    fn a_result_that_arrives_as_it_is_goes_to_the_live_process() {
        let words = json!({ "type": "text", "text": " 18 °C\n" });
        assert_eq!(answer(vec![text(" 18 °C\n")], false), Some(json!({ "content": [words], "isError": false })));
        let failure = json!({ "type": "text", "text": "it\n failed" });
        assert_eq!(answer(vec![text("it\n failed")], true), Some(json!({ "content": [failure], "isError": true })));
        let image = json!({ "type": "image", "data": "aGk=", "mimeType": "image/png" });
        assert_eq!(
            answer(vec![text(" 18 °C\n"), png()], false),
            Some(json!({ "content": [words, image], "isError": false }))
        );
        assert_eq!(answer(vec![png()], false), Some(json!({ "content": [image], "isError": false })));
    }

    #[test]
    fn what_the_cli_would_change_is_replayed() {
        let address = || picture(ImageSource::Url("https://example.com/a.png".to_owned()));
        let cases = [
            ("nothing", vec![], false),
            ("only blanks", vec![text(" \n"), text("")], false),
            ("a picture elsewhere", vec![address()], false),
            ("a picture elsewhere among others", vec![text("see"), png(), address()], false),
            ("longer than it lets through", vec![text(&"y".repeat(MOST_RESULT_BYTES))], false),
            ("many parts that are too long together", vec![text(&"y".repeat(100_000)); 5], false),
            ("an error that says nothing", vec![text("")], true),
            ("an error with a picture", vec![text("see"), png()], true),
            ("an error that is a picture", vec![png()], true),
            ("an error in two texts, which it would join", vec![text("a"), text("b")], true),
            ("an error after blanks, which it would take away", vec![text(" failed")], true),
            ("an error before a line break", vec![text("failed\n")], true),
            ("an error after a mark of the byte order", vec![text("\u{feff}failed")], true),
            ("an error that it would shorten", vec![text(&"e".repeat(MOST_ERROR_BYTES))], true),
            ("an error of 100 kB", vec![text(&"e".repeat(100_000))], true),
        ];
        for (case, content, is_error) in cases {
            assert_eq!(answer(content, is_error), None, "{case}");
        }
        // Characters that are long as JSON count as long as they are there.
        assert!(answer(vec![text(&"\u{1}".repeat(MOST_ERROR_BYTES / 6 - 100))], true).is_some());
        assert!(answer(vec![text(&"\u{1}".repeat(MOST_ERROR_BYTES / 6))], true).is_none());
        assert!(answer(vec![text(&"e".repeat(MOST_ERROR_BYTES - 100))], true).is_some());
        assert!(answer(vec![text(&"y".repeat(MOST_RESULT_BYTES - 100))], false).is_some());
    }

    #[test]
    fn the_results_are_those_of_the_calls_and_no_others() {
        let calls = [open("a"), open("b")];
        let blocks = |ids: &[&str]| ids.iter().map(|id| result(id, vec![text("x")], false)).collect::<Vec<_>>();
        let answered = |blocks: Vec<Block>| {
            let turn = Turn { role: Role::User, blocks };
            let results = results(&calls, &turn)?;
            let ids: Vec<String> = results.answers.into_iter().map(|(id, _)| id).collect();
            Some((ids.join(" "), results.rest.len()))
        };
        assert_eq!(answered(blocks(&["b", "a"])), Some(("b a".to_owned(), 0)), "in the client's order");
        let mut more = blocks(&["a", "b"]);
        more.push(Block::Text("And now?".to_owned()));
        assert_eq!(answered(more.clone()), Some(("a b".to_owned(), 1)));
        more.rotate_right(1);
        assert_eq!(answered(more), None, "words before the results");
        for ids in [&["a"][..], &["a", "a"], &["a", "c"], &["a", "b", "c"], &["a", "b", "b"]] {
            assert_eq!(answered(blocks(ids)), None, "{ids:?}");
        }
        assert_eq!(answered(vec![Block::Text("Never mind".to_owned())]), None, "none at all");
    }
}
