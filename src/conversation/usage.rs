//! What a request cost, in tokens.

use serde::{Deserialize, Serialize};

/// Tokens of one request as the provider counts them. The three input figures do not overlap.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Input neither read from nor written to the prompt cache.
    pub input: u64,
    /// Input written to the prompt cache.
    pub cache_creation: u64,
    /// Input read from the prompt cache.
    pub cache_read: u64,
    /// Output, thinking included.
    pub output: u64,
    /// The part of `output` that was thinking, where the provider says so.
    pub reasoning: u64,
}

impl Usage {
    /// All input tokens, cached or not.
    pub const fn total_input(&self) -> u64 {
        self.input + self.cache_creation + self.cache_read
    }

    /// Every token of the request.
    pub const fn total(&self) -> u64 {
        self.total_input() + self.output
    }

    /// What two requests used together.
    #[must_use]
    pub const fn plus(&self, other: &Self) -> Self {
        Self {
            input: self.input + other.input,
            cache_creation: self.cache_creation + other.cache_creation,
            cache_read: self.cache_read + other.cache_read,
            output: self.output + other.output,
            reasoning: self.reasoning + other.reasoning,
        }
    }
}
