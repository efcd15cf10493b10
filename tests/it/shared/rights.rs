//! A client that may use some subscriptions only: whatever other replicas know of its sessions, none of its requests is
//! served by another one.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use auth_pool::gateway::{Call, ClientRules, Gateway as _, GatewayError, Priority, RefusalReason, SessionHint};
use auth_pool::pool::{Only, Realm, SubscriptionSettings};

use super::contract::{AT_ONCE, Common, Replicas, saying, until};
use crate::gateway::read;

impl Replicas {
    /// From now on the client of all requests may use this subscription and no other.
    fn restrict_to(&self, subscription: &str) {
        let listed = BTreeSet::from([Arc::from(subscription)]);
        let only = Some(Arc::new(Only { subscriptions: Some(listed), realm: Realm::Every }));
        let rules = ClientRules { only, weekly_budget: None, max_priority: Priority::High };
        for gateway in &self.gateways {
            gateway.clients().apply(HashMap::from([("anonymous".into(), rules.clone())]));
        }
    }

    /// Who serves a request of no named session, or why nobody does.
    async fn fingerprint(&self, replica: usize, text: &str) -> Result<Arc<str>, GatewayError> {
        let call = Call { session: SessionHint::None, ..saying("", text) };
        let answer = self.gateways[replica].chat(call).await?;
        let subscription = Arc::clone(&answer.subscription);
        read(answer).await;
        Ok(subscription)
    }
}

fn other_than(home: &str) -> &'static str {
    if home == "sub1" { "sub2" } else { "sub1" }
}

async fn a_session_that_is_bound_where_its_client_may_not_go_moves(common: Common) {
    let replicas = Replicas::start_trying(3, common, (3, 2, AT_ONCE), |_| {}).await;
    let home = replicas.served(0, "s").await;
    assert_eq!(replicas.served(1, "s").await, home);
    let soft = replicas.fingerprint(0, "soft").await.expect("an answer");
    replicas.restrict_to(other_than(&home));
    // A replica that has never seen it, those that have, and again where it has moved.
    for replica in [2, 0, 1, 2, 0] {
        assert_eq!(&*replicas.served(replica, "s").await, other_than(&home), "replica {replica}");
    }
    replicas.restrict_to(other_than(&soft));
    for replica in [2, 0, 1] {
        let served = replicas.fingerprint(replica, "soft").await.expect("an answer");
        assert_eq!(&*served, other_than(&soft), "replica {replica}");
    }
}

async fn what_is_taken_is_refused_and_not_served_by_another(common: Common) {
    let one_at_once = |member: &mut SubscriptionSettings| member.max_concurrent = 1;
    let replicas = Replicas::start_trying(3, common, (2, 2, AT_ONCE), one_at_once).await;
    let home = replicas.served(0, "s").await;
    let allowed = other_than(&home);
    replicas.restrict_to(allowed);
    let held = replicas.ask(0, "holds", "wait").await.expect("an answer");
    assert_eq!(&*held.subscription, allowed);
    for (number, replica) in [1, 0, 1, 0, 1, 0].into_iter().enumerate() {
        assert!(replicas.is_busy(replica, "s").await, "the session that is bound elsewhere, replica {replica}");
        assert!(replicas.is_busy(replica, &format!("new{number}")).await, "a new one, replica {replica}");
        let soft = replicas.fingerprint(replica, &format!("soft{number}")).await;
        assert!(matches!(soft, Err(GatewayError::Refused { reason: RefusalReason::Busy, .. })), "{soft:?}");
    }
    drop(held);
    // Who has the place hears of it sooner than the others.
    for replica in [1, 0] {
        let served = async || replicas.ask(replica, "s", "hi").await.map(|answer| answer.subscription);
        until("the place is free again", async || served().await.is_ok_and(|by| &*by == allowed)).await;
    }
}

async fn who_waits_gets_what_it_may_use(common: Common) {
    let one_at_once = |member: &mut SubscriptionSettings| member.max_concurrent = 1;
    let replicas = Replicas::start_trying(3, common, (2, 2, Duration::from_secs(60)), one_at_once).await;
    replicas.restrict_to("sub2");
    let held = replicas.ask(0, "holds", "wait").await.expect("an answer");
    let (served, ()) = tokio::join!(replicas.served(1, "waits"), async {
        until("the other waits", async || replicas.gateways[1].health().pool.waiting == 1).await;
        replicas.go.notify_one();
        read(held).await;
    });
    assert_eq!(&*served, "sub2");
}

async fn a_failure_leads_nowhere_else(common: Common) {
    let replicas = Replicas::start_trying(3, common, (2, 2, AT_ONCE), |_| {}).await;
    replicas.restrict_to("sub2");
    assert!(replicas.ask(0, "s", "fail").await.is_err());
    let limited = replicas.ask(1, "s", "limit").await.err();
    assert!(limited.is_some());
    let is_limited = async || {
        let refused = replicas.ask(0, "u", "hi").await.err();
        matches!(refused, Some(GatewayError::Refused { reason: RefusalReason::ProviderLimited, .. }))
    };
    until("the other replica knows", is_limited).await;
    // Its neighbour was never even thought of.
    for pool in &replicas.pools {
        let chosen: Vec<_> = pool.peek(|pool, _| pool.decisions().map(|decision| decision.chosen.clone()).collect());
        assert!(chosen.iter().flatten().all(|subscription| &**subscription == "sub2"), "{chosen:?}");
    }
}

memory_and_redis! {
    a_session_that_is_bound_where_its_client_may_not_go_moves,
    what_is_taken_is_refused_and_not_served_by_another,
    who_waits_gets_what_it_may_use,
    a_failure_leads_nowhere_else,
}
