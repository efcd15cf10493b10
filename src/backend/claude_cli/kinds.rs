//! Which kinds of processes are wanted at all.
//!
//! A request can outlive its subscription: it runs on with what it has, while the configuration knows nothing of that any
//! more. What it asks for and leaves behind must not stay.

use std::collections::HashSet;
use std::sync::Arc;

use super::launch::{KindId, Launch};

/// The kinds of processes that the configuration in force can use, whatever their model.
#[derive(Clone, Debug, Default)]
pub(super) struct Kinds(Option<Arc<HashSet<KindId>>>);

impl Kinds {
    /// These and no others. The default is all.
    pub(super) fn only(kinds: impl IntoIterator<Item = KindId>) -> Self {
        Self(Some(Arc::new(kinds.into_iter().collect())))
    }

    /// Whether processes of the kind `launch` are wanted.
    pub(super) fn have(&self, launch: &Launch) -> bool {
        self.0.as_ref().is_none_or(|kinds| kinds.contains(&launch.kind()))
    }
}
