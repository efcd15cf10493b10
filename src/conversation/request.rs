//! What a client asks for.

use std::sync::Arc;

use serde_json::Value;

use super::{Model, OutputCheck};

/// One question to a model: a whole conversation whose last turn is the user's.
#[derive(Clone, Debug)]
pub struct Request {
    /// The model that shall answer.
    pub model: Arc<Model>,
    /// System prompt, one entry per message or block the client sent; joined by a blank line upstream.
    pub system: Vec<String>,
    /// Alternating turns, beginning and ending with [`Role::User`].
    pub turns: Vec<Turn>,
    /// Tools the *client* executes.
    pub tools: Vec<Tool>,
    /// Whether and which tool the model must call; `None` leaves the choice to the model.
    pub tool_choice: Option<ToolChoice>,
    /// Sampling and limits.
    pub options: Options,
}

impl Request {
    /// Characters of text that go upstream, the basis of the token estimate (images and schemas included).
    pub fn chars(&self) -> usize {
        let system: usize = self.system.iter().map(|text| text.chars().count()).sum();
        let turns: usize = self.turns.iter().flat_map(|turn| &turn.blocks).map(Block::chars).sum();
        let tools: usize = self.tools.iter().map(Tool::chars).sum();
        system + turns + tools
    }

    /// Estimated input tokens: a quarter of the characters, rounded up.
    pub fn estimated_tokens(&self) -> u64 {
        self.chars().div_ceil(4) as u64
    }
}

/// Who speaks a [`Turn`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The client, also when it reports tool results.
    User,
    /// The model.
    Assistant,
}

/// What one side says before the other side speaks again.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    /// The speaker.
    pub role: Role,
    /// What is said, in order; never empty.
    pub blocks: Vec<Block>,
}

/// A piece of a [`Turn`].
#[derive(Clone, Debug, PartialEq)]
pub enum Block {
    /// Plain text.
    Text(String),
    /// A picture.
    Image(ImageSource),
    /// A call of a client's tool, made by the model.
    ToolUse {
        /// The id the result refers to.
        id: String,
        /// The tool's name.
        name: String,
        /// The arguments, always a JSON object.
        input: Value,
    },
    /// The client's answer to a [`Block::ToolUse`].
    ToolResult {
        /// The id of the call.
        tool_use_id: String,
        /// What the tool returned.
        content: Vec<ToolResultContent>,
        /// Whether the tool failed.
        is_error: bool,
    },
}

impl Block {
    fn chars(&self) -> usize {
        match self {
            Self::Text(text) => text.chars().count(),
            Self::Image(image) => image.chars(),
            Self::ToolUse { name, input, .. } => name.len() + input.to_string().len(),
            Self::ToolResult { content, .. } => content
                .iter()
                .map(|part| match part {
                    ToolResultContent::Text(text) => text.chars().count(),
                    ToolResultContent::Image(image) => image.chars(),
                })
                .sum(),
        }
    }
}

/// A piece of a tool's result.
#[derive(Clone, Debug, PartialEq)]
pub enum ToolResultContent {
    /// Plain text.
    Text(String),
    /// A picture.
    Image(ImageSource),
}

/// Where a picture's bytes are.
#[derive(Clone, Debug, PartialEq)]
pub enum ImageSource {
    /// In the request itself.
    Base64 {
        /// For example `image/png`.
        media_type: String,
        /// The bytes in standard base64.
        data: String,
    },
    /// Behind an `https:` address that the provider fetches.
    Url(String),
}

impl ImageSource {
    /// A picture is worth about 1,600 tokens at most, whatever its bytes: 6,400 characters.
    const CHARS: usize = 6_400;

    #[expect(clippy::unused_self, reason = "a method, so that a better estimate can look at the picture")]
    fn chars(&self) -> usize {
        Self::CHARS
    }
}

/// A tool the client offers. `definition` is sent upstream verbatim.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// The name by which the model calls it.
    pub name: String,
    /// The complete definition in Anthropic's shape (`name`, `description`, `input_schema`, ...).
    pub definition: Value,
}

impl Tool {
    fn chars(&self) -> usize {
        self.definition.to_string().len()
    }
}

/// Which tool the model must call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    Auto {
        /// Whether several calls in one turn are allowed.
        parallel: bool,
    },
    /// No tool may be called.
    None,
    /// Some tool must be called.
    Any {
        /// Whether several calls in one turn are allowed.
        parallel: bool,
    },
    /// This tool must be called.
    Named {
        /// The tool's name.
        name: String,
        /// Whether several calls in one turn are allowed.
        parallel: bool,
    },
}

/// Sampling parameters and limits; `None` means the provider's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// The most tokens the answer may have.
    pub max_tokens: Option<u32>,
    /// 0 to 1 (OpenAI's 0 to 2 is mapped at the edge).
    pub temperature: Option<f64>,
    /// Nucleus sampling, 0 to 1.
    pub top_p: Option<f64>,
    /// Texts that end the answer.
    pub stop: Vec<String>,
    /// How hard the model thinks; `None` is no thinking at all.
    pub effort: Option<Effort>,
    /// A JSON schema that the provider holds the answer to, in the provider's own subset ([`super::native`]).
    pub output_schema: Option<Value>,
    /// What the answer is checked against by the gateway.
    pub output_check: Option<OutputCheck>,
}

/// How much thinking a request buys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Least.
    Low,
    /// The usual.
    Medium,
    /// Much.
    High,
    /// Most.
    XHigh,
}

impl Effort {
    /// The provider's word for it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::XHigh => "xhigh",
        }
    }
}
