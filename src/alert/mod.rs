//! Alerts.
pub mod webhook;
