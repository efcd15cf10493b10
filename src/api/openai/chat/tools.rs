//! The client's tools, and which of them the model must call.

use serde_json::{Map, Value, json};

use crate::api::field::{Invalid, Path, array, boolean, excerpt, object, require, string, take, wrong_type};
use crate::conversation::{Tool, ToolChoice};

/// As many as OpenAI takes.
const MOST_TOOLS: usize = 128;

/// Reads `tools`, `tool_choice` and `parallel_tool_calls`.
pub(super) fn tools(request: &mut Map<String, Value>) -> Result<(Vec<Tool>, Option<ToolChoice>), Invalid> {
    let root = Path::Root;
    let mut tools = take(request, "tools").map_or(Ok(Vec::new()), |tools| definitions(tools, &root.key("tools")))?;
    let parallel = take(request, "parallel_tool_calls")
        .map(|flag| boolean(&flag, &root.key("parallel_tool_calls")))
        .transpose()?
        .unwrap_or(true);
    let choice = match take(request, "tool_choice") {
        Some(wish) => Some(choice(wish, &mut tools, parallel, &root.key("tool_choice"))?),
        None if !parallel && !tools.is_empty() => Some(ToolChoice::Auto { parallel }),
        None => None,
    };
    // Without tools there is nothing to choose, and the provider refuses the question.
    let choice = choice.filter(|_| !tools.is_empty());
    Ok((tools, choice))
}

fn definitions(tools: Value, at: &Path<'_>) -> Result<Vec<Tool>, Invalid> {
    let items = array(tools, at)?;
    if items.len() > MOST_TOOLS {
        return Err(at.invalid(format_args!("may hold {MOST_TOOLS} tools at most, not {}", items.len())));
    }
    let mut tools: Vec<Tool> = Vec::with_capacity(items.len());
    for (index, item) in items.into_iter().enumerate() {
        let at = at.index(index);
        let tool = definition(item, &at)?;
        if tools.iter().any(|other| other.name == tool.name) {
            let name = excerpt(&tool.name);
            return Err(at.key("function").key("name").invalid(format_args!("is '{name}', the name of another tool")));
        }
        tools.push(tool);
    }
    Ok(tools)
}

fn definition(tool: Value, at: &Path<'_>) -> Result<Tool, Invalid> {
    let mut tool = object(tool, at)?;
    let kind_at = at.key("type");
    match string(require(&mut tool, "type", at)?, &kind_at)?.as_str() {
        "function" => {}
        "custom" => return Err(kind_at.unsupported("is 'custom', which is not supported: use 'function'")),
        other => return Err(kind_at.invalid(format_args!("must be 'function', not '{}'", excerpt(other)))),
    }
    let function_at = at.key("function");
    let mut function = object(require(&mut tool, "function", at)?, &function_at)?;
    let name_at = function_at.key("name");
    let name = tool_name(string(require(&mut function, "name", &function_at)?, &name_at)?, &name_at)?;

    let mut definition = Map::new();
    definition.insert("name".into(), name.clone().into());
    if let Some(description) = take(&mut function, "description") {
        definition.insert("description".into(), string(description, &function_at.key("description"))?.into());
    }
    let schema = take(&mut function, "parameters");
    let schema =
        schema.map_or_else(|| Ok(no_parameters()), |schema| input_schema(schema, &function_at.key("parameters")))?;
    definition.insert("input_schema".into(), schema);
    if let Some(strict) = take(&mut function, "strict")
        && boolean(&strict, &function_at.key("strict"))?
    {
        definition.insert("strict".into(), true.into());
    }
    Ok(Tool { name, definition: Value::Object(definition) })
}

fn no_parameters() -> Value {
    json!({ "type": "object", "properties": {} })
}

/// A tool's schema as the client wrote it. Only the type that the provider insists on is added where it is left out.
fn input_schema(schema: Value, at: &Path<'_>) -> Result<Value, Invalid> {
    let schema = object(schema, at)?;
    match schema.get("type") {
        Some(kind) if kind == "object" => Ok(Value::Object(schema)),
        Some(_) => Err(at.key("type").invalid("must be 'object'")),
        None if schema.is_empty() => Ok(no_parameters()),
        None => {
            let mut typed = Map::new();
            typed.insert("type".into(), "object".into());
            typed.extend(schema);
            Ok(Value::Object(typed))
        }
    }
}

/// What the model must call. `allowed_tools` takes the others out of `tools`.
fn choice(wish: Value, tools: &mut Vec<Tool>, parallel: bool, at: &Path<'_>) -> Result<ToolChoice, Invalid> {
    let mut wish = match wish {
        Value::String(mode) => {
            return match mode.as_str() {
                "auto" => Ok(ToolChoice::Auto { parallel }),
                "none" => Ok(ToolChoice::None),
                "required" if tools.is_empty() => Err(at.invalid("is 'required', but there are no 'tools'")),
                "required" => Ok(ToolChoice::Any { parallel }),
                other => {
                    let other = excerpt(other);
                    Err(at.invalid(format_args!("must be 'auto', 'none', 'required' or an object, not '{other}'")))
                }
            };
        }
        Value::Object(wish) => wish,
        other => return Err(wrong_type(&other, "a string or an object", at)),
    };
    let kind_at = at.key("type");
    match string(require(&mut wish, "type", at)?, &kind_at)?.as_str() {
        "function" => {
            let name = function_name(&mut wish, tools, at)?;
            Ok(ToolChoice::Named { name, parallel })
        }
        "allowed_tools" => {
            let at = at.key("allowed_tools");
            let mut allowed = object(wish.swap_remove("allowed_tools").ok_or_else(|| at.missing())?, &at)?;
            let names_at = at.key("tools");
            let mut names = Vec::new();
            for (index, entry) in array(require(&mut allowed, "tools", &at)?, &names_at)?.into_iter().enumerate() {
                let entry_at = names_at.index(index);
                names.push(function_name(&mut object(entry, &entry_at)?, tools, &entry_at)?);
            }
            let mode_at = at.key("mode");
            let mode = string(require(&mut allowed, "mode", &at)?, &mode_at)?;
            tools.retain(|tool| names.contains(&tool.name));
            match mode.as_str() {
                "auto" => Ok(ToolChoice::Auto { parallel }),
                "required" if tools.is_empty() => Err(names_at.invalid("must not be empty with mode 'required'")),
                "required" => Ok(ToolChoice::Any { parallel }),
                other => Err(mode_at.invalid(format_args!("must be 'auto' or 'required', not '{}'", excerpt(other)))),
            }
        }
        other => {
            let other = excerpt(other);
            Err(kind_at.unsupported(format_args!("must be 'function' or 'allowed_tools', not '{other}'")))
        }
    }
}

/// The name in `{"type": "function", "function": {"name": ...}}`, which must be one of `tools`.
fn function_name(holder: &mut Map<String, Value>, tools: &[Tool], at: &Path<'_>) -> Result<String, Invalid> {
    let function_at = at.key("function");
    let mut function = object(require(holder, "function", at)?, &function_at)?;
    let name_at = function_at.key("name");
    let name = string(require(&mut function, "name", &function_at)?, &name_at)?;
    if tools.iter().any(|tool| tool.name == name) {
        Ok(name)
    } else {
        Err(name_at.invalid(format_args!("is '{}', which is none of the 'tools'", excerpt(&name))))
    }
}

/// A tool's name as both OpenAI and the provider take it.
pub(super) fn tool_name(name: String, at: &Path<'_>) -> Result<String, Invalid> {
    if (1..=64).contains(&name.len()) && name.bytes().all(is_word) {
        Ok(name)
    } else {
        Err(at.invalid("must be 1 to 64 characters out of a-z, A-Z, 0-9, '_' and '-'"))
    }
}

/// A call's id in the provider's alphabet. Ids that other servers made up (`functions.weather:0`) are rewritten, in calls
/// and in results alike, so that a conversation can move here.
pub(super) fn call_id(id: String, at: &Path<'_>) -> Result<String, Invalid> {
    match id.len() {
        1..=256 if id.bytes().all(is_word) => Ok(id),
        1..=256 => Ok(id.bytes().map(|byte| if is_word(byte) { char::from(byte) } else { '_' }).collect()),
        _ => Err(at.invalid("must be 1 to 256 characters")),
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

#[cfg(test)]
mod tests;
