//! `POST /v1/chat/completions`: the body as a [`conversation::Request`](crate::conversation::Request).

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};

use super::content::{Part, Speaker, parts};
use super::{messages, parameters, response_format, tools};
use crate::api::Caller;
use crate::api::field::{
    Invalid, Path, array, boolean, document, excerpt, number, object, positive, require, string, take, wrong_type,
};
use crate::api::openai::error::Error;
use crate::api::openai::models;
use crate::conversation::{Catalog, Effort, Model, Options, Request, Thinking, ToolChoice};
use crate::gateway::{ModelNames, Priority, SessionHint};

/// A parsed chat request.
#[derive(Debug)]
pub(super) struct ChatRequest {
    /// What the model is asked.
    pub(super) request: Request,
    /// The model as the client named it.
    pub(super) model: String,
    /// Whether the answer shall come in pieces.
    pub(super) stream: bool,
    /// Whether the stream shall end with the usage.
    pub(super) include_usage: bool,
    /// Whether the client asked for thinking, and so may see it.
    pub(super) show_thinking: bool,
    /// What the client said of its conversation.
    pub(super) session: SessionHint,
    /// How much of the owners' reserve it may use.
    pub(super) priority: Priority,
}

/// The most texts in `stop`; OpenAI takes 4, the models more.
const MOST_STOPS: usize = 16;
/// The longest session id, in characters.
const LONGEST_SESSION: usize = 256;

/// The model that a request names; `None` if that cannot be told.
pub(super) fn model_of(body: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    struct Named {
        model: String,
    }
    serde_json::from_slice::<Named>(body).ok().map(|named| named.model)
}

/// Reads a request. The first mistake is told, with its path. Where the model's name begins with `backend` and a slash, it
/// is the model of that name there.
pub(super) fn parse(
    body: &[u8],
    catalog: &Catalog,
    caller: &Caller,
    names: ModelNames,
    backend: Option<&str>,
) -> Result<ChatRequest, Error> {
    let root = Path::Root;
    let mut request = document(body)?;
    let model_at = root.key("model");
    let name = string(require(&mut request, "model", &root)?, &model_at)?;
    let own = backend.and_then(|backend| name.strip_prefix(backend)?.strip_prefix('/')).unwrap_or(&name);
    let model = match catalog.resolve(own) {
        Some(model) => Arc::clone(model),
        None if names == ModelNames::Any => Arc::new(Model::named(own)),
        None => return Err(models::not_found(catalog, &name)),
    };
    let model = &model;
    if !models::allows(caller, catalog, own, model) && !models::allows(caller, catalog, &name, model) {
        return Err(models::not_allowed(&name));
    }
    parameters::screen(&mut request)?;
    let session = session(&mut request, caller.session_header.as_deref())?;
    let messages_at = root.key("messages");
    let messages::Conversation { mut system, turns, .. } = messages::conversation(
        require(&mut request, "messages", &root)?,
        matches!(session, SessionHint::Session(_)),
        &messages_at,
    )?;
    if let Some(prompt) = take(&mut request, "system") {
        let texts = parts(prompt, Speaker::System, &root.key("system"))?;
        system.splice(
            0..0,
            texts.into_iter().filter_map(|part| if let Part::Text(text) = part { Some(text) } else { None }),
        );
    }
    let (tools, tool_choice) = tools::tools(&mut request)?;
    let mut options = options(&mut request, tool_choice.as_ref(), model)?;
    if let Some(format) = take(&mut request, "response_format") {
        let format = response_format::read(format, &root.key("response_format"))?;
        (options.output_schema, options.output_check) = (format.schema, format.check);
        system.extend(format.instruction);
    }
    let (stream, include_usage) = streaming(&mut request)?;
    let priority = priority(&mut request)?;
    Ok(ChatRequest {
        show_thinking: options.effort.is_some(),
        request: Request { model: Arc::clone(model), system, turns, tools, tool_choice, options },
        model: name,
        stream,
        include_usage,
        session,
        priority,
    })
}

fn options(
    request: &mut Map<String, Value>,
    tool_choice: Option<&ToolChoice>,
    model: &Model,
) -> Result<Options, Invalid> {
    let root = Path::Root;
    let effort =
        take(request, "reasoning_effort").map_or(Ok(None), |word| effort(word, &root.key("reasoning_effort")))?;
    // With thinking the provider takes its own sampling and no forced tool. As at OpenAI's reasoning models, that is said
    // by name, before a process is bothered.
    let always = model.thinking == Thinking::AlwaysOn;
    let thinks = effort.is_some() || always;
    let why = if always {
        format!("because the model '{}' always thinks", model.id)
    } else {
        "together with 'reasoning_effort'".to_owned()
    };
    if thinks && matches!(tool_choice, Some(ToolChoice::Any { .. } | ToolChoice::Named { .. })) {
        return Err(root.key("tool_choice").unsupported(format_args!("cannot force a call {why}")));
    }

    let temperature_at = root.key("temperature");
    let temperature =
        take(request, "temperature").map(|value| number(&value, 0.0, 2.0, &temperature_at)).transpose()?;
    let temperature = match temperature {
        // With thinking the provider takes its default, 1, and nothing else.
        #[expect(clippy::float_cmp, reason = "exactly the default, as the client wrote it")]
        Some(value) if thinks && value != 1.0 => {
            return Err(temperature_at.unsupported(format_args!("can only be 1, the default, {why}")));
        }
        Some(_) if thinks => None,
        // OpenAI's scale goes to 2, the models' to 1. Up to there the two mean the same.
        other => other.map(|value| value.min(1.0)),
    };

    let top_p_at = root.key("top_p");
    let top_p = take(request, "top_p").map(|value| number(&value, 0.0, 1.0, &top_p_at)).transpose()?;
    if thinks && top_p.is_some_and(|value| value < 0.95) {
        return Err(top_p_at.unsupported(format_args!("cannot be below 0.95 {why}")));
    }

    Ok(Options {
        max_tokens: max_tokens(request)?,
        temperature,
        top_p,
        stop: take(request, "stop").map_or(Ok(Vec::new()), |stop| stops(stop, &root.key("stop")))?,
        effort,
        ..Options::default()
    })
}

fn effort(word: Value, at: &Path<'_>) -> Result<Option<Effort>, Invalid> {
    match string(word, at)?.as_str() {
        "none" => Ok(None),
        "minimal" | "low" => Ok(Some(Effort::Low)),
        "medium" => Ok(Some(Effort::Medium)),
        "high" => Ok(Some(Effort::High)),
        "xhigh" | "max" => Ok(Some(Effort::XHigh)),
        other => Err(at.invalid(format_args!(
            "must be 'none', 'minimal', 'low', 'medium', 'high', 'xhigh' or 'max', not '{}'",
            excerpt(other)
        ))),
    }
}

fn max_tokens(request: &mut Map<String, Value>) -> Result<Option<u32>, Invalid> {
    let root = Path::Root;
    let mut read = |name| take(request, name).map(|value| positive(&value, &root.key(name))).transpose();
    let (old, new) = (read("max_tokens")?, read("max_completion_tokens")?);
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(root
            .key("max_tokens")
            .invalid(format_args!("is {old}, but 'max_completion_tokens' is {new}: they mean the same; send one"))),
        _ => Ok(new.or(old)),
    }
}

fn stops(stop: Value, at: &Path<'_>) -> Result<Vec<String>, Invalid> {
    let check = |text: String, at: &Path<'_>| {
        // The provider's rule; told here before a process is bothered.
        if text.trim().is_empty() { Err(at.unsupported("must hold something else than white space")) } else { Ok(text) }
    };
    match stop {
        Value::String(text) => Ok(vec![check(text, at)?]),
        Value::Array(items) if items.len() > MOST_STOPS => {
            Err(at.invalid(format_args!("may hold {MOST_STOPS} texts at most, not {}", items.len())))
        }
        Value::Array(_) => {
            let items = array(stop, at)?.into_iter().enumerate();
            items
                .map(|(index, item)| {
                    let at = at.index(index);
                    check(string(item, &at)?, &at)
                })
                .collect()
        }
        other => Err(wrong_type(&other, "a string or an array of strings", at)),
    }
}

/// Whether to stream, and whether to end the stream with the usage.
fn streaming(request: &mut Map<String, Value>) -> Result<(bool, bool), Invalid> {
    let root = Path::Root;
    let stream = take(request, "stream").map_or(Ok(false), |flag| boolean(&flag, &root.key("stream")))?;
    let at = root.key("stream_options");
    let Some(options) = take(request, "stream_options") else { return Ok((stream, false)) };
    let mut options = object(options, &at)?;
    if !stream {
        return Err(at.invalid("is only allowed with 'stream': true"));
    }
    let usage = take(&mut options, "include_usage");
    let usage = usage.map_or(Ok(false), |flag| boolean(&flag, &at.key("include_usage")))?;
    Ok((stream, usage))
}

/// The conversation's name: `session_id`, else `X-Session-Id`, else `prompt_cache_key`.
fn session(request: &mut Map<String, Value>, header: Option<&[u8]>) -> Result<SessionHint, Invalid> {
    let root = Path::Root;
    let mut read = |name| {
        let at = root.key(name);
        take(request, name).map(|value| session_id(string(value, &at)?, &at)).transpose()
    };
    let (body, cache_key) = (read("session_id")?, read("prompt_cache_key")?);
    let header_at = root.key("X-Session-Id");
    let header = header
        .map(|bytes| {
            let text = str::from_utf8(bytes).map_err(|_| header_at.invalid("must be UTF-8"))?;
            session_id(text.trim().to_owned(), &header_at)
        })
        .transpose()?;
    Ok(match (body, header, cache_key) {
        (Some(id), ..) => SessionHint::Session(id),
        (None, Some(id), _) => SessionHint::Header(id),
        (None, None, Some(key)) => SessionHint::CacheKey(key),
        (None, None, None) => SessionHint::None,
    })
}

fn session_id(id: String, at: &Path<'_>) -> Result<Arc<str>, Invalid> {
    if id.is_empty() || id.chars().count() > LONGEST_SESSION {
        return Err(at.invalid(format_args!("must have 1 to {LONGEST_SESSION} characters")));
    }
    if id.chars().any(char::is_control) {
        return Err(at.invalid("must not hold control characters"));
    }
    Ok(id.into())
}

fn priority(request: &mut Map<String, Value>) -> Result<Priority, Invalid> {
    let at = Path::Root.key("priority");
    let Some(word) = take(request, "priority") else { return Ok(Priority::default()) };
    match string(word, &at)?.as_str() {
        "low" => Ok(Priority::Low),
        "normal" => Ok(Priority::Normal),
        "high" => Ok(Priority::High),
        other => Err(at.invalid(format_args!("must be 'low', 'normal' or 'high', not '{}'", excerpt(other)))),
    }
}

#[cfg(test)]
mod tests;
