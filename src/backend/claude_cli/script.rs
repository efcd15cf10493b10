//! What is written to a process for a request, step by step, and what has to be heard before the next step.

use std::collections::VecDeque;

use super::input;
use super::live::Held;
use super::options::Applied;
use super::tools::{self, Results, Shells};
use crate::conversation::{Block, Request, Role, Turn};

/// What is written in one go.
#[derive(Debug)]
pub(super) struct Step {
    pub lines: Vec<u8>,
    /// What has to be heard then.
    pub until: Until,
}

/// What a step waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Until {
    /// A user turn of the history is taken in.
    Acknowledged,
    /// The CLI has asked for the list of tools.
    ToolsListed,
    /// The result of this call is taken in.
    ResultTaken(String),
    /// The answer is complete. The last step's only.
    Answered,
}

pub(super) type Script = VecDeque<Step>;

/// The script for a fresh process, and what it will have been told then.
///
/// `with_shells`: whether tools are to be made known to the CLI, so that it can wait for their results.
pub(super) fn fresh(request: &Request, with_shells: bool) -> (Script, Held) {
    let shells = if with_shells { Shells::new(&request.tools) } else { Shells::default() };
    let applied = Applied::wanted(request, shells.is_registered());
    let mut lines = input::initialize(&request.system, shells.is_registered());
    Applied::default().change_to(&applied, &mut lines);

    let mut script = Script::with_capacity(request.turns.len() / 2 + 1);
    let last = request.turns.len().saturating_sub(1);
    for (position, turn) in request.turns.iter().enumerate() {
        input::turn(&mut lines, turn, position, position == last);
        // An assistant turn is taken in at once, a user turn is queued until it is acknowledged: so a step ends with
        // every user turn.
        if turn.role == Role::User {
            let until = if position == last { Until::Answered } else { Until::Acknowledged };
            script.push_back(Step { lines: std::mem::take(&mut lines), until });
        }
    }
    (script, Held { applied, shells, ..Held::default() })
}

/// The script for a process that holds all but the last turn of `request`. `None` if the provider would not get that
/// turn as the client sent it; then the process is of no use any more.
pub(super) fn further(request: &Request, held: &mut Held) -> Option<Script> {
    let turn = request.turns.last()?;
    let position = request.turns.len() - 1;
    let Results { answers, rest } = tools::results(&std::mem::take(&mut held.calls), turn)?;

    let mut script = Script::with_capacity(answers.len() + 1);
    let mut lines = Vec::new();
    let is_refreshed = held.shells.refresh(&request.tools, &mut lines);
    let wanted = Applied::wanted(request, held.shells.is_registered());
    if !answers.is_empty() && !held.applied.may_change_within_turn(&wanted) {
        return None;
    }
    held.applied.change_to(&wanted, &mut lines);
    held.applied = wanted;
    if is_refreshed {
        script.push_back(Step { lines: std::mem::take(&mut lines), until: Until::ToolsListed });
    }

    // The order in which results arrive is the order in which they go up, if each waits for the one before it.
    let after_results = !answers.is_empty();
    for (call, line) in answers {
        lines.extend_from_slice(&line);
        script.push_back(Step { lines: std::mem::take(&mut lines), until: Until::ResultTaken(call) });
    }
    if !rest.is_empty() {
        let rest = Turn { role: Role::User, blocks: rest.to_vec() };
        if let Some(step) = script.back_mut().filter(|_| after_results) {
            // In the same write as the last result: else the CLI would go on without it.
            input::turn_after_results(&mut step.lines, &rest);
        } else {
            input::turn(&mut lines, &rest, position, true);
            script.push_back(Step { lines, until: Until::Answered });
        }
    }
    script.back_mut()?.until = Until::Answered;
    Some(script)
}

/// Whether the last turn says something beside results of calls.
pub(super) fn speaks_after_results(request: &Request) -> bool {
    let blocks = request.turns.last().map(|turn| turn.blocks.as_slice()).unwrap_or_default();
    blocks.iter().any(|block| matches!(block, Block::ToolResult { .. }))
        && blocks.iter().any(|block| !matches!(block, Block::ToolResult { .. }))
}
