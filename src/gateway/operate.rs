//! What the operator asks of the pool, and its answers in words.

use serde::Serialize;
use serde_json::{Value, json};

use super::DecisionFilter;
use super::ask::explicit_session;
use super::lease::SharedPool;
use crate::pool::{Decision, Effect, RebalanceSettings, SessionLabel, Snapshot, SubscriptionView};

/// The client of requests without a key.
const ANONYMOUS: &str = "anonymous";

/// The last decisions that `filter` lets through, the newest first.
pub(super) fn decisions(pool: &SharedPool, filter: &DecisionFilter) -> Value {
    let wanted = filter.session.as_deref().map(|session| {
        let key = explicit_session(filter.client.as_deref().unwrap_or(ANONYMOUS), session);
        (session, SessionLabel::from(&key))
    });
    let is_wanted = |label: SessionLabel| {
        wanted.is_none_or(|(session, own)| label == own || label.to_string().starts_with(session))
    };
    let is_of_request = |decision: &Decision| {
        let id = decision.request.as_deref().unwrap_or_default();
        filter.request.as_deref().is_none_or(|wanted| id.starts_with(wanted))
    };
    let (at, found) = pool.peek(|pool, now| {
        let wanted = pool.decisions().filter(|decision| is_wanted(decision.session) && is_of_request(decision));
        // Cloning the handles is quick; they are written out when the pool is free again.
        let found: Vec<_> = wanted.take(filter.limit).cloned().collect();
        (now, found)
    });
    json!({ "at": at, "decisions": found })
}

/// A cycle's outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Moved,
    SwitchedOff,
    OneSubscription,
    NoDestination,
    Even,
    NoIdleSession,
    NoRoom,
}

/// Runs a cycle and explains it.
pub(super) fn rebalance(pool: &SharedPool, rules: &RebalanceSettings) -> Value {
    let before = pool.snapshot();
    let moved = pool.with(|pool, now| {
        let effects = pool.rebalance(now);
        let moved: Vec<_> = effects.iter().filter(|effect| matches!(effect, Effect::Moved { .. })).cloned().collect();
        (moved, effects)
    });
    let (outcome, reason) = explain(&before, &moved, rules);
    json!({ "at": before.at, "outcome": outcome, "reason": reason, "moved": moved.iter().map(view).collect::<Vec<_>>() })
}

fn view(effect: &Effect) -> Value {
    match effect {
        Effect::Moved { session, from, to } => json!({ "session": session, "from": from, "to": to }),
        _ => Value::Null,
    }
}

/// Why the cycle moved what it moved, judged by the pool as it was before.
fn explain(before: &Snapshot, moved: &[Effect], rules: &RebalanceSettings) -> (Outcome, String) {
    let gap = rules.cost_gap.as_usd();
    let members = &before.subscriptions;
    if let Some(Effect::Moved { from, to, .. }) = moved.first() {
        let cost = |id: &str| members.iter().find(|member| &*member.id == id).map_or(0.0, |it| it.current_block_cost);
        let (dear, cheap) = (cost(from), cost(to));
        let reason = format!(
            "the current block of {from} costs ${dear:.2} and that of {to} ${cheap:.2}, at least ${gap:.2} apart: the \
             longest idle sessions moved, {} a cycle at most",
            rules.max_moves
        );
        return (Outcome::Moved, reason);
    }
    if !rules.enabled {
        return (Outcome::SwitchedOff, "rebalancing is switched off in the configuration".to_owned());
    }
    if members.len() < 2 {
        return (Outcome::OneSubscription, "there is only one subscription".to_owned());
    }
    let Some(cheapest) = cheapest(members.iter().filter(|member| member.excluded.is_none())) else {
        return (Outcome::NoDestination, "no subscription can take a session now".to_owned());
    };
    let (target, low) = (&cheapest.id, cheapest.current_block_cost);
    let is_dear = |member: &&SubscriptionView| {
        let cost = member.current_block_cost;
        member.id != cheapest.id && cost > low && cost - low >= gap
    };
    if !members.iter().any(|member| is_dear(&member)) {
        return (Outcome::Even, even(members, cheapest, gap));
    }
    let is_idle = |member: &SubscriptionView| member.sessions.iter().any(|session| session.state == "idle");
    if !members.iter().filter(is_dear).any(is_idle) {
        let reason = format!(
            "no subscription whose block costs ${gap:.2} more than that of {target} (${low:.2}) has an idle session; \
             sessions in use never move"
        );
        return (Outcome::NoIdleSession, reason);
    }
    (Outcome::NoRoom, format!("{target}, whose block is the cheapest, has no free client slot"))
}

/// Says that nobody is dear enough, and if somebody only is because the cheapest of all is out, that too.
fn even(members: &[SubscriptionView], cheapest: &SubscriptionView, gap: f64) -> String {
    let (target, low) = (&cheapest.id, cheapest.current_block_cost);
    let mut reason = format!("no block costs ${gap:.2} more than that of {target} (${low:.2})");
    if let Some(out) = members.iter().filter(|member| member.current_block_cost < low).find_map(|member| {
        let exclusion = member.excluded?;
        Some(format!("; {} is cheaper, but {}", member.id, exclusion.cause))
    }) {
        reason.push_str(&out);
    }
    reason
}

fn cheapest<'a>(members: impl Iterator<Item = &'a SubscriptionView>) -> Option<&'a SubscriptionView> {
    members.min_by(|one, other| one.current_block_cost.total_cmp(&other.current_block_cost))
}
