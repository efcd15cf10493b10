//! Who may use which subscription.

use std::collections::BTreeSet;

use super::*;

fn of(organization: &str, id: &str) -> SubscriptionSettings {
    SubscriptionSettings { organization: Some(organization.into()), ..member(id) }
}

fn only(realm: Realm, listed: Option<&[&str]>) -> Arc<Only> {
    let subscriptions = listed.map(|ids| ids.iter().map(|id| Arc::from(*id)).collect::<BTreeSet<_>>());
    Arc::new(Only { subscriptions, realm })
}

fn acme(session: &str) -> Ask<'static> {
    Ask { only: Some(only(Realm::Organization("acme".into()), None)), ..ask(session) }
}

fn house(session: &str) -> Ask<'static> {
    Ask { only: Some(only(Realm::House, None)), ..ask(session) }
}

fn causes(decision: &Decision) -> Vec<(String, Option<Cause>)> {
    let cause = |candidate: &Candidate| candidate.excluded.map(|exclusion| exclusion.cause);
    decision.candidates.iter().map(|candidate| (candidate.subscription.to_string(), cause(candidate))).collect()
}

#[test]
fn organisations_and_the_house_keep_to_their_own() {
    let mut world = World::with(settings(vec![member("ours"), of("acme", "a1"), of("acme", "a2"), of("other", "o1")]));
    let mut served = BTreeSet::new();
    for number in 0..10 {
        served.insert(world.acquire(&acme(&format!("a{number}"))).unwrap().subscription.to_string());
        assert_eq!(&*world.acquire(&house(&format!("h{number}"))).unwrap().subscription, "ours");
    }
    assert_eq!(served, BTreeSet::from(["a1".to_owned(), "a2".to_owned()]));
    let decision = world.acquire(&acme("new")).unwrap().decision;
    let foreign: BTreeSet<_> = causes(&decision).into_iter().filter(|(_, cause)| cause.is_some()).collect();
    let not_allowed = ["ours", "o1"].map(|id| (id.to_owned(), Some(Cause::NotAllowed)));
    assert_eq!(foreign, BTreeSet::from(not_allowed));
    // Where there is nobody to keep apart, everybody's are used.
    let every: BTreeSet<_> = (0..30).map(|number| world.request(&format!("e{number}")).subscription).collect();
    assert_eq!(every.len(), 4);
}

#[test]
fn an_organisation_without_a_subscription_is_refused() {
    let mut world = World::with(settings(vec![member("ours")]));
    let refusal = world.acquire(&acme("a")).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::NoneHealthy);
    assert_eq!(causes(&refusal.decision), [("ours".to_owned(), Some(Cause::NotAllowed))]);
    // Nor is it told how others fare.
    world.observe("ours", &report(LimitStatus::Rejected, Some(Window::FiveHour), Some(world.now + HOUR)));
    let refusal = world.acquire(&acme("a")).unwrap_err();
    assert_eq!((refusal.reason, refusal.retry_at), (RefusalReason::NoneHealthy, None));
}

#[test]
fn a_list_of_subscriptions_is_kept_to_also_by_a_session_that_is_elsewhere() {
    let mut world = World::with(settings(vec![member("s0"), member("s1"), member("s2")]));
    let home = world.request("a").subscription;
    let others: Vec<_> = ["s0", "s1", "s2"].into_iter().filter(|id| *id != &*home).collect();
    let bound = Ask { only: Some(only(Realm::Every, Some(&others[..1]))), ..ask("a") };
    let grant = world.acquire(&bound).unwrap();
    assert_eq!(&*grant.subscription, others[0]);
    assert!(matches!(&grant.effects[..], [Effect::Rotation { .. }]), "{:?}", grant.effects);
    // A list that names nobody of the pool leaves nobody.
    let stranger = Ask { only: Some(only(Realm::Every, Some(&["gone"]))), ..ask("b") };
    assert_eq!(reason(world.acquire(&stranger)), RefusalReason::NoneHealthy);
    // Both conditions count.
    let both = Ask { only: Some(only(Realm::Organization("acme".into()), Some(&["s0"]))), ..ask("c") };
    assert!(world.acquire(&both).is_err());
}

#[test]
fn an_organisation_may_choose_in_its_own_way() {
    let members = vec![of("acme", "a1"), of("acme", "a2"), of("other", "o1"), of("other", "o2")];
    let by_priority = SelectionSettings { strategy: Strategy::Priority, ..SelectionSettings::default() };
    let mut world = World::with(Settings {
        selection: SelectionSettings { strategy: Strategy::RoundRobin, ..SelectionSettings::default() },
        organizations: HashMap::from([("acme".into(), by_priority)]),
        ..settings(members)
    });
    for number in 0..10 {
        assert_eq!(&*world.acquire(&acme(&format!("a{number}"))).unwrap().subscription, "a1");
    }
    let other =
        |number| Ask { only: Some(only(Realm::Organization("other".into()), None)), ..ask(&format!("o{number}")) };
    let turns: Vec<_> = (0..4).map(|number| world.acquire(&other(number)).unwrap().subscription.to_string()).collect();
    assert_eq!(turns, ["o1", "o2", "o1", "o2"]);
}

#[test]
fn lots_are_fair_among_few() {
    let random = SelectionSettings { strategy: Strategy::Random, fallbacks: [None; 2], seed: 7 };
    let members = vec![of("acme", "a1"), of("acme", "a2"), of("acme", "a3")];
    let members =
        members.into_iter().map(|it| SubscriptionSettings { max_clients: Some(10_000), max_concurrent: 10_000, ..it });
    let mut world = World::with(Settings { selection: random, ..settings(members.collect()) });
    let mut counts: HashMap<Arc<str>, u32> = HashMap::new();
    for number in 0..3000 {
        *counts.entry(world.acquire(&acme(&number.to_string())).unwrap().subscription).or_default() += 1;
    }
    assert!(counts.len() == 3 && counts.values().all(|count| (800..1200).contains(count)), "{counts:?}");
}

#[test]
fn a_full_subscription_of_the_organisation_gives_way_by_its_idle_session() {
    let small = SubscriptionSettings { max_clients: Some(1), ..of("acme", "a1") };
    let mut world = World::with(settings(vec![small, member("ours")]));
    let grant = world.acquire(&acme("old")).unwrap();
    world.finish(&grant, Outcome::Completed, 0.1);
    assert_eq!(reason(world.acquire(&acme("early"))), RefusalReason::Busy);
    world.now = world.now + MINUTE * 6;
    let grant = world.acquire(&acme("new")).unwrap();
    assert_eq!((&*grant.subscription, grant.decision.reason), ("a1", Reason::GaveWay));
}

#[test]
fn idle_sessions_are_moved_within_their_organisation_only() {
    let mut world = World::with(settings(vec![of("acme", "a1"), of("other", "o1"), of("acme", "a2")]));
    world.use_up("a1", 40.0);
    world.use_up("a2", 20.0);
    for session in ["x", "y"] {
        let grant = world.acquire(&Ask { exclude: &["a2".into()], ..acme(session) }).unwrap();
        world.finish(&grant, Outcome::Completed, 0.1);
    }
    world.now = world.now + MINUTE * 6;
    let moved = world.pool.rebalance(world.now);
    assert_eq!(moved.len(), 2, "{moved:?}");
    assert!(moved.iter().all(|effect| matches!(effect, Effect::Moved { to, .. } if &**to == "a2")), "{moved:?}");
}

#[test]
fn idle_sessions_are_not_moved_to_where_their_keys_may_not_go() {
    let mut world = World::with(settings(vec![member("s0"), member("s1")]));
    let listed = |ids: &[&str], session| Ask { only: Some(only(Realm::House, Some(ids))), ..ask(session) };
    for (ids, session) in [(&["s0"][..], "bound"), (&["s0", "s1"], "free")] {
        let grant = world.acquire(&Ask { exclude: &["s1".into()], ..listed(ids, session) }).unwrap();
        world.finish(&grant, Outcome::Completed, 20.0);
    }
    world.now = world.now + MINUTE * 6;
    let homes = |effects: &[Effect]| {
        let to = effects.iter().filter_map(|effect| match effect {
            Effect::Moved { to, .. } => Some(to.to_string()),
            _ => None,
        });
        to.collect::<Vec<_>>()
    };
    assert_eq!(homes(&world.pool.rebalance(world.now)), ["s1"], "the one that may");
    assert_eq!(homes(&world.pool.rebalance(world.now)), [""; 0], "nor is it tried again and again");
    let grant = world.acquire(&listed(&["s0"], "bound")).unwrap();
    assert_eq!(&*grant.subscription, "s0");
    world.finish(&grant, Outcome::Completed, 0.1);
    // What counts is what its key may use now.
    let grant = world.acquire(&Ask { exclude: &["s1".into()], ..house("bound") }).unwrap();
    world.finish(&grant, Outcome::Completed, 0.1);
    world.now = world.now + MINUTE * 6;
    assert_eq!(homes(&world.pool.rebalance(world.now)).len(), 1);
}

#[test]
fn a_cycle_does_not_look_through_all_sessions_for_one_that_may_move() {
    let mut settings = settings(vec![member("s0"), member("s1")]);
    settings.max_clients = 5_000;
    let mut world = World::with(settings);
    let use_once = |world: &mut World, ids: &[&str], session: &str| {
        let only = Some(only(Realm::House, Some(ids)));
        let grant = world.acquire(&Ask { exclude: &["s1".into()], only, ..ask(session) }).unwrap();
        world.finish(&grant, Outcome::Completed, 0.02);
    };
    for number in 0..1_000 {
        use_once(&mut world, &["s0"], &format!("bound {number}"));
    }
    use_once(&mut world, &["s0", "s1"], "free");
    world.now = world.now + MINUTE * 6;
    assert!(world.pool.rebalance(world.now).is_empty(), "every allocation would wait meanwhile");
    // One of them is used again, so the other one comes among the first.
    let grant = world.acquire(&Ask { only: Some(only(Realm::House, Some(&["s0"]))), ..ask("bound 0") }).unwrap();
    world.finish(&grant, Outcome::Completed, 0.02);
    assert_eq!(world.pool.rebalance(world.now).len(), 1);
}

#[test]
fn a_subscription_can_change_hands() {
    let mut world = World::with(settings(vec![of("acme", "a1"), member("ours")]));
    assert!(world.acquire(&acme("a")).is_ok());
    world.pool.apply(world.now, settings(vec![member("a1"), of("acme", "ours")]));
    assert_eq!(&*world.acquire(&acme("a")).unwrap().subscription, "ours");
    assert_eq!(&*world.acquire(&house("h")).unwrap().subscription, "a1");
}
