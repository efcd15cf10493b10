//! Rebalancing: idle sessions of the dearest block move to the cheapest.

use std::sync::Arc;

use super::session::shown;
use super::subscription::{Purpose, Rules};
use super::{Effect, Pool, SessionKey};
use crate::conversation::Family;
use crate::units::Timestamp;

impl Pool {
    /// One cycle. Moves idle explicit sessions only, the longest idle first, and only into free slots; a session with a
    /// request in flight, or one used lately, never moves.
    pub fn rebalance(&mut self, now: Timestamp) -> Vec<Effect> {
        let settings = self.settings.rebalancing;
        if !settings.enabled {
            return Vec::new();
        }
        let rules = Rules {
            // A limit of one family does not make a block cheap or dear.
            family: Family::Other,
            breaker: &self.settings.breaker,
            weekly_budget_threshold: self.settings.weekly_budget_threshold,
            max_clients: self.settings.max_clients,
        };
        let mut dearest = None;
        let mut cheapest = None;
        for (number, member) in &mut self.members {
            if member.removed || !member.settings.enabled {
                continue;
            }
            let cost = member.block_cost(now);
            if member.slots > 0 && dearest.is_none_or(|(most, _)| cost > most) {
                dearest = Some((cost, *number));
            }
            let takes_more = member.exclusion(now, &rules, Purpose::NewSession).is_none();
            if takes_more && cheapest.is_none_or(|(least, _)| cost < least) {
                cheapest = Some((cost, *number));
            }
        }
        let (Some((most, from)), Some((least, to))) = (dearest, cheapest) else { return Vec::new() };
        if from == to || most - least < settings.cost_gap {
            return Vec::new();
        }
        let room = self.members.get(&to).map_or(0, |member| member.free_slots(self.settings.max_clients));
        let idle_after = self.settings.session_idle_after;
        let moving: Vec<SessionKey> = self
            .explicit
            .resting()
            .take_while(|(_, session)| session.is_idle(now, idle_after))
            .filter(|(_, session)| session.subscription == from)
            .take(room.min(settings.max_moves) as usize)
            .map(|(key, _)| key.clone())
            .collect();
        let names = (self.name(from), self.name(to));
        let mut effects = Vec::with_capacity(moving.len());
        for key in moving {
            self.explicit.assign(&key, to);
            for (number, change) in [(from, -1), (to, 1)] {
                if let Some(member) = self.members.get_mut(&number) {
                    member.slots = member.slots.saturating_add_signed(change);
                }
            }
            let (from, to) = (Arc::clone(&names.0), Arc::clone(&names.1));
            effects.push(Effect::Moved { session: shown(&key), from, to });
        }
        effects
    }
}
