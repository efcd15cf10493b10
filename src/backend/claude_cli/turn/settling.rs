//! After the answer: what it cost, and whether the process stays with its conversation.

use std::time::Duration;

use tokio::time::Instant;

use super::{Call, Phase, Turn};
use crate::backend::claude_cli::live::Kept;
use crate::backend::claude_cli::output::TurnResult;
use crate::backend::claude_cli::tools::OpenCall;
use crate::conversation::{Event, StopReason};
use crate::units::MicroUsd;

/// How long after the answer the CLI may take to say what it cost, or to deliver the calls it holds.
const SETTLE_LIMIT: Duration = Duration::from_secs(2);

impl Turn {
    /// The client's answer is complete.
    pub(super) fn finished(&mut self, stop: StopReason) {
        self.queue.push_back(Event::Finished { stop, usage: self.usage });
        self.answered_all_the_same();
        self.phase = Phase::Settling;
        self.settle_by = Instant::now() + SETTLE_LIMIT;
        let goes_on = matches!(stop, StopReason::EndTurn | StopReason::StopSequence | StopReason::ToolUse);
        if !goes_on || self.process.is_none() {
            return;
        }
        let mut said = std::mem::take(&mut self.said);
        for Call { id, name, json, .. } in &self.calls {
            // What is no JSON the client cannot send back either.
            let Ok(input) = serde_json::from_str(if json.is_empty() { "{}" } else { json }) else { return };
            said.call(id, name, input);
        }
        if said.is_empty() {
            return;
        }
        let mut asked = self.job.asked.clone();
        asked.answer(said);
        self.reservation = self.live.reserve(&self.job.launch, asked.key());
    }

    /// A rejection that came before the answer is none: what it says of the windows is for the pool.
    pub(super) fn answered_all_the_same(&mut self) {
        let report = self.evidence.limits.take();
        self.queue.extend(report.map(|report| Event::Limits(report.answered())));
    }

    /// Keeps a process that has delivered all its calls: it says nothing more until it has their results.
    pub(super) fn park(&mut self) {
        let is_waiting = self.stop == Some(StopReason::ToolUse)
            && self.calls.iter().all(|call| self.held.calls.iter().any(|open| open.tool_use == call.id));
        if !is_waiting {
            return;
        }
        let cost = self.job.request.model.price.cost(&self.usage);
        self.held.spent += cost;
        self.keep(cost);
    }

    /// The request is over for the pool too. Without the CLI's own figure its cost comes from the price list.
    pub(super) fn settle(&mut self, result: Option<&TurnResult>) {
        let list_price = self.job.request.model.price.cost(&self.usage);
        let Some(total) = result.filter(|result| !result.is_error).and_then(|result| result.total_cost) else {
            self.process = None;
            self.queue.push_back(Event::Settled(list_price));
            return self.end();
        };
        // The CLI tells what all of its requests have cost together.
        let cost = (total - self.held.spent).max(MicroUsd::ZERO);
        self.held.spent = total.max(self.held.spent);
        self.keep(cost);
    }

    fn keep(&mut self, cost: MicroUsd) {
        self.queue.push_back(Event::Settled(cost));
        if let (Some(process), Some(reservation)) = (self.process.take(), self.reservation.take()) {
            self.order_calls();
            reservation.keep(Kept { process, state: std::mem::take(&mut self.held) });
        }
        self.end();
    }

    /// Calls in the order of the answer, whatever the order in which they were delivered.
    fn order_calls(&mut self) {
        let order = |call: &OpenCall| self.calls.iter().position(|known| known.id == call.tool_use);
        self.held.calls.sort_by_key(order);
    }
}
