//! The scripts that run on the server, and what they are asked.

use std::time::Duration;

use redis::{Cmd, Pipeline};
use serde::Serialize;

use super::Settings;

/// One script: its name for errors, its text, and the hash by which the server knows it once loaded.
#[derive(Clone, Debug)]
pub(super) struct Script {
    pub(super) text: &'static str,
    hash: String,
}

macro_rules! script {
    ($file:literal) => {
        Script::new(concat!(include_str!("lua/common.lua"), "\n", include_str!(concat!("lua/", $file))))
    };
}

impl Script {
    fn new(text: &'static str) -> Self {
        Self { text, hash: redis::Script::new(text).get_hash().to_owned() }
    }
}

/// All of them.
#[derive(Clone, Debug)]
pub(super) struct Scripts {
    pub(super) admit: Script,
    pub(super) settle: Script,
    pub(super) beat: Script,
    pub(super) reconcile: Script,
    pub(super) condition: Script,
    pub(super) conditions: Script,
}

impl Scripts {
    pub(super) fn new() -> Self {
        Self {
            admit: script!("admit.lua"),
            settle: script!("settle.lua"),
            beat: script!("beat.lua"),
            reconcile: script!("reconcile.lua"),
            condition: script!("condition.lua"),
            conditions: script!("conditions.lua"),
        }
    }

    /// Has the server load them. It forgets them when it restarts; so they are loaded with every connection.
    pub(super) fn load(&self) -> Pipeline {
        let mut pipeline = Pipeline::new();
        let Self { admit, settle, beat, reconcile, condition, conditions } = self;
        for script in [admit, settle, beat, reconcile, condition, conditions] {
            pipeline.cmd("SCRIPT").arg("LOAD").arg(script.text).ignore();
        }
        pipeline
    }
}

/// What every script is told beside its own question.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Frame {
    replica: String,
    /// Milliseconds, like all that follow.
    life: u64,
    session_life: u64,
    idle_after: u64,
    windows: Windows,
    #[serde(skip)]
    prefix: String,
}

#[derive(Clone, Copy, Debug, Serialize)]
struct Windows {
    minute: u64,
    day: u64,
}

impl Frame {
    pub(super) fn new(replica: &str, settings: &Settings) -> Self {
        Self {
            replica: replica.to_owned(),
            life: millis(settings.life),
            session_life: millis(settings.session_life),
            idle_after: millis(settings.session_idle_after),
            windows: Windows { minute: millis(settings.minute), day: millis(settings.day) },
            prefix: settings.prefix.clone(),
        }
    }

    /// The name of a key that is read without a script.
    pub(super) fn key(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// A call of `script`.
    pub(super) fn call(&self, script: &Script, question: &impl Serialize) -> Cmd {
        #[derive(Serialize)]
        struct Question<'a, T> {
            #[serde(flatten)]
            frame: &'a Frame,
            #[serde(flatten)]
            question: &'a T,
        }
        let question = serde_json::to_string(&Question { frame: self, question }).unwrap_or_default();
        let mut call = redis::cmd("EVALSHA");
        call.arg(&script.hash).arg(1).arg(&self.prefix).arg(question);
        call
    }
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
