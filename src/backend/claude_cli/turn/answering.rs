//! The answer as it comes: the provider's events, and the CLI's word at the end.

use super::{Call, Phase, Turn, no_process};
use crate::backend::claude_cli::classify::classify;
use crate::backend::claude_cli::key::Said;
use crate::backend::claude_cli::output::TurnResult;
use crate::backend::claude_cli::script::{self, Until};
use crate::backend::messages::StreamEvent;
use crate::backend::{Failure, FailureKind};
use crate::conversation::{Event, StopReason};

impl Turn {
    pub(super) fn stream_event(&mut self, event: StreamEvent) -> Result<(), Failure> {
        if self.phase == Phase::Settling {
            return match event {
                // The CLI did not wait for the client, and asks the provider again. What it has got for an answer is
                // not the client's.
                StreamEvent::Start(_) => {
                    self.live.distrust_tools();
                    Err(no_process())
                }
                _ => Ok(()),
            };
        }
        match event {
            StreamEvent::Start(usage) => {
                if self.content_sent {
                    return Err(Failure::new(
                        FailureKind::Unavailable { status: None },
                        "the provider's stream broke and began again",
                    ));
                }
                self.started = true;
                self.usage = usage;
                self.said = Said::default();
                self.calls.clear();
                self.queue.push_back(Event::Started(usage));
            }
            StreamEvent::Text(text) => {
                self.said.text(&text);
                self.queue.push_back(Event::Text(text));
            }
            StreamEvent::Thinking(text) => self.queue.push_back(Event::Thinking(text)),
            StreamEvent::ToolUse { block, id, name } => {
                let index = self.calls.len();
                self.calls.push(Call { block, id: id.clone(), name: name.clone(), json: String::new() });
                self.queue.push_back(Event::ToolUse { index, id, name });
            }
            StreamEvent::ToolInput { block, json } => {
                if let Some(index) = self.calls.iter().position(|call| call.block == block) {
                    self.calls[index].json.push_str(&json);
                    self.queue.push_back(Event::ToolInput { index, json });
                }
            }
            StreamEvent::Delta { stop, usage } => {
                usage.apply_to(&mut self.usage);
                self.stop = stop.or(self.stop);
                let stops_here = match self.stop {
                    // Left alone, the CLI would now ask the provider again (to go on, up to three times; after a
                    // refusal once), at the subscription's cost. Only a kill is fast enough to prevent that.
                    Some(StopReason::MaxTokens | StopReason::Refusal) => true,
                    // The same, with an answer of its own to a call that it cannot deliver.
                    Some(StopReason::ToolUse) => !self.calls.iter().all(|call| self.held.shells.deliver(&call.name)),
                    _ => false,
                };
                if let Some(stop) = self.stop.filter(|_| stops_here) {
                    self.process = None;
                    self.finished(stop);
                    self.settle(None);
                }
            }
            StreamEvent::Stop => {
                // Some builds close a broken stream themselves, as if it were complete, but without a reason. Then the
                // turn's result says what happened.
                if let Some(stop) = self.stop {
                    self.finished(stop);
                    self.park();
                }
            }
            StreamEvent::Other => {}
        }
        Ok(())
    }

    pub(super) async fn result(&mut self, result: &TurnResult) -> Result<(), Failure> {
        match self.phase {
            Phase::Feeding if result.is_error => self.or_replay(classify(&self.evidence, result)),
            Phase::Feeding if self.until == Until::Acknowledged => self.write_step().await,
            Phase::Feeding => Ok(()),
            Phase::Settling => {
                self.settle(Some(result));
                Ok(())
            }
            _ if result.is_error => Err(classify(&self.evidence, result)),
            // What the client said after the results of calls ends one turn and begins another.
            _ if !self.started
                && result.terminal_reason.as_deref() == Some("aborted_tools")
                && script::speaks_after_results(&self.job.request) =>
            {
                Ok(())
            }
            // A build can fall back to a request without stream: then the whole answer is in the result.
            _ if result.turns > 0 && !self.started && !result.text.is_empty() => {
                result.usage.apply_to(&mut self.usage);
                self.queue.push_back(Event::Started(self.usage));
                self.queue.push_back(Event::Text(result.text.clone()));
                self.phase = Phase::Settling;
                self.queue.push_back(Event::Finished { stop: StopReason::EndTurn, usage: self.usage });
                self.answered_all_the_same();
                self.settle(Some(result));
                Ok(())
            }
            _ => Err(Failure::new(FailureKind::Protocol, "the CLI ended the turn without an answer")),
        }
    }
}
