//! Evening out the blocks: idle sessions move from the dearest subscription to the cheapest.
//!
//! The strategy `pace` weighs what that costs: a session that moves leaves its prompt cache behind, and writing a long
//! conversation anew costs more than most requests. It lets a session go only from where it could soon not be served.

use std::cell::Cell;
use std::collections::BTreeMap;

use crate::units::Timestamp;

use super::Pool;
use super::command::{Effect, Strategy};
use super::select::Place;
use super::session::{Age, Kind, Session};
use super::session_table::SessionRef;

/// From this share of its block on the strategy `pace` lets idle sessions go.
const PACE_MOVES_FROM: f64 = 0.5;

/// How many dear blocks, and how many sessions, one cycle looks at: every allocation waits for it. Where none among so
/// many may move, none moves.
const LOOKED_AT: usize = 1_000;

impl Pool {
    /// One rebalancing cycle: when the current blocks of the dearest and the cheapest subscription cost differently
    /// enough, idle sessions move from the one to the other, the longest idle first, within its free slots. Sessions in
    /// use never move.
    pub fn rebalance(&mut self, now: Timestamp) -> Vec<Effect> {
        self.advance(now);
        if self.settings.rebalancing.enabled
            && let Some((dearest, cheapest)) = self.unequal_pair(now)
        {
            self.move_idle(now, dearest, cheapest);
        }
        self.take_effects()
    }

    /// The dearest block with an idle session and the cheapest that could take it, if they are far enough apart.
    fn unequal_pair(&self, now: Timestamp) -> Option<(u32, u32)> {
        let gap = self.settings.rebalancing.cost_gap;
        let owner = |at: u32| &self.member(at).settings.organization;
        let mut ready = self.blocks.iter().filter(|(_, at)| matches!(self.member(*at).place, Some(Place::Ready(..))));
        let &(lowest, first) = ready.next()?;
        // The cheapest of all, unless organisations are kept apart: then the cheapest of each.
        let mut cheapest = BTreeMap::from([(owner(first), (lowest, first))]);
        if !self.by_organization.is_empty() {
            for &(cost, at) in ready {
                cheapest.entry(owner(at)).or_insert((cost, at));
            }
        }
        let dear = self.blocks.iter().rev().take_while(|(cost, _)| *cost > lowest && *cost - lowest >= gap);
        let pairs = dear.filter_map(|&(cost, at)| {
            let &(low, target) = cheapest.get(owner(at))?;
            (at != target && cost > low && cost - low >= gap).then_some((at, target))
        });
        let left = Cell::new(LOOKED_AT);
        pairs.take(LOOKED_AT).find(|(at, target)| {
            self.is_worth_leaving(*at, now) && self.idle_sessions(*at, *target, now, &left).next().is_some()
        })
    }

    /// Whether the sessions of a subscription are better off elsewhere although their caches are here.
    fn is_worth_leaving(&self, at: u32, now: Timestamp) -> bool {
        if self.strategies[0] != Strategy::Pace {
            return true;
        }
        let member = self.member(at);
        member.limits.lock_at(now).is_some() || member.block_share(now, &member.usage.figures(now)) >= PACE_MOVES_FROM
    }

    fn move_idle(&mut self, now: Timestamp, from: u32, to: u32) {
        let target = self.member(to);
        let free = target.max_clients.saturating_sub(target.clients(self.explicit_sessions(to)));
        let limit = self.settings.rebalancing.max_moves as usize;
        let mut free_slots = free;
        let left = Cell::new(limit.max(LOOKED_AT));
        let moving: Vec<(SessionRef, super::SessionLabel)> = self
            .idle_sessions(from, to, now, &left)
            .filter(|(_, session)| {
                // Only an explicit session needs a slot there.
                let needed = u32::from(session.kind == Kind::Explicit);
                let fits = free_slots >= needed;
                free_slots -= if fits { needed } else { 0 };
                fits
            })
            .map(|(at, session)| (at, session.label()))
            .take(limit)
            .collect();
        for (session, label) in moving {
            self.sessions.assign(session, to, now);
            let (from, to) = (self.member(from).id(), self.member(to).id());
            self.pending.push(Effect::Moved { session: label.to_string(), from, to });
        }
        self.refresh(from, now);
        self.refresh(to, now);
    }

    /// Idle sessions of a subscription that may go to `target`, explicit ones first, the longest unused first. `left` is how
    /// many sessions may still be looked at.
    fn idle_sessions<'a>(
        &'a self,
        at: u32,
        target: u32,
        now: Timestamp,
        left: &'a Cell<usize>,
    ) -> impl Iterator<Item = (SessionRef, &'a Session)> {
        let ages = self.settings.ages();
        let target = &self.member(target).settings.id;
        Kind::ALL.into_iter().flat_map(move |kind| {
            self.sessions
                .at_home(at, kind)
                .take_while(move |_| {
                    let looked = left.get() > 0;
                    left.set(left.get().saturating_sub(1));
                    looked
                })
                // Roughly the longest unused come first: behind an active one that is not in use there are no idle ones.
                .take_while(move |(_, session)| {
                    session.in_flight > 0 || now.since(session.last_used) >= ages.idle_after
                })
                .filter(move |(_, session)| ages.of(session, now) == Age::Idle)
                .filter(move |(_, session)| self.lists.admit(session.list, target))
        })
    }
}
