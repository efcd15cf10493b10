//! One channel and its endpoint: retries, refusals, bounds.

use std::time::{Duration, Instant};

use auth_pool::alert::{Counts, Outcome, Pace, Sender, Target, signature};
use auth_pool::runtime::tasks::Tasks;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::{Endpoint, LONG, QUICK, Says, bench, until};

async fn fate(outcome: oneshot::Receiver<Outcome>) -> Outcome {
    timeout(LONG, outcome).await.expect("in time").expect("an outcome")
}

fn given_up(outcome: Outcome) -> String {
    match outcome {
        Outcome::GivenUp { cause } => cause,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_message_arrives_signed() {
    let bench = bench();
    let mut endpoint = bench.endpoint(&[Says::Status("204 No Content")]).await;
    let sender = bench.sender(endpoint.target(), QUICK);
    let outcome = sender.send_noted(json!({ "hello": "wörld" }));
    assert_eq!(fate(outcome).await, Outcome::Delivered { attempts: 1 });
    let received = endpoint.next().await;
    assert_eq!(received.json(), json!({ "hello": "wörld" }));
    assert!(received.head.starts_with("POST /hook HTTP/1.1"));
    assert_eq!(received.header("content-type"), Some("application/json"));
    let expected = signature("s3cret", received.body.as_bytes());
    assert_eq!(received.header("x-auth-pool-signature"), Some(expected.as_str()));
    assert_eq!(sender.counts(), Counts { delivered: 1, ..Counts::default() });
}

#[tokio::test]
async fn without_a_secret_nothing_is_signed() {
    let bench = bench();
    let mut endpoint = bench.endpoint(&[Says::Status("200 OK")]).await;
    let sender = bench.sender(Target { secret: None, ..endpoint.target() }, QUICK);
    sender.send(json!({}));
    assert_eq!(endpoint.next().await.header("x-auth-pool-signature"), None);
}

#[tokio::test]
async fn an_endpoint_that_fails_once_gets_the_same_message_again() {
    let bench = bench();
    let answers = [Says::Status("500 Internal Server Error"), Says::Status("200 OK")];
    let mut endpoint = bench.endpoint(&answers).await;
    let sender = bench.sender(endpoint.target(), QUICK);
    let outcome = sender.send_noted(json!({ "id": 1 }));
    assert_eq!(fate(outcome).await, Outcome::Delivered { attempts: 2 });
    assert_eq!(endpoint.next().await.body, endpoint.next().await.body);
    assert_eq!(sender.counts(), Counts { delivered: 1, retried: 1, ..Counts::default() });
}

#[tokio::test]
async fn an_endpoint_that_keeps_failing_is_given_up_after_all_attempts() {
    let bench = bench();
    let mut endpoint = bench.endpoint(&[Says::Status("503 Service Unavailable")]).await;
    let sender = bench.sender(endpoint.target(), QUICK);
    let cause = given_up(fate(sender.send_noted(json!({}))).await);
    assert_eq!(cause, "it answered 503 Service Unavailable");
    for _ in 0..3 {
        endpoint.next().await;
    }
    assert!(endpoint.received.try_recv().is_err(), "three attempts are three");
    let counts = Counts { retried: 2, given_up: 1, last_failure: Some(cause), ..Counts::default() };
    assert_eq!(sender.counts(), counts);
}

#[tokio::test]
async fn a_request_for_patience_is_heard_within_bounds() {
    let bench = bench();
    let busy = Says::With("429 Too Many Requests", "retry-after: 86400".to_owned());
    let endpoint = bench.endpoint(&[busy, Says::Status("200 OK")]).await;
    let sender = bench.sender(endpoint.target(), QUICK);
    assert_eq!(fate(sender.send_noted(json!({}))).await, Outcome::Delivered { attempts: 2 });
}

#[tokio::test]
async fn what_will_never_work_is_tried_once() {
    let bench = bench();
    for status in ["404 Not Found", "410 Gone", "400 Bad Request", "401 Unauthorized"] {
        let mut endpoint = bench.endpoint(&[Says::Status(status)]).await;
        let sender = bench.sender(endpoint.target(), QUICK);
        assert_eq!(given_up(fate(sender.send_noted(json!({}))).await), format!("it answered {status}"));
        endpoint.next().await;
        let counts = sender.counts();
        assert_eq!((counts.given_up, counts.retried), (1, 0));
    }
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let bench = bench();
    let mut private = bench.endpoint(&[Says::Status("200 OK")]).await;
    for status in ["301 Moved Permanently", "302 Found", "307 Temporary Redirect", "308 Permanent Redirect"] {
        let answer = Says::With(status, format!("location: {}", private.url()));
        let endpoint = bench.endpoint(&[answer]).await;
        let sender = bench.sender(endpoint.target(), QUICK);
        let cause = given_up(fate(sender.send_noted(json!({}))).await);
        assert_eq!(cause, format!("it answered {status}, and redirects are not followed"));
    }
    assert!(private.received.try_recv().is_err(), "nobody came");
}

#[tokio::test]
async fn an_endpoint_that_is_down_gets_the_message_when_it_is_back() {
    let bench = bench();
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("an address");
    drop(listener);
    let target = Target { url: format!("http://{addr}/"), secret: None, allow_hosts: vec!["127.0.0.1".to_owned()] };
    let sender = bench.sender(target, Pace { attempts: 10_000, ..QUICK });
    let (first, second) = (sender.send_noted(json!(1)), sender.send_noted(json!(2)));
    until(|| sender.counts().retried >= 3).await;
    assert_eq!((sender.counts().waiting, sender.counts().delivered), (2, 0));
    let listener = TcpListener::bind(addr).await.expect("the same port");
    let mut endpoint = Endpoint::on(listener, &bench.tasks, &[Says::Status("200 OK")]);
    assert!(matches!(fate(first).await, Outcome::Delivered { attempts } if attempts > 3));
    assert_eq!(fate(second).await, Outcome::Delivered { attempts: 1 });
    assert_eq!((endpoint.next().await.json(), endpoint.next().await.json()), (json!(1), json!(2)), "in order");
    assert_eq!((sender.counts().waiting, sender.counts().last_failure), (0, None));
}

#[tokio::test]
async fn an_endpoint_that_hangs_is_given_up_and_holds_nobody_up() {
    let bench = bench();
    let mut endpoint = bench.endpoint(&[Says::Nothing]).await;
    let pace = Pace { attempt_limit: Duration::from_millis(250), attempts: 2, queue: 1000, ..QUICK };
    let sender = bench.sender(endpoint.target(), pace);
    let cause = given_up(fate(sender.send_noted(json!({}))).await);
    assert_eq!(cause, "it did not answer in time");
    endpoint.next().await;
    let begun = Instant::now();
    for number in 0..500 {
        sender.send(json!(number));
    }
    // One attempt alone takes a quarter of a second.
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_full_queue_drops_the_newest_and_counts_it() {
    let bench = bench();
    let mut endpoint = bench.endpoint(&[Says::Nothing]).await;
    let sender = bench.sender(endpoint.target(), Pace { queue: 2, ..QUICK });
    sender.send(json!("in the hands of the endpoint"));
    endpoint.next().await;
    sender.send(json!("waits"));
    let mut waits = sender.send_noted(json!("waits, too"));
    assert_eq!(fate(sender.send_noted(json!("one too many"))).await, Outcome::Dropped);
    assert!(waits.try_recv().is_err());
    let counts = sender.counts();
    assert_eq!((counts.waiting, counts.dropped), (3, 1));
}

#[tokio::test]
async fn names_and_addresses_of_this_machine_are_refused_unless_allowed() {
    let bench = bench();
    let mut endpoint = bench.endpoint(&[Says::Status("200 OK")]).await;
    let port = endpoint.addr.port();
    let blocked = "its address is not public, and its host is not allowed by name";
    // The first is only known to be private once it is resolved.
    for host in ["localhost", "LOCALHOST.", "127.0.0.1", "[::1]", "2130706433", "169.254.169.254"] {
        let target =
            Target { url: format!("https://{host}:{port}/"), secret: None, allow_hosts: vec!["example.com".into()] };
        let sender = bench.sender(target, QUICK);
        assert_eq!(given_up(fate(sender.send_noted(json!({}))).await), blocked, "{host}");
        assert_eq!(sender.counts().retried, 0);
    }
    let plain = Target { url: endpoint.url(), secret: None, allow_hosts: Vec::new() };
    let cause = given_up(fate(bench.sender(plain, QUICK).send_noted(json!({}))).await);
    assert_eq!(cause, "its address is not https, and its host is not allowed by name");
    assert!(endpoint.received.try_recv().is_err(), "nobody came");

    let allowed =
        Target { url: format!("http://localhost:{port}/"), secret: None, allow_hosts: vec!["localhost".to_owned()] };
    assert_eq!(fate(bench.sender(allowed, QUICK).send_noted(json!({}))).await, Outcome::Delivered { attempts: 1 });
    endpoint.next().await;
}

#[tokio::test]
async fn a_new_address_takes_what_waits_at_once() {
    let bench = bench();
    let mut old = bench.endpoint(&[Says::Nothing]).await;
    let mut new = bench.endpoint(&[Says::Status("200 OK")]).await;
    let sender = bench.sender(old.target(), QUICK);
    let (first, second) = (sender.send_noted(json!(1)), sender.send_noted(json!(2)));
    old.next().await;
    sender.retarget(Some(new.target()));
    assert_eq!((new.next().await.json(), new.next().await.json()), (json!(1), json!(2)));
    assert!(matches!(fate(first).await, Outcome::Delivered { .. }));
    assert!(matches!(fate(second).await, Outcome::Delivered { .. }));
    sender.retarget(None);
    assert_eq!(given_up(fate(sender.send_noted(json!(3))).await), "the channel has no address");
}

#[tokio::test]
async fn what_waits_is_sent_before_the_end_but_nobody_waits_long() {
    let bench = bench();
    let mut good = bench.endpoint(&[Says::Status("200 OK")]).await;
    let tasks = Tasks::default();
    let stop = CancellationToken::new();
    let sender = Sender::start("webhook", Some(good.target()), QUICK, &tasks, &stop);
    for number in 0..5 {
        sender.send(json!(number));
    }
    stop.cancel();
    timeout(LONG, tasks.finished()).await.expect("it ends");
    for number in 0..5 {
        assert_eq!(good.next().await.json(), json!(number));
    }
    assert_eq!(sender.counts().delivered, 5);

    let mut hangs = bench.endpoint(&[Says::Nothing]).await;
    let stop = CancellationToken::new();
    let pace = Pace { flush_limit: Duration::from_millis(10), ..QUICK };
    let sender = Sender::start("webhook", Some(hangs.target()), pace, &tasks, &stop);
    sender.send(json!(1));
    sender.send(json!(2));
    hangs.next().await;
    stop.cancel();
    timeout(LONG, tasks.finished()).await.expect("it ends");
    assert_eq!((sender.counts().given_up, sender.counts().waiting), (2, 0));
}
