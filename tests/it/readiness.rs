//! When the program says that new requests can be served.

use std::sync::Arc;
use std::time::Duration;

use auth_pool::backend::Backend;
use auth_pool::gateway::{Gateway as _, NamedBackend, Routing};
use auth_pool::units::MicroUsd;

use super::gateway::{Bench, Scripted, bench_with, gateway_settings, limited, read};

fn bench(backend: Arc<Scripted>, adjust: impl FnOnce(&mut auth_pool::pool::Settings)) -> Bench {
    bench_with(&[backend as Arc<dyn Backend>], gateway_settings(), adjust)
}

fn reserve() -> NamedBackend {
    NamedBackend::new("reserve", "anthropic-api", Scripted::good(), true, false, 1)
}

#[tokio::test]
async fn who_is_merely_busy_is_ready() {
    let places = bench(Scripted::good(), |settings| settings.subscriptions[0].max_concurrent = 1);
    let running = places.chat("a").await.expect("an answer");
    assert_eq!(places.gateway.health().pool.eligible, 0, "its only place is taken");
    assert_eq!(places.gateway.ready(), Ok(()));
    read(running).await;

    let slots = bench(Scripted::good(), |settings| settings.subscriptions[0].max_clients = Some(1));
    read(slots.chat("a").await.expect("an answer")).await;
    assert_eq!(slots.gateway.health().pool.eligible, 0, "an active session holds its only slot");
    assert_eq!(slots.gateway.ready(), Ok(()));
}

#[tokio::test]
async fn who_cannot_serve_is_not_ready_unless_somebody_steps_in() {
    let limited = bench(Scripted::failing(limited(3600)), |_| {});
    // Each answer costs half a dollar.
    let spent = bench(Scripted::good(), |settings| settings.subscriptions[0].weekly_budget = MicroUsd::from_usd(0.5));
    for bench in [limited, spent] {
        assert_eq!(bench.gateway.ready(), Ok(()));
        if let Ok(answer) = bench.chat("a").await {
            read(answer).await;
        }
        let why = bench.gateway.ready().expect_err("nobody can serve");
        assert!(why.contains("none of 1 subscriptions"), "{why}");
        let steps_in = Routing { chain: vec![Some(reserve())], patience: Duration::from_secs(1), ..Routing::default() };
        let comes_first = Routing { first: Some(reserve()), ..Routing::default() };
        for routing in [steps_in, comes_first] {
            bench.gateway.route(routing);
            assert_eq!(bench.gateway.ready(), Ok(()));
            let answer = bench.chat("b").await.expect("the reserve answers");
            assert!(answer.backend.is_some());
            read(answer).await;
        }
        bench.gateway.drain();
        assert!(bench.gateway.ready().is_err(), "it stops");
    }
}
