//! What a turn has to do.

use std::sync::Arc;

use crate::backend::Caller;
use crate::backend::claude_cli::key::{Key, Rolling};
use crate::backend::claude_cli::launch::Launch;
use crate::conversation::Request;

/// A request and the kind of process that it needs.
#[derive(Debug)]
pub(in crate::backend::claude_cli) struct Job {
    pub(super) launch: Arc<Launch>,
    pub(super) request: Request,
    /// The conversation but for its last turn: what a process must hold to go on with it.
    pub(super) held: Key,
    /// The conversation with its last turn.
    pub(super) asked: Rolling,
}

impl Job {
    pub(in crate::backend::claude_cli) fn new(launch: Arc<Launch>, request: &Request, caller: &Caller) -> Self {
        let mut asked = Rolling::begin(caller, &request.system);
        let (last, before) = request.turns.split_last().map_or((None, &[][..]), |(last, before)| (Some(last), before));
        for turn in before {
            asked.add(turn);
        }
        let held = asked.key();
        if let Some(turn) = last {
            asked.add(turn);
        }
        Self { launch, request: request.clone(), held, asked }
    }
}
