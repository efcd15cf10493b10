//! OpenAI's dialect: chat completions and models.

pub mod chat;
pub mod error;
pub mod models;
