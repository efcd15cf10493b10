//! How connections begin, live and end.

use std::time::{Duration, Instant};

use auth_pool::runtime::tasks::Tasks;
use auth_pool::server::Settings;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;

use super::gateway::{FakeGateway, Script, finished, follow, text};
use super::wire::{CHAT, Fixture, chat, patiently, request, settings, start, start_with};

fn streamed() -> Vec<u8> {
    request("POST", CHAT, &[], chat(&json!({ "stream": true })).to_string().as_bytes())
}

fn whole() -> Vec<u8> {
    request("POST", CHAT, &[], chat(&json!({})).to_string().as_bytes())
}

/// What "at once" may take on a very busy machine; it is a few milliseconds on a quiet one.
const AT_ONCE: Duration = Duration::from_secs(3);

#[tokio::test]
async fn a_client_that_leaves_a_silent_stream_cancels_it_at_once() {
    let (sender, script) = follow();
    let fixture = start(script).await;
    let mut wire = fixture.connect().await;
    wire.send(&streamed()).await;
    wire.read_until("assistant").await;
    sender.send(text("x")).unwrap();
    wire.read_until("\"x\"").await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(fixture.gateway.open(), 1);
    drop(wire);
    assert!(fixture.all_closed().await < AT_ONCE);
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_word_cancels_its_request_at_once() {
    for body in [streamed(), whole()] {
        let fixture = start(Script::Hang).await;
        let mut wire = fixture.connect().await;
        wire.send(&body).await;
        fixture.wait_for_open(1).await;
        drop(wire);
        assert!(fixture.all_closed().await < AT_ONCE);
    }
    // In the middle of an answer that is being gathered.
    let (sender, script) = follow();
    let fixture = start(script).await;
    let mut wire = fixture.connect().await;
    wire.send(&whole()).await;
    fixture.wait_for_open(1).await;
    sender.send(text("x")).unwrap();
    drop(wire);
    assert!(fixture.all_closed().await < AT_ONCE);
}

#[tokio::test]
async fn two_hundred_clients_that_leave_leave_nothing_behind() {
    let fixture = start(Script::Echo(Duration::from_mins(1))).await;
    for _ in 0..200 {
        let mut wire = fixture.connect().await;
        wire.send(&streamed()).await;
        wire.read_until("assistant").await;
    }
    assert!(fixture.all_closed().await < AT_ONCE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fifty_streams_at_once_do_not_mix() {
    let fixture = start(Script::Echo(Duration::from_millis(3))).await;
    let streams = (0..50).map(|number| {
        let fixture = &fixture;
        async move {
            let prompt: Vec<String> = (0..20).map(|word| format!("{number}.{word}")).collect();
            let messages = json!([{ "role": "user", "content": prompt.join(" ") }]);
            let answer = fixture.post(&chat(&json!({ "stream": true, "messages": messages }))).await;
            let frames = answer.text().split("\n\n").filter_map(|frame| frame.strip_prefix("data: "));
            let words: Vec<String> = frames
                .filter_map(|frame| serde_json::from_str::<serde_json::Value>(frame).ok())
                .filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str().map(str::to_owned))
                .filter(|word| !word.is_empty())
                .collect();
            assert_eq!(words, prompt);
            assert!(answer.text().ends_with("data: [DONE]\n\n"));
        }
    });
    futures_util::future::join_all(streams).await;
    fixture.all_closed().await;
}

#[tokio::test]
async fn requests_may_follow_each_other_without_waiting() {
    let fixture = start(Script::Say(vec![text("x"), finished()])).await;
    let mut wire = fixture.connect().await;
    wire.send(&[whole(), request("GET", "/health", &[], b""), whole()].concat()).await;
    for object in [json!("chat.completion"), json!(null), json!("chat.completion")] {
        let answer = wire.next_answer().await;
        assert_eq!(answer.status, 200);
        assert_eq!(answer.json()["object"], object);
    }
}

async fn h2(fixture: &Fixture) -> http2::SendRequest<Full<Bytes>> {
    let io = TokioIo::new(TcpStream::connect(fixture.address).await.unwrap());
    let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
    Tasks::default().spawn("client", connection);
    sender
}

fn h2_request(method: &str, path: &str, body: String) -> hyper::Request<Full<Bytes>> {
    let uri = format!("http://localhost{path}");
    hyper::Request::builder().method(method).uri(uri).body(Full::new(body.into())).unwrap()
}

#[tokio::test]
async fn http2_without_tls_works_and_a_reset_cancels() {
    let (sender, script) = follow();
    let fixture = start(script).await;
    let mut client = h2(&fixture).await;
    let stream = chat(&json!({ "stream": true })).to_string();
    let mut answer = client.send_request(h2_request("POST", CHAT, stream)).await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert!(answer.headers().contains_key("x-request-id"));
    // Another request on the same connection meanwhile.
    let health = client.send_request(h2_request("GET", "/health", String::new())).await.unwrap();
    assert_eq!(health.status(), 200);
    let health = health.into_body().collect().await.unwrap().to_bytes();
    assert!(health.starts_with(b"{\"status\":\"ok\""));
    let head = client.send_request(h2_request("HEAD", "/health", String::new())).await.unwrap();
    assert_eq!(head.headers()["content-length"], health.len().to_string().as_str());
    assert!(head.into_body().collect().await.unwrap().to_bytes().is_empty());

    sender.send(text("x")).unwrap();
    let mut seen = Vec::new();
    while !String::from_utf8_lossy(&seen).contains("\"x\"") {
        seen.extend(answer.frame().await.unwrap().unwrap().into_data().unwrap());
    }
    // The stream ends, the connection stays.
    drop(answer);
    assert!(fixture.all_closed().await < AT_ONCE);
    let health = client.send_request(h2_request("GET", "/health", String::new())).await.unwrap();
    assert_eq!(health.status(), 200);
}

#[tokio::test]
async fn http2_requests_that_wait_are_cancelled_by_a_reset() {
    let fixture = start(Script::Hang).await;
    let mut client = h2(&fixture).await;
    let pending = client.send_request(h2_request("POST", CHAT, chat(&json!({})).to_string()));
    assert!(tokio::time::timeout(Duration::from_millis(100), pending).await.is_err());
    assert!(fixture.all_closed().await < AT_ONCE);
    // The host rule holds for HTTP/2, too.
    let mut foreign = h2_request("GET", "/v1/models", String::new());
    *foreign.uri_mut() = "http://rebound.example/v1/models".parse().unwrap();
    assert_eq!(client.send_request(foreign).await.unwrap().status(), 403);
}

#[tokio::test]
async fn a_connection_without_a_request_is_closed() {
    let header_read_timeout = Duration::from_millis(100);
    let settings = Settings { header_read_timeout, idle_timeout: header_read_timeout, ..settings() };
    let fixture = start_with(settings, FakeGateway::new(Script::Say(vec![finished()]))).await;
    // Nothing, half a head, half of HTTP/2's preface, and all of it.
    for bytes in [&b""[..], b"GET / HTTP/1.1\r\nhost: loc", b"PRI * HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let started = Instant::now();
        let mut wire = fixture.connect().await;
        wire.send(bytes).await;
        wire.read_to_end().await;
        assert!(started.elapsed() >= header_read_timeout, "{bytes:?}");
        assert!(started.elapsed() < header_read_timeout * 10, "{bytes:?}: {:?}", started.elapsed());
    }
    // After a request.
    let mut wire = fixture.connect().await;
    wire.send(&request("GET", "/health", &[], b"")).await;
    wire.next_answer().await;
    assert!(wire.read_to_end().await.is_empty());
    let mut client = h2(&fixture).await;
    client.send_request(h2_request("GET", "/health", String::new())).await.unwrap();
    patiently(async {
        while client.ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_long_answer_is_not_taken_for_idleness() {
    let short = Duration::from_millis(50);
    let settings = Settings {
        header_read_timeout: short,
        idle_timeout: short,
        stall_timeout: short,
        sse_keep_alive: short,
        ..settings()
    };
    let fixture = start_with(settings, FakeGateway::new(Script::Echo(Duration::from_millis(400)))).await;
    let answer = fixture.post(&chat(&json!({ "stream": true }))).await;
    assert!(answer.text().contains("[DONE]"));
    assert_eq!(fixture.post(&chat(&json!({}))).await.status, 200);
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let settings =
        Settings { stall_timeout: Duration::from_millis(200), sse_keep_alive: Duration::from_millis(50), ..settings() };
    let fixture = start_with(settings, FakeGateway::new(Script::Flood)).await;
    let mut wire = fixture.connect().await;
    wire.send(&streamed()).await;
    fixture.wait_for_open(1).await;
    fixture.all_closed().await;
    drop(wire);

    // HTTP/2 stalls by its own windows, not by the socket's.
    let mut client = h2(&fixture).await;
    let stream = chat(&json!({ "stream": true })).to_string();
    let answer = client.send_request(h2_request("POST", CHAT, stream)).await.unwrap();
    fixture.wait_for_open(1).await;
    fixture.all_closed().await;
    drop(answer);
    // Only the stream has ended.
    let health = client.send_request(h2_request("GET", "/health", String::new())).await.unwrap();
    assert_eq!(health.status(), 200);
}

#[tokio::test]
async fn a_stalled_stream_does_not_end_the_others_of_its_connection() {
    // The stream that is read outlasts the timeout, but is asked for more far more often.
    let (stall_timeout, sse_keep_alive) = (Duration::from_secs(2), Duration::from_millis(50));
    let settings = Settings { stall_timeout, sse_keep_alive, ..settings() };
    let gateway = FakeGateway::by_prompt(Script::Flood, Script::Echo(Duration::from_millis(600)));
    let fixture = start_with(settings, gateway).await;
    let mut client = h2(&fixture).await;
    let ask = |prompt: &str| {
        let messages = json!([{ "role": "user", "content": prompt }]);
        h2_request("POST", CHAT, chat(&json!({ "stream": true, "messages": messages })).to_string())
    };
    let stalled = client.send_request(ask("?")).await.unwrap();
    let read = client.send_request(ask("one two three four five six")).await.unwrap();
    let body = patiently(read.into_body().collect()).await.unwrap().to_bytes();
    let text = String::from_utf8(body.to_vec()).unwrap();
    assert!(text.contains("\"six\"") && text.ends_with("data: [DONE]\n\n"), "{text}");
    fixture.all_closed().await;
    // It had been sent a window full, and was reset then.
    assert!(patiently(stalled.into_body().collect()).await.is_err());
}

#[tokio::test]
async fn draining_ends_what_runs_and_takes_nothing_new() {
    let (sender, script) = follow();
    let fixture = start(script).await;
    let mut busy = fixture.connect().await;
    busy.send(&streamed()).await;
    busy.read_until("assistant").await;
    let mut idle = fixture.connect().await;
    idle.send(&request("GET", "/health", &[], b"")).await;
    idle.next_answer().await;
    let mut silent = fixture.connect().await;

    fixture.drain.cancel();
    assert!(idle.read_to_end().await.is_empty());
    assert!(silent.read_to_end().await.is_empty());
    patiently(async {
        while TcpStream::connect(fixture.address).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
    assert!(!fixture.running.is_finished());
    sender.send(text("last words")).unwrap();
    sender.send(finished()).unwrap();
    busy.read_until("last words").await;
    busy.read_until("data: [DONE]\n\n").await;
    patiently(fixture.running).await.unwrap();
}

#[tokio::test]
async fn killing_lets_the_last_frame_out_and_ends_the_rest() {
    let (sender, script) = follow();
    let fixture = start(script).await;
    let mut busy = fixture.connect().await;
    busy.send(&streamed()).await;
    busy.read_until("assistant").await;
    fixture.drain.cancel();
    fixture.kill.cancel();
    sender.send(Err(auth_pool::gateway::GatewayError::ShuttingDown)).unwrap();
    let rest = String::from_utf8(busy.read_to_end().await).unwrap();
    assert!(rest.contains("\"code\":\"shutting_down\"") && !rest.contains("[DONE]"), "{rest}");
    patiently(fixture.running).await.unwrap();

    // A gateway that says nothing holds nobody up.
    let fixture = start(Script::Hang).await;
    let mut busy = fixture.connect().await;
    busy.send(&whole()).await;
    fixture.wait_for_open(1).await;
    fixture.kill.cancel();
    fixture.drain.cancel();
    patiently(fixture.running).await.unwrap();
    assert_eq!(fixture.gateway.open(), 0);
    assert!(busy.read_to_end().await.is_empty());
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_their_turn() {
    let fixture =
        start_with(Settings { max_connections: 2, ..settings() }, FakeGateway::new(Script::Say(vec![finished()])))
            .await;
    let first = fixture.connect().await;
    let second = fixture.connect().await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut third = fixture.connect().await;
    third.send(&request("GET", "/health", &[], b"")).await;
    let early = tokio::time::timeout(Duration::from_millis(100), third.next_answer()).await;
    assert!(early.is_err());
    drop(first);
    assert_eq!(third.next_answer().await.status, 200);
    drop(second);
}

#[tokio::test]
async fn a_burst_of_connections_is_served() {
    let fixture = start(Script::Say(vec![text("x"), finished()])).await;
    let burst = (0..200).map(|_| async { fixture.post(&chat(&json!({}))).await.status });
    let answers = futures_util::future::join_all(burst).await;
    assert_eq!(answers, vec![200; 200]);
}

#[tokio::test]
async fn every_address_is_listened_on_with_one_port() {
    let listen = vec!["127.0.0.1:0".parse().unwrap(), "127.0.0.2:0".parse().unwrap()];
    let fixture_settings = Settings { listen, ..settings() };
    let server = auth_pool::server::Server::bind(fixture_settings, FakeGateway::new(Script::Hang)).await.unwrap();
    let [first, second] = server.addresses() else { panic!("{:?}", server.addresses()) };
    assert_eq!(first.port(), second.port());
    let taken = Settings { listen: vec![*first], ..settings() };
    let error = auth_pool::server::Server::bind(taken, FakeGateway::new(Script::Hang)).await.err().unwrap();
    assert!(error.to_string().starts_with(&format!("cannot listen on {first}: ")), "{error}");
}
