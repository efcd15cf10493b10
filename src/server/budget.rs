//! How much memory the bodies of all requests together may take.
//!
//! Only what has arrived counts, so that nobody can hold memory back by announcing a large body and sending nothing.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The bytes that are left for bodies. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct BodyBudget(Arc<Semaphore>);

/// What one request's body takes of it, until it is dropped.
#[derive(Debug)]
pub(super) struct Held {
    budget: BodyBudget,
    permit: Option<OwnedSemaphorePermit>,
}

/// The budget is spent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spent;

impl BodyBudget {
    pub(super) fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes.min(Semaphore::MAX_PERMITS))))
    }

    /// Nothing yet.
    pub(super) fn hold(&self) -> Held {
        Held { budget: self.clone(), permit: None }
    }
}

impl Held {
    /// Takes `bytes` more. Does not wait: who waits holds on to what has arrived, and all could wait for each other.
    pub(super) fn grow(&mut self, bytes: usize) -> Result<(), Spent> {
        let bytes = u32::try_from(bytes).map_err(|_| Spent)?;
        let more = Arc::clone(&self.budget.0).try_acquire_many_owned(bytes).map_err(|_| Spent)?;
        match &mut self.permit {
            Some(permit) => permit.merge(more),
            None => self.permit = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_held_is_given_back_at_the_end() {
        let budget = BodyBudget::new(100);
        let (mut first, mut second) = (budget.hold(), budget.hold());
        assert_eq!((first.grow(40), first.grow(30), second.grow(30)), (Ok(()), Ok(()), Ok(())));
        assert_eq!(second.grow(1), Err(Spent));
        drop(first);
        assert_eq!((second.grow(70), second.grow(1)), (Ok(()), Err(Spent)));
    }
}
