//! What a backend answers, piece by piece.

use serde::{Deserialize, Serialize};

use super::{Family, Usage};
use crate::units::{MicroUsd, Timestamp};

/// One step of an answer.
///
/// A good run is `Started`, any number of content events, `Finished`, then bookkeeping (`Limits`, `Settled`).
/// The client's answer is complete at `Finished`; what follows is for the pool.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The provider accepted the request. Carries the input side of the usage.
    Started(Usage),
    /// More text of the answer.
    Text(String),
    /// More of the model's thinking.
    Thinking(String),
    /// The model begins to call a client's tool.
    ToolUse {
        /// 0 for the first call of the answer, and so on.
        index: usize,
        /// The id the result must refer to.
        id: String,
        /// The tool's name.
        name: String,
    },
    /// More of a call's arguments: a piece of JSON text.
    ToolInput {
        /// The call's index.
        index: usize,
        /// The next characters.
        json: String,
    },
    /// The answer is complete.
    Finished {
        /// Why it ended.
        stop: StopReason,
        /// Exact usage of the whole request.
        usage: Usage,
    },
    /// What the provider says of the subscription's limits.
    Limits(LimitReport),
    /// What the provider says of use beyond those limits.
    Overage(Overage),
    /// What the request cost as the CLI or the provider reckons it.
    Settled(MicroUsd),
}

impl Event {
    /// Whether a client would see something of this event: after the first such one no other subscription may be tried.
    pub fn is_content(&self) -> bool {
        matches!(
            self,
            Self::Text(_) | Self::Thinking(_) | Self::ToolUse { .. } | Self::ToolInput { .. } | Self::Finished { .. }
        )
    }
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StopReason {
    /// The model was done.
    EndTurn,
    /// `max_tokens` or the model's own limit was reached.
    MaxTokens,
    /// One of the client's stop texts came up.
    StopSequence,
    /// The model calls tools and waits for their results.
    ToolUse,
    /// The provider's safety system ended the answer.
    Refusal,
}

/// A window over which a provider limits use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Window {
    /// The 5-hour block.
    FiveHour,
    /// The 7-day week, all models.
    SevenDay,
    /// The 7-day week of one model family.
    SevenDayFamily(Family),
}

/// Whether the provider lets requests through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitStatus {
    /// Yes.
    Allowed,
    /// Yes, and it warns.
    Warning,
    /// No.
    Rejected,
}

/// What the provider said about limits in one message.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LimitReport {
    /// The verdict on the request it came with.
    pub status: LimitStatus,
    /// The window that decided; `None` for a throttle that belongs to no window.
    pub window: Option<Window>,
    /// When that window resets.
    pub resets_at: Option<Timestamp>,
    /// Use of each window it mentioned.
    pub windows: Vec<WindowUse>,
}

/// How full one window is.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct WindowUse {
    /// Which window.
    pub window: Window,
    /// 0.0 (empty) to 1.0 (spent), sometimes beyond.
    pub utilization: f64,
    /// When it resets, if known.
    pub resets_at: Option<Timestamp>,
}

impl LimitReport {
    /// What it says when the request was answered all the same: nothing is locked, but the window that decided is spent,
    /// and what goes beyond it is paid for otherwise.
    #[must_use]
    pub fn answered(mut self) -> Self {
        if self.status == LimitStatus::Rejected {
            self.status = LimitStatus::Warning;
            self.fill_window();
        }
        self
    }

    /// Says that the window that decided is full.
    pub fn fill_window(&mut self) {
        let Some(window) = self.window else { return };
        match self.windows.iter_mut().find(|used| used.window == window) {
            Some(used) => used.utilization = used.utilization.max(1.0),
            None => self.windows.push(WindowUse { window, utilization: 1.0, resets_at: self.resets_at }),
        }
    }
}

/// Use beyond a subscription's limits, which its owner pays for by the token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overage {
    /// Whether the request was served that way.
    pub is_used: bool,
    /// Whether it may be, in the provider's word: `allowed`, `allowed_warning`, `rejected`.
    pub status: Option<String>,
    /// When the bound that the owner has set for it resets.
    pub resets_at: Option<Timestamp>,
    /// When the window resets beyond which this was.
    pub window_resets_at: Option<Timestamp>,
}
