//! The leases that are out.

use std::collections::HashMap;

use crate::units::{MicroUsd, Timestamp};

use super::command::LeaseId;
use super::session_table::SessionRef;

/// What has to be undone when a lease ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Lease {
    /// Where it runs.
    pub(super) subscription: u32,
    /// The session it belongs to.
    pub(super) session: SessionRef,
    /// When it was granted.
    pub(super) granted_at: Timestamp,
    /// The cost it reserved.
    pub(super) reserved: MicroUsd,
    /// The tokens it reserved.
    pub(super) reserved_tokens: u64,
    /// Whether it holds a client slot of its own, because its session does not hold one there.
    pub(super) own_slot: bool,
    /// Whether it probes a half-open breaker.
    pub(super) probe: bool,
    /// The subscription's recovery that it belongs to.
    pub(super) epoch: u32,
}

/// All leases that are out, by id.
#[derive(Clone, Debug, Default)]
pub(super) struct Leases {
    out: HashMap<LeaseId, Lease>,
    last: u64,
}

impl Leases {
    pub(super) fn grant(&mut self, lease: Lease) -> LeaseId {
        self.last += 1;
        let id = LeaseId(self.last);
        self.out.insert(id, lease);
        id
    }

    pub(super) fn get(&self, id: LeaseId) -> Option<&Lease> {
        self.out.get(&id)
    }

    pub(super) fn end(&mut self, id: LeaseId) -> Option<Lease> {
        self.out.remove(&id)
    }

    pub(super) fn len(&self) -> usize {
        self.out.len()
    }

    /// How many were ever granted: a clock that ticks once a grant.
    pub(super) const fn granted(&self) -> u64 {
        self.last
    }
}
