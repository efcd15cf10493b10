//! One case a feature: what is sent, and what must be seen.
//!
//! Every case has a mark of its own in what it sends, by which its requests are found again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::{Bench, MODEL};
use crate::backend::claude_cli::Feature;
use crate::backend::{Backend as _, Caller, Failure, FailureKind};
use crate::conversation::{
    Block, Event, Model, Options, Request, Role, StopReason, Tool, ToolResultContent, Turn, Window,
};
use crate::standin::{Action, HangPoint, Outcome, Rule, ToolCall};

/// How long the CLI is watched for a request that it must not make. It came within 25 ms where it came at all.
const AFTERMATH: Duration = Duration::from_millis(500);

/// Longer than what the CLI's own ways of carrying a tool let through.
const DESCRIPTION_CHARS: usize = 6_000;

/// What was wrong, for people.
type Checked = Result<(), String>;

pub(super) async fn run(feature: Feature, bench: &Bench) -> Checked {
    match feature {
        Feature::LateSystemPrompt => late_system_prompt(bench).await,
        Feature::HistoryReplay => history_replay(bench).await,
        Feature::ClientTools => client_tools(bench).await,
        Feature::HybridTools => hybrid_tools(bench).await,
        Feature::Limits => limits(bench).await,
        Feature::MaxTokens => max_tokens(bench).await,
        Feature::Cancel => cancel(bench).await,
    }
}

/// What came of a request.
#[derive(Debug, Default)]
struct Answer {
    text: String,
    /// Id, name and arguments of each.
    calls: Vec<(String, String, String)>,
    stop: Option<StopReason>,
    failure: Option<Failure>,
}

async fn ask(bench: &Bench, request: &Request) -> Answer {
    let mut answer = Answer::default();
    let mut events = bench.backend.run(request, &Caller::anonymous());
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Text(text)) => answer.text.push_str(&text),
            Ok(Event::ToolUse { id, name, .. }) => answer.calls.push((id, name, String::new())),
            Ok(Event::ToolInput { index, json }) => {
                if let Some((.., input)) = answer.calls.get_mut(index) {
                    input.push_str(&json);
                }
            }
            Ok(Event::Finished { stop, .. }) => answer.stop = Some(stop),
            Ok(_) => {}
            Err(failure) => answer.failure = Some(failure),
        }
    }
    answer
}

/// A whole answer, or what kept it from being one.
fn whole(answer: Answer) -> Result<Answer, String> {
    match (&answer.failure, answer.stop) {
        (Some(failure), _) => Err(format!("the request failed: {failure}")),
        (None, None) => Err("the answer has no end".to_owned()),
        (None, Some(_)) => Ok(answer),
    }
}

fn question(texts: &[&str]) -> Request {
    let turn = |(position, text): (usize, &&str)| Turn {
        role: if position % 2 == 0 { Role::User } else { Role::Assistant },
        blocks: vec![Block::Text((*text).to_owned())],
    };
    Request {
        model: Arc::new(Model::named(MODEL)),
        system: Vec::new(),
        turns: texts.iter().enumerate().map(turn).collect(),
        tools: Vec::new(),
        tool_choice: None,
        options: Options::default(),
    }
}

/// The one request that has `mark`.
fn only(bench: &Bench, mark: &str) -> Result<Value, String> {
    let mut requests = bench.asked_with(mark);
    match (requests.pop(), requests.len()) {
        (Some(request), 0) => Ok(request.body),
        (None, _) => Err("no request came".to_owned()),
        (Some(_), others) => Err(format!("{} requests came instead of one", others + 1)),
    }
}

/// The texts of a message or of a system prompt.
fn texts(content: &Value) -> Vec<&str> {
    match content {
        Value::String(text) => vec![text],
        Value::Array(blocks) => blocks.iter().filter_map(|block| block["text"].as_str()).collect(),
        _ => Vec::new(),
    }
}

async fn late_system_prompt(bench: &Bench) -> Checked {
    const SYSTEM: &str = "You are the self-test called late-system-prompt.";
    if !Bench::until(|| bench.claude.counts().spare > 0).await {
        return Err("no process became ready".to_owned());
    }
    let mut request = question(&["mark-late-system-prompt"]);
    request.system = vec![SYSTEM.to_owned()];
    whole(ask(bench, &request).await)?;
    let body = only(bench, "mark-late-system-prompt")?;
    if !texts(&body["system"]).contains(&SYSTEM) {
        return Err("the request came without the system prompt".to_owned());
    }
    Ok(())
}

async fn history_replay(bench: &Bench) -> Checked {
    let sent = ["mark-history-1 /clear", "mark-history-2", "mark-history-3", "mark-history-4", "mark-history-5"];
    whole(ask(bench, &question(&sent)).await)?;
    let body = only(bench, "mark-history-1")?;
    let mut came: Vec<(&str, &str)> = Vec::new();
    for message in body["messages"].as_array().into_iter().flatten() {
        let role = message["role"].as_str().unwrap_or_default();
        came.extend(
            texts(&message["content"]).into_iter().filter(|text| text.starts_with("mark-")).map(|text| (role, text)),
        );
    }
    let expected: Vec<(&str, &str)> = ["user", "assistant"].into_iter().cycle().zip(sent).collect();
    if came == expected { Ok(()) } else { Err("the turns came otherwise than they were sent".to_owned()) }
}

async fn client_tools(bench: &Bench) -> Checked {
    let input = json!({ "city": "Zürich" });
    let definition = json!({
        "name": "look_up",
        "description": "d".repeat(DESCRIPTION_CHARS),
        "input_schema": {
            "type": "object",
            "anyOf": [{ "required": ["city"] }, { "required": ["place"] }],
            "properties": { "city": { "type": "string" }, "place": { "type": "string" } },
        },
    });
    let call = ToolCall { name: "look_up".to_owned(), input: input.clone() };
    let rule = Rule::once(Action::ToolUse { calls: vec![call], text: None });
    bench.standin.script(rule.contains("mark-client-tools"));
    let mut request = question(&["mark-client-tools"]);
    request.tools = vec![Tool { name: "look_up".to_owned(), definition: definition.clone() }];
    let answer = whole(ask(bench, &request).await)?;
    let body = only(bench, "mark-client-tools")?;
    if body["tools"] != json!([definition]) {
        return Err("the tool came otherwise than it was sent".to_owned());
    }
    match answer.calls.as_slice() {
        [(_, name, arguments)]
            if name == "look_up" && serde_json::from_str::<Value>(arguments).is_ok_and(|it| it == input) =>
        {
            Ok(())
        }
        _ => Err("the call came otherwise than it was made".to_owned()),
    }
}

async fn hybrid_tools(bench: &Bench) -> Checked {
    let call = ToolCall { name: "look_up".to_owned(), input: json!({ "city": "Bern" }) };
    let rule = Rule::once(Action::ToolUse { calls: vec![call], text: None });
    bench.standin.script(rule.contains("mark-hybrid-tools"));
    let definition = json!({ "name": "look_up", "description": "looks up", "input_schema": { "type": "object" } });
    let mut request = question(&["mark-hybrid-tools"]);
    request.tools = vec![Tool { name: "look_up".to_owned(), definition }];
    let answer = whole(ask(bench, &request).await)?;
    let [(id, name, arguments)] = answer.calls.as_slice() else { return Err("the call did not come".to_owned()) };
    let input = serde_json::from_str(arguments).unwrap_or_default();
    let said = Block::ToolUse { id: id.clone(), name: name.clone(), input };
    let content = vec![ToolResultContent::Text("mark-hybrid-result".to_owned())];
    let result = Block::ToolResult { tool_use_id: id.clone(), content, is_error: false };
    request.turns.push(Turn { role: Role::Assistant, blocks: vec![said] });
    request.turns.push(Turn { role: Role::User, blocks: vec![result] });
    if !Bench::until(|| bench.claude.counts().parked > 0).await {
        return Err("the process did not wait for the result".to_owned());
    }
    whole(ask(bench, &request).await)?;
    let body = only(bench, "mark-hybrid-result")?;
    let messages = body["messages"].as_array().map_or(&[] as &[Value], Vec::as_slice);
    let blocks = messages.iter().filter_map(|message| message["content"].as_array()).flatten();
    let mut results = blocks.filter(|block| block["type"] == "tool_result");
    match (results.next(), results.next()) {
        (Some(result), None) if result["tool_use_id"] == id.as_str() && result["is_error"] != true => Ok(()),
        _ => Err("the result came otherwise than it was sent".to_owned()),
    }
}

async fn limits(bench: &Bench) -> Checked {
    const RESETS_IN: i64 = 3_600;
    let limit = Action::Limit {
        window: "five_hour".to_owned(),
        resets_at: None,
        resets_in_s: Some(RESETS_IN),
        utilization: None,
    };
    bench.standin.script(Rule::once(limit).contains("mark-limits"));
    let answer = ask(bench, &question(&["mark-limits"])).await;
    only(bench, "mark-limits")?;
    match answer.failure.map(|failure| failure.kind) {
        Some(FailureKind::Limited(report)) if report.window == Some(Window::FiveHour) && report.resets_at.is_some() => {
            Ok(())
        }
        Some(FailureKind::Limited(_)) => Err("the limit is reported without its window or its end".to_owned()),
        Some(_) => Err("the limit is reported as something else".to_owned()),
        None => Err("the limit is not reported".to_owned()),
    }
}

async fn max_tokens(bench: &Bench) -> Checked {
    bench.standin.script(Rule::once(Action::MaxTokens { after_deltas: 3 }).contains("mark-max-tokens"));
    let answer = whole(ask(bench, &question(&["mark-max-tokens"])).await)?;
    sleep(AFTERMATH).await;
    only(bench, "mark-max-tokens")?;
    match answer.stop {
        Some(StopReason::MaxTokens) => Ok(()),
        _ => Err("the end by `max_tokens` is reported as another".to_owned()),
    }
}

async fn cancel(bench: &Bench) -> Checked {
    bench.standin.script(Rule::once(Action::Hang { before: HangPoint::Mid }).contains("mark-cancel"));
    let mut events = bench.backend.run(&question(&["mark-cancel"]), &Caller::anonymous());
    loop {
        match events.next().await {
            Some(Ok(Event::Text(_))) => break,
            Some(Ok(_)) => {}
            Some(Err(failure)) => return Err(format!("the request failed: {failure}")),
            None => return Err("the answer ended before it was cancelled".to_owned()),
        }
    }
    drop(events);
    let is_cut = || bench.asked_with("mark-cancel").iter().all(|request| request.outcome == Outcome::ClientGone);
    if Bench::until(is_cut).await { Ok(()) } else { Err("the answer went on at the provider".to_owned()) }
}
