//! Tells the operator what happens to the pool: on crossing a threshold, once, and again when it is over.
//!
//! [`rules`] is pure: from what the pool did and how much of its weeks is used to alerts. [`service`] runs it beside the
//! requests, [`channels`] takes an alert to where it belongs, and [`webhook`] delivers what leaves the machine: from a
//! bounded queue, with retries, to public addresses only. Nothing in here can hold up a request: the pool never waits
//! for a listener, and a full queue drops.

pub mod channels;
pub mod message;
mod post;
pub mod rules;
pub mod sample;
pub mod service;
pub mod webhook;

pub use channels::{Channels, ChannelsSettings};
pub use message::{Alert, Channel, Kind, Severity};
pub use post::{Target, signature};
pub use rules::{Notice, Open, Rule, Rulebook, Trigger};
pub use service::{Alerts, Settings};
pub use webhook::{Counts, Outcome, Pace, Sender};
