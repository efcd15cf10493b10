//! Spares that are out for a moment: asked something, and back.

use std::sync::Arc;

use super::state::Spare;
use super::{Launch, Process, Spares};
use crate::backend::claude_cli::launch::KindId;

/// A spare that is asked something. It goes back when it was left clean, and else is killed, when this is dropped.
#[derive(Debug)]
pub(in crate::backend::claude_cli) struct Lent {
    spares: Spares,
    launch: Arc<Launch>,
    generation: u64,
    process: Option<Process>,
    is_clean: bool,
}

impl Lent {
    /// The process.
    pub(in crate::backend::claude_cli) fn process(&mut self) -> Option<&mut Process> {
        self.process.as_mut()
    }

    /// Says that the process is as it was before: everything that was asked is answered.
    pub(in crate::backend::claude_cli) fn is_clean(&mut self) {
        self.is_clean = true;
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let process = self.process.take();
        let kept = if self.is_clean { process } else { None };
        self.spares.take_back(&self.launch, self.generation, kept);
    }
}

impl Spares {
    /// A spare of `kind`, of any model, for a question that leaves it as it is. `None` when there is none that is ready.
    pub(in crate::backend::claude_cli) fn lend(&self, kind: KindId) -> Option<Lent> {
        let mut state = self.state();
        state.sweep();
        // The youngest: requests take the oldest of theirs.
        let position = state.ready.iter().rposition(|spare| spare.launch.kind() == kind)?;
        let Spare { launch, process } = state.ready.remove(position)?;
        state.lent.push(Arc::clone(&launch));
        let generation = state.generation;
        drop(state);
        Some(Lent { spares: self.clone(), launch, generation, process: Some(process), is_clean: false })
    }

    /// Takes back what was lent. `process` is `None` when it cannot be used any more.
    fn take_back(&self, launch: &Arc<Launch>, generation: u64, process: Option<Process>) {
        let mut state = self.state();
        if let Some(position) = state.lent.iter().position(|lent| lent == launch) {
            state.lent.swap_remove(position);
        }
        // Meanwhile its subscription may be gone, the CLI another one, or everything over. Somebody who waits for a place
        // is no reason to let it go: it may be what that one wants, and gives way if not.
        let is_wanted =
            !state.closed && state.generation == generation && state.demand.iter().any(|kind| kind.launch == *launch);
        let (surplus, unwanted) = match process {
            Some(process) if is_wanted => {
                state.ready.push_back(Spare { launch: Arc::clone(launch), process });
                (state.surplus(), None)
            }
            process => (Vec::new(), process),
        };
        drop(state);
        drop((surplus, unwanted));
        self.tell_ready();
    }
}
