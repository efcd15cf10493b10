//! What a client key may use of the pool.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use auth_pool::backend::Backend;
use auth_pool::gateway::{Call, ClientRules, Gateway as _, GatewayError, RefusalReason};
use auth_pool::pool::{Only, Priority, Realm};
use auth_pool::runtime::clock;
use auth_pool::units::MicroUsd;

use super::gateway::{Bench, Scripted, bench_with, call, gateway_settings, read};

fn bench(subscriptions: usize) -> Bench {
    let backends: Vec<_> = (0..subscriptions).map(|_| Scripted::good() as Arc<dyn Backend>).collect();
    bench_with(&backends, gateway_settings(), |settings| {
        for subscription in &mut settings.subscriptions {
            if &*subscription.id == "sub2" {
                subscription.organization = Some("acme".into());
            }
        }
    })
}

fn rules() -> ClientRules {
    let only = Only { subscriptions: None, realm: Realm::House };
    ClientRules { only: Some(Arc::new(only)), weekly_budget: None, max_priority: Priority::High }
}

fn apply(bench: &Bench, rules: &[(&str, ClientRules)]) {
    let rules: HashMap<Arc<str>, ClientRules> =
        rules.iter().map(|(name, rules)| ((*name).into(), rules.clone())).collect();
    bench.gateway.clients().apply(rules);
}

fn by(client: &str, session: &str) -> Call {
    Call { client: client.into(), ..call(session) }
}

#[tokio::test]
async fn a_key_is_served_by_its_own_organisation_and_its_own_list() {
    let bench = bench(3);
    let own = |realm| ClientRules { only: Some(Arc::new(Only { subscriptions: None, realm })), ..rules() };
    let listed = Only { subscriptions: Some(["sub3".into()].into()), realm: Realm::House };
    let listed = ClientRules { only: Some(Arc::new(listed)), ..rules() };
    let nobody = own(Realm::Organization("empty".into()));
    let acme = own(Realm::Organization("acme".into()));
    apply(&bench, &[("house", rules()), ("acme/ci", acme), ("third", listed), ("empty/ci", nobody)]);
    for number in 0..5 {
        let served = async |client| {
            let answer = bench.gateway.chat(by(client, &format!("s{number}"))).await.expect("an answer");
            let subscription = answer.subscription.to_string();
            read(answer).await;
            subscription
        };
        assert_eq!(served("acme/ci").await, "sub2");
        assert_eq!(served("third").await, "sub3");
        assert_ne!(served("house").await, "sub2");
    }
    let refused = bench.gateway.chat(by("empty/ci", "s")).await.err();
    assert!(matches!(refused, Some(GatewayError::Refused { reason: RefusalReason::NoneHealthy, .. })), "{refused:?}");
    let decision = &bench.gateway.debug()["decisions"][0];
    assert_eq!(decision["candidates"][0]["excluded"]["cause"], "not_allowed", "{decision}");
}

#[tokio::test]
async fn a_key_spends_its_budget_and_no_more() {
    let bench = bench(1);
    let budget = ClientRules { weekly_budget: Some(MicroUsd::from_usd(1.2)), ..rules() };
    apply(&bench, &[("ann", budget.clone()), ("bob", rules())]);
    // Each answer costs half a dollar.
    for number in 0..3 {
        read(bench.gateway.chat(by("ann", &format!("s{number}"))).await.expect("an answer")).await;
    }
    let spent = bench.gateway.clients().spent(clock::now(), "ann");
    assert_eq!(spent, MicroUsd::from_usd(1.5));
    let refused = bench.gateway.chat(by("ann", "s4")).await.err();
    let Some(GatewayError::ClientBudget { retry_after: Some(wait), .. }) = refused else { panic!("{refused:?}") };
    let week = Duration::from_secs(7 * 24 * 3600);
    assert!(wait > week && wait <= week + Duration::from_secs(3600), "{wait:?}");
    assert!(bench.gateway.chat(by("bob", "s4")).await.is_ok());
    // A larger budget counts at once.
    apply(&bench, &[("ann", ClientRules { weekly_budget: Some(MicroUsd::from_usd(2.0)), ..budget })]);
    read(bench.gateway.chat(by("ann", "s4")).await.expect("an answer")).await;
    assert_eq!(bench.gateway.clients().spent(clock::now(), "ann"), MicroUsd::from_usd(2.0));
}

#[tokio::test]
async fn an_answer_that_nobody_reads_to_its_end_is_paid_for_as_well() {
    let bench = bench(1);
    apply(&bench, &[("ann", ClientRules { weekly_budget: Some(MicroUsd::from_usd(1.0)), ..rules() })]);
    drop(bench.gateway.chat(by("ann", "s")).await.expect("an answer"));
    assert!(bench.gateway.clients().spent(clock::now(), "ann") > MicroUsd::ZERO);
}
