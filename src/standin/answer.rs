//! The model: what is answered to a request.

use serde_json::{Value, json};

use super::ask::Ask;
use super::schema;
use super::script::{Action, ToolCall};

/// So much of a long question is repeated in the answer.
const QUOTED: usize = 400;

/// An answer before it is cut to size and put on the wire.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Answer {
    pub(super) thinking: Option<String>,
    pub(super) text: String,
    pub(super) calls: Vec<ToolCall>,
    pub(super) stop: Stop,
}

/// Why an answer ends, in the API's words.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Stop {
    #[default]
    EndTurn,
    MaxTokens,
    AtText(String),
    ToolUse,
    Refusal,
    Pause,
    ContextWindow,
}

impl Stop {
    pub(super) const fn reason(&self) -> &'static str {
        match self {
            Self::EndTurn => "end_turn",
            Self::MaxTokens => "max_tokens",
            Self::AtText(_) => "stop_sequence",
            Self::ToolUse => "tool_use",
            Self::Refusal => "refusal",
            Self::Pause => "pause_turn",
            Self::ContextWindow => "model_context_window_exceeded",
        }
    }

    pub(super) fn sequence(&self) -> Option<&str> {
        match self {
            Self::AtText(text) => Some(text),
            _ => None,
        }
    }
}

impl Answer {
    /// What the model says by itself.
    pub(super) fn to(ask: &Ask<'_>) -> Self {
        let thinking = ask.thinking.then(|| "Let me think about this.".to_owned());
        let calls = calls(ask);
        let answer = if calls.is_empty() {
            let text = ask.schema.map_or_else(|| reply(ask), |schema| schema::sample(schema).to_string());
            Self { thinking, text, ..Self::default() }
        } else {
            Self { thinking, calls, stop: Stop::ToolUse, ..Self::default() }
        };
        answer.cut_to(ask)
    }

    /// What the script has it say; `None` where the action is not about what is said.
    pub(super) fn scripted(action: &Action, ask: &Ask<'_>) -> Option<Self> {
        let own = Self::to(ask);
        let or_own = |text: &Option<String>| text.clone().unwrap_or_else(|| reply(ask));
        let plain = |text: String| Self { text, ..Self::default() };
        Some(match action {
            Action::Text { text: Some(text), .. } => plain(text.clone()).cut_to(ask),
            Action::Text { count: Some(count), .. } => plain(words(*count)).cut_to(ask),
            Action::Text { .. } => own,
            Action::ToolUse { calls, text } => {
                let text = text.clone().unwrap_or_default();
                Self { text, calls: calls.clone(), stop: Stop::ToolUse, ..Self::default() }
            }
            Action::Thinking { thinking, text } => {
                Self { thinking: Some(thinking.clone()), text: or_own(text), ..Self::default() }.cut_to(ask)
            }
            Action::MaxTokens { after_deltas } => {
                Self { text: words(*after_deltas), stop: Stop::MaxTokens, ..Self::default() }
            }
            Action::ContextWindow => Self { stop: Stop::ContextWindow, ..own },
            Action::StopSequence { sequence } => {
                let sequence = sequence.as_deref().or_else(|| ask.stop_sequences.first().copied()).unwrap_or_default();
                Self { stop: Stop::AtText(sequence.to_owned()), ..own }
            }
            Action::Refusal { text } => {
                Self { text: text.clone().unwrap_or_default(), stop: Stop::Refusal, ..Self::default() }
            }
            Action::Pause => Self { stop: Stop::Pause, ..own },
            Action::ErrorMidStream { after_deltas, .. } => plain(words(after_deltas + 4)),
            Action::Hang { .. } => plain(words(20)),
            Action::Status { .. }
            | Action::Limit { .. }
            | Action::Throttle { .. }
            | Action::Overloaded
            | Action::ResetBeforeHeaders => return None,
        })
    }

    /// Output tokens, thinking included.
    pub(super) fn tokens(&self) -> usize {
        let arguments = |call: &ToolCall| call.input.to_string().len().div_ceil(4).max(1);
        self.thinking_tokens() + pieces(&self.text).count() + self.calls.iter().map(arguments).sum::<usize>()
    }

    pub(super) fn thinking_tokens(&self) -> usize {
        self.thinking.as_deref().map_or(0, |text| pieces(text).count())
    }

    /// Ends the answer where the request's stop texts and its `max_tokens` have it end.
    fn cut_to(mut self, ask: &Ask<'_>) -> Self {
        let first = ask.stop_sequences.iter().filter(|text| !text.is_empty());
        let first = first.filter_map(|&text| Some((self.text.find(text)?, text))).min_by_key(|(at, _)| *at);
        if let Some((at, text)) = first {
            self.text.truncate(at);
            self.calls.clear();
            self.stop = Stop::AtText(text.to_owned());
        }
        let Some(most) = ask.max_tokens.filter(|most| *most < self.tokens()) else { return self };
        // Thinking may take half, so that something is said even when little is allowed.
        let thought = self.thinking.map(|text| pieces(&text).take(most / 2).collect::<String>());
        self.thinking = thought.filter(|text| !text.is_empty());
        let left = most - self.thinking_tokens();
        self.text = pieces(&self.text).take(left).collect();
        self.calls.clear();
        self.stop = Stop::MaxTokens;
        self
    }
}

/// The pieces in which a text is streamed, each one token: words with the white space after them.
pub(super) fn pieces(text: &str) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let word = rest.find(|c: char| !c.is_whitespace())?;
        let end = word + rest[word..].find(char::is_whitespace).unwrap_or(rest.len() - word);
        let next = rest[end..].find(|c: char| !c.is_whitespace()).map_or(rest.len(), |gap| end + gap);
        let (piece, tail) = rest.split_at(next);
        rest = tail;
        Some(piece)
    })
}

fn words(count: usize) -> String {
    let words: Vec<String> = (0..count).map(|index| format!("tok{index} ")).collect();
    words.concat()
}

fn reply(ask: &Ask<'_>) -> String {
    let heard = match (ask.results.as_slice(), ask.last_text.as_str()) {
        ([], "") => "You said nothing.".to_owned(),
        ([], text) => format!("You said: {}.", quote(text)),
        (results, "") => format!("The tool said: {}.", quote(&results.join("; "))),
        (results, text) => format!("The tool said: {}. You said: {}.", quote(&results.join("; ")), quote(text)),
    };
    let images = match ask.images {
        0 => String::new(),
        1 => ", 1 image".to_owned(),
        count => format!(", {count} images"),
    };
    format!("{heard} (turn {}{images})", ask.turn)
}

fn quote(text: &str) -> String {
    let mut quoted: String = text.chars().take(QUOTED).collect();
    if quoted.len() < text.len() {
        quoted.push('…');
    }
    quoted
}

/// The calls the request demands: by its choice, or by saying `call <tool>`.
fn calls(ask: &Ask<'_>) -> Vec<ToolCall> {
    let choice = ask.tool_choice.and_then(|choice| choice["type"].as_str());
    let call = |tool: &Value, arguments: Option<Value>| ToolCall {
        name: tool["name"].as_str().unwrap_or_default().to_owned(),
        input: arguments.unwrap_or_else(|| schema::sample(&tool["input_schema"])),
    };
    if choice == Some("none") {
        return Vec::new();
    }
    let mut asked: Vec<ToolCall> = Vec::new();
    if ask.results.is_empty() {
        for (at, _) in ask.last_text.to_ascii_lowercase().match_indices("call ") {
            let rest = ask.last_text.get(at + "call ".len()..).unwrap_or_default();
            let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && !"_-".contains(c)).unwrap_or(rest.len());
            let (name, after) = rest.split_at(end);
            if let Some(tool) = ask.tool(name) {
                let arguments = serde_json::Deserializer::from_str(after).into_iter::<Value>().next();
                asked.push(call(tool, arguments.and_then(Result::ok).filter(Value::is_object)));
            }
        }
    }
    let single = ask.tool_choice.is_some_and(|choice| choice["disable_parallel_tool_use"] == json!(true));
    let forced = match choice {
        Some("tool") => ask.tool_choice.and_then(|choice| ask.tool(choice["name"].as_str()?)),
        Some("any") if asked.is_empty() => ask.tools.first(),
        _ => None,
    };
    if let Some(tool) = forced {
        asked.retain(|call| tool["name"] == call.name.as_str());
        if asked.is_empty() {
            asked.push(call(tool, None));
        }
    }
    if single {
        asked.truncate(1);
    }
    asked
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &Value) -> Answer {
        Answer::to(&Ask::of(body))
    }

    fn asking(text: &str, more: &Value) -> Value {
        let mut body = more.clone();
        body["model"] = json!("claude-sonnet-5");
        body["messages"] = json!([{"role": "user", "content": text}]);
        body["tools"] = json!([
            {"name": "f", "input_schema": {"type": "object", "properties": {"n": {"type": "integer"}}}},
            {"name": "g", "input_schema": {"type": "object"}},
        ]);
        body
    }

    #[test]
    fn pieces_are_words_and_lose_nothing() {
        assert_eq!(pieces("one  two\nthree").collect::<Vec<_>>(), ["one  ", "two\n", "three"]);
        assert_eq!(pieces("  a b ").collect::<String>(), "  a b ");
        assert_eq!(pieces("  ").count(), 0);
    }

    #[test]
    fn it_repeats_what_it_heard() {
        assert_eq!(answer(&asking("hello", &json!({}))).text, "You said: hello. (turn 1)");
    }

    #[test]
    fn it_ends_where_the_request_says() {
        let short = answer(&asking("a b c d e", &json!({"max_tokens": 3})));
        assert_eq!((short.text.as_str(), short.stop.reason()), ("You said: a ", "max_tokens"));
        let stopped = answer(&asking("a b c d e", &json!({"stop_sequences": [" d", " c"]})));
        assert_eq!((stopped.text.as_str(), stopped.stop), ("You said: a b", Stop::AtText(" c".into())));
    }

    #[test]
    fn it_calls_tools_when_told_to() {
        let names = |answer: Answer| answer.calls.into_iter().map(|call| call.name).collect::<Vec<_>>();
        assert_eq!(names(answer(&asking("hello", &json!({})))), [""; 0]);
        assert_eq!(names(answer(&asking("Call f and call g", &json!({})))), ["f", "g"]);
        assert_eq!(names(answer(&asking("hello", &json!({"tool_choice": {"type": "any"}})))), ["f"]);
        assert_eq!(names(answer(&asking("hello", &json!({"tool_choice": {"type": "tool", "name": "g"}})))), ["g"]);
        assert_eq!(names(answer(&asking("call f", &json!({"tool_choice": {"type": "none"}})))), [""; 0]);
        let one = json!({"tool_choice": {"type": "auto", "disable_parallel_tool_use": true}});
        assert_eq!(names(answer(&asking("call f, call g", &one))), ["f"]);
        assert_eq!(answer(&asking(r#"call f {"n": 7} now"#, &json!({}))).calls[0].input, json!({"n": 7}));
        assert_eq!(answer(&asking("call f", &json!({}))).calls[0].input, json!({"n": 1}));
    }

    #[test]
    fn it_answers_a_schema_with_json_that_fits() {
        let format = json!({"output_config": {"format": {"type": "json_schema",
            "schema": {"type": "object", "properties": {"ok": {"type": "boolean"}}}}}});
        assert_eq!(answer(&asking("hello", &format)).text, r#"{"ok":true}"#);
    }
}
