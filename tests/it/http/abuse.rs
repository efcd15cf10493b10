//! What ill-behaved clients send.

use std::time::Duration;

use auth_pool::server::Settings;
use serde_json::json;

use super::gateway::{FakeGateway, Script, finished, follow, text};
use super::wire::{CHAT, chat, patiently, request, settings, start, start_with};

const REQUEST: &str = "invalid_request_error";

#[tokio::test]
async fn what_is_no_json_is_refused() {
    let fixture = start(Script::Hang).await;
    let deep = format!("{{\"a\":{}", "[".repeat(100_000));
    let bodies: [&[u8]; 7] =
        [b"", b"{", b"[]", b"nonsense", b"{\"model\":\"\xff\xfe\"}", b"{\"model\":\"\\ud800\"}", deep.as_bytes()];
    for body in bodies {
        let answer = fixture.ask("POST", CHAT, &[], body).await;
        answer.assert_error(400, REQUEST, "invalid_value", None);
    }
    let answer = fixture.ask("POST", CHAT, &[], b"{\n  \"model\": }").await;
    assert!(answer.text().contains("line 2 column 12"), "{}", answer.text());
}

#[tokio::test]
async fn what_is_no_request_is_refused_with_its_place() {
    let fixture = start(Script::Hang).await;
    let check = async |extra: serde_json::Value, code: &str, param: &str| {
        fixture.post(&chat(&extra)).await.assert_error(400, REQUEST, code, Some(param));
    };
    check(json!({ "model": null }), "missing_required_parameter", "model").await;
    check(json!({ "messages": null }), "missing_required_parameter", "messages").await;
    check(json!({ "messages": [] }), "invalid_value", "messages").await;
    check(json!({ "messages": [{ "role": "system", "content": "x" }] }), "invalid_value", "messages").await;
    check(json!({ "messages": [{ "role": "robot", "content": "x" }] }), "invalid_value", "messages[0].role").await;
    check(json!({ "messages": [{ "role": "user", "content": "" }] }), "invalid_value", "messages[0].content").await;
    check(json!({ "temperature": 3 }), "invalid_value", "temperature").await;
    check(json!({ "max_tokens": -1 }), "invalid_value", "max_tokens").await;
    check(json!({ "n": 2 }), "unsupported_parameter", "n").await;
    assert!(fixture.gateway.calls.lock().unwrap().is_empty());
    let odd = json!({ "no_such_field": 1, "session_id": "--dangerously-skip-permissions" });
    let fixture = start(Script::Say(vec![text("x"), finished()])).await;
    let answer = fixture.post(&chat(&odd)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.json()["session_id"], "--dangerously-skip-permissions");
}

#[tokio::test]
async fn large_prompts_pass_and_larger_ones_do_not() {
    let settings = || Settings { max_body_bytes: 1 << 20, ..settings() };
    let fixture = start_with(settings(), FakeGateway::new(Script::Say(vec![finished()]))).await;
    let prompt = "--prompt 漢 ".repeat(75_000);
    let body = chat(&json!({ "messages": [{ "role": "user", "content": prompt }] })).to_string();
    assert!(body.len() > 900_000 && body.len() < 1 << 20);
    assert_eq!(fixture.ask("POST", CHAT, &[], body.as_bytes()).await.status, 200);
    let call = fixture.gateway.call();
    assert_eq!(call.request.turns[0].blocks, [auth_pool::conversation::Block::Text(prompt)]);

    // Announced, and sent all the same: the client must be able to read the answer.
    let huge = vec![b'x'; 8 << 20];
    fixture.ask("POST", CHAT, &[], &huge).await.assert_error(413, REQUEST, "request_too_large", None);

    // Not announced.
    let mut wire = fixture.connect().await;
    let headers = [("transfer-encoding", "chunked"), ("connection", "close")];
    wire.send(&request("POST", CHAT, &headers, b"")).await;
    for _ in 0..64 {
        let chunk = [b"10000\r\n".as_slice(), &vec![b'x'; 0x10000], b"\r\n"].concat();
        wire.send(&chunk).await;
    }
    wire.send(b"0\r\n\r\n").await;
    wire.answer().await.assert_error(413, REQUEST, "request_too_large", None);

    // Announced by a client that waits for permission: it is told before it sends anything.
    let mut wire = fixture.connect().await;
    let headers = [("expect", "100-continue"), ("content-length", "8000000"), ("connection", "close")];
    wire.send(&request("POST", CHAT, &headers, b"")).await;
    wire.answer().await.assert_error(413, REQUEST, "request_too_large", None);
}

#[tokio::test]
async fn a_client_that_waits_for_permission_gets_it() {
    let fixture = start(Script::Say(vec![finished()])).await;
    let body = chat(&json!({})).to_string();
    let mut wire = fixture.connect().await;
    let length = body.len().to_string();
    let headers = [("expect", "100-continue"), ("content-length", length.as_str()), ("connection", "close")];
    wire.send(&request("POST", CHAT, &headers, b"")).await;
    assert_eq!(wire.read_until("\r\n\r\n").await, "HTTP/1.1 100 Continue\r\n\r\n");
    wire.send(body.as_bytes()).await;
    assert_eq!(wire.answer().await.status, 200);
}

#[tokio::test]
async fn a_chunked_body_is_read() {
    let fixture = start(Script::Say(vec![finished()])).await;
    let body = chat(&json!({})).to_string();
    let chunk = |bytes: &[u8]| format!("{:x}\r\n{}\r\n", bytes.len(), str::from_utf8(bytes).unwrap());
    let chunks: Vec<String> = body.as_bytes().chunks(7).map(chunk).collect();
    let mut wire = fixture.connect().await;
    wire.send(&request("POST", CHAT, &[("transfer-encoding", "chunked"), ("connection", "close")], b"")).await;
    wire.send(chunks.concat().as_bytes()).await;
    wire.send(b"0\r\n\r\n").await;
    assert_eq!(wire.answer().await.status, 200);
}

#[tokio::test]
async fn a_refusal_is_readable_for_who_is_still_sending() {
    let keys = vec![super::wire::key("ann", None, false)];
    let settings = Settings { client_keys: keys, ..settings() };
    let fixture = start_with(settings, FakeGateway::new(Script::Hang)).await;
    for _ in 0..5 {
        let answer = fixture.ask("POST", CHAT, &[], &vec![b'x'; 20 << 20]).await;
        answer.assert_error(401, REQUEST, "invalid_api_key", None);
    }
}

#[tokio::test]
async fn slow_broken_and_compressed_bodies() {
    let settings = Settings { body_timeout: Duration::from_millis(100), ..settings() };
    let fixture = start_with(settings, FakeGateway::new(Script::Hang)).await;
    let mut wire = fixture.connect().await;
    wire.send(&request("POST", CHAT, &[("content-length", "100")], b"{")).await;
    wire.answer().await.assert_error(408, REQUEST, "request_timeout", None);

    let mut wire = fixture.connect().await;
    wire.send(&request("POST", CHAT, &[("transfer-encoding", "chunked")], b"zz\r\n")).await;
    wire.answer().await.assert_error(400, REQUEST, "invalid_value", None);

    let answer = fixture.ask("POST", CHAT, &[("content-encoding", "gzip")], b"\x1f\x8b").await;
    answer.assert_error(415, REQUEST, "unsupported_encoding", None);
    let answer = fixture.ask("POST", CHAT, &[("content-type", "text/plain; charset=latin1")], b"{").await;
    answer.assert_error(400, REQUEST, "invalid_value", None);
}

#[tokio::test]
async fn a_mistake_in_the_gateway_costs_one_request() {
    let fixture = start(Script::Panic).await;
    for _ in 0..3 {
        fixture.post(&chat(&json!({}))).await.assert_error(500, "server_error", "internal_error", None);
    }
    assert_eq!(fixture.get("/health").await.status, 200);
    fixture.all_closed().await;
}

#[tokio::test]
async fn a_flood_of_nonsense_leaves_the_server_healthy() {
    let fixture = start(Script::Say(vec![finished()])).await;
    let nonsense: [&[u8]; 6] = [
        b"\r\n\r\n\r\n",
        b"GET\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense nonsense nonsense",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n",
    ];
    for round in 0..200 {
        let mut wire = fixture.connect().await;
        let _ = wire.try_send(nonsense[round % nonsense.len()]).await;
    }
    let mut wire = fixture.connect().await;
    wire.send(format!("GET /health HTTP/1.1\r\nhost: localhost\r\nx: {}\r\n\r\n", "x".repeat(200_000)).as_bytes())
        .await;
    let refused = wire.read_to_end().await;
    assert!(refused.is_empty() || refused.starts_with(b"HTTP/1.1 431"), "{:?}", String::from_utf8_lossy(&refused));

    let mut wire = fixture.connect().await;
    for _ in 0..500 {
        wire.send(&request("GET", "/health", &[], b"")).await;
        assert_eq!(wire.next_answer().await.status, 200);
    }
    assert_eq!(fixture.post(&chat(&json!({}))).await.status, 200);
}

#[tokio::test]
async fn the_bodies_of_all_requests_together_have_a_bound() {
    let settings = Settings { max_body_bytes_total: 1 << 20, ..settings() };
    let (sender, script) = follow();
    let fixture = start_with(settings, FakeGateway::new(script)).await;
    let large = |stream: bool| {
        let messages = json!([{ "role": "user", "content": "x".repeat(700_000) }]);
        chat(&json!({ "stream": stream, "messages": messages })).to_string()
    };
    let mut busy = fixture.connect().await;
    busy.send(&request("POST", CHAT, &[], large(true).as_bytes())).await;
    busy.read_until("assistant").await;
    // As long as the first one is answered there is no room for a second, but for a small one there is.
    let refused = fixture.ask("POST", CHAT, &[], large(false).as_bytes()).await;
    refused.assert_error(503, "server_error", "capacity_exhausted", None);
    assert_eq!(refused.header("retry-after"), Some("1"));
    fixture.post(&chat(&json!({ "n": 2 }))).await.assert_error(400, REQUEST, "unsupported_parameter", Some("n"));

    sender.send(text("last words")).unwrap();
    sender.send(finished()).unwrap();
    busy.read_until("data: [DONE]\n\n").await;
    drop(busy);
    fixture.all_closed().await;
    let mut wrong = chat(&json!({ "n": 2 }));
    wrong["messages"][0]["content"] = "x".repeat(700_000).into();
    patiently(async {
        // The connection's task lets go of the first one a moment after its last byte.
        while fixture.post(&wrong).await.status == 503 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
