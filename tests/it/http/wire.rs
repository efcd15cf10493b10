//! A server under test, and a client that shows every byte.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use auth_pool::runtime::tasks::Tasks;
use auth_pool::server::{ClientKey, Server, Settings};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::gateway::{FakeGateway, Script};

/// Nothing in these tests takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(10);

pub(super) struct Fixture {
    pub(super) address: SocketAddr,
    pub(super) gateway: Arc<FakeGateway>,
    pub(super) settings: Arc<arc_swap::ArcSwap<Settings>>,
    pub(super) drain: CancellationToken,
    pub(super) kill: CancellationToken,
    pub(super) running: JoinHandle<()>,
}

/// Settings for a free port.
pub(super) fn settings() -> Settings {
    Settings { listen: vec!["127.0.0.1:0".parse().unwrap()], ..Settings::default() }
}

pub(super) fn key(name: &str, models: Option<&[&str]>, admin: bool) -> ClientKey {
    ClientKey {
        name: name.into(),
        digest: ClientKey::digest(format!("sk-{name}").as_bytes()),
        models: models.map(|models| models.iter().map(|model| (*model).to_owned()).collect()),
        chat: true,
        admin,
        organization: None,
        requests_per_minute: None,
        expires_at: None,
    }
}

pub(super) async fn start(script: Script) -> Fixture {
    start_with(settings(), FakeGateway::new(script)).await
}

pub(super) async fn start_with(settings: Settings, gateway: Arc<FakeGateway>) -> Fixture {
    let server = Server::bind(settings, gateway.clone()).await.unwrap();
    let (drain, kill) = (CancellationToken::new(), CancellationToken::new());
    Fixture {
        address: server.addresses()[0],
        gateway,
        settings: server.settings(),
        running: Tasks::default().spawn("server", server.run(drain.clone(), kill.clone())),
        drain,
        kill,
    }
}

impl Fixture {
    pub(super) async fn connect(&self) -> Wire {
        Wire { stream: TcpStream::connect(self.address).await.unwrap(), seen: Vec::new() }
    }

    /// One request on a connection of its own.
    pub(super) async fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let mut wire = self.connect().await;
        let mut headers = headers.to_vec();
        headers.push(("connection", "close"));
        wire.send(&request(method, path, &headers, body)).await;
        wire.answer().await
    }

    pub(super) async fn post(&self, body: &Value) -> Answer {
        self.ask("POST", CHAT, &[], body.to_string().as_bytes()).await
    }

    pub(super) async fn get(&self, path: &str) -> Answer {
        self.ask("GET", path, &[], b"").await
    }

    /// Waits until no request or answer is open in the gateway, and tells how long that took.
    pub(super) async fn all_closed(&self) -> Duration {
        let started = Instant::now();
        while self.gateway.open() > 0 {
            assert!(started.elapsed() < PATIENCE, "{} still open", self.gateway.open());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        started.elapsed()
    }

    pub(super) async fn wait_for_open(&self, count: usize) {
        patiently(async {
            while self.gateway.open() != count {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        })
        .await;
    }
}

pub(super) const CHAT: &str = "/v1/chat/completions";

/// A chat request with `extra` members.
pub(super) fn chat(extra: &Value) -> Value {
    let mut request = serde_json::json!({ "model": "gpt-4o", "messages": [{ "role": "user", "content": "hi" }] });
    for (name, value) in extra.as_object().unwrap() {
        request[name] = value.clone();
    }
    request
}

/// The bytes of a request. `Host` and, with a body, `Content-Length` are added unless given.
pub(super) fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let given = |name: &str| headers.iter().any(|(given, _)| given.eq_ignore_ascii_case(name));
    let mut lines = vec![format!("{method} {path} HTTP/1.1")];
    if !given("host") {
        lines.push("host: localhost".to_owned());
    }
    if !body.is_empty() && !given("content-length") && !given("transfer-encoding") {
        lines.push(format!("content-length: {}", body.len()));
    }
    lines.extend(headers.iter().map(|(name, value)| format!("{name}: {value}")));
    [lines.join("\r\n").as_bytes(), b"\r\n\r\n", body].concat()
}

/// A connection.
pub(super) struct Wire {
    stream: TcpStream,
    /// What was received and not yet looked at.
    seen: Vec<u8>,
}

impl Wire {
    pub(super) async fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// As [`Wire::send`], for servers that may have hung up.
    pub(super) async fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes).await
    }

    /// Reads until `mark` has come, and takes everything up to its end.
    pub(super) async fn read_until(&mut self, mark: &str) -> String {
        patiently(async {
            loop {
                if let Some(place) = self.seen.windows(mark.len()).position(|window| window == mark.as_bytes()) {
                    let rest = self.seen.split_off(place + mark.len());
                    return String::from_utf8(std::mem::replace(&mut self.seen, rest)).unwrap();
                }
                let mut buffer = [0; 4096];
                let count = self.stream.read(&mut buffer).await.unwrap();
                let seen = String::from_utf8_lossy(&self.seen);
                assert!(count > 0, "the connection ended before {mark:?}; seen: {seen}");
                self.seen.extend_from_slice(&buffer[..count]);
            }
        })
        .await
    }

    /// Everything up to the end of the connection.
    pub(super) async fn read_to_end(&mut self) -> Vec<u8> {
        patiently(async {
            let mut rest = std::mem::take(&mut self.seen);
            // A reset is an end, too.
            let _ = self.stream.read_to_end(&mut rest).await;
            rest
        })
        .await
    }

    /// The answer to a request that asked to close the connection.
    pub(super) async fn answer(&mut self) -> Answer {
        Answer::parse(&self.read_to_end().await)
    }

    /// Takes one answer of announced length, and leaves the connection open.
    pub(super) async fn next_answer(&mut self) -> Answer {
        let head = self.read_until("\r\n\r\n").await;
        let mut answer = Answer::parse(head.as_bytes());
        let length: usize = answer.headers["content-length"].parse().unwrap();
        patiently(async {
            while self.seen.len() < length {
                let mut buffer = [0; 4096];
                let count = self.stream.read(&mut buffer).await.unwrap();
                assert!(count > 0, "the connection ended in the middle of an answer");
                self.seen.extend_from_slice(&buffer[..count]);
            }
        })
        .await;
        let rest = self.seen.split_off(length);
        answer.body = std::mem::replace(&mut self.seen, rest);
        answer
    }
}

pub(super) async fn patiently<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(PATIENCE, future).await.expect("hangs")
}

#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: BTreeMap<String, String>,
    pub(super) body: Vec<u8>,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        let end = end.unwrap_or_else(|| panic!("no head in {:?}", String::from_utf8_lossy(bytes)));
        let head = str::from_utf8(&bytes[..end]).unwrap();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = BTreeMap::new();
        for line in lines {
            let (name, value) = line.split_once(": ").unwrap();
            let joined = headers.entry(name.to_owned()).or_insert_with(String::new);
            if !joined.is_empty() {
                joined.push_str(", ");
            }
            joined.push_str(value);
        }
        let body = &bytes[end + 4..];
        let chunked = headers.get("transfer-encoding").is_some_and(|encoding| encoding == "chunked");
        Self { status, headers, body: if chunked { dechunk(body) } else { body.to_vec() } }
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub(super) fn text(&self) -> &str {
        str::from_utf8(&self.body).unwrap()
    }

    pub(super) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// Asserts an error in OpenAI's shape.
    #[track_caller]
    pub(super) fn assert_error(&self, status: u16, kind: &str, code: &str, param: Option<&str>) {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.header("content-type"), Some("application/json"));
        assert!(self.header("x-request-id").is_some_and(|id| !id.is_empty()), "no request id");
        let body = self.json();
        assert_eq!(body.as_object().map(serde_json::Map::len), Some(1), "{body}");
        let error = body["error"].as_object().unwrap();
        let names: Vec<_> = error.keys().map(String::as_str).collect();
        assert_eq!(names, ["message", "type", "param", "code"]);
        assert!(error["message"].as_str().is_some_and(|message| message.ends_with(['.', ')', '?'])), "{body}");
        assert_eq!(error["type"], kind, "{body}");
        assert_eq!(error["code"], code, "{body}");
        assert_eq!(error["param"].as_str(), param, "{body}");
    }
}

/// The content of a complete chunked body.
fn dechunk(mut rest: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|window| window == b"\r\n").expect("a chunk's length");
        let length = usize::from_str_radix(str::from_utf8(&rest[..line]).unwrap(), 16).unwrap();
        rest = &rest[line + 2..];
        body.extend_from_slice(&rest[..length]);
        rest = &rest[length + 2..];
        if length == 0 {
            return body;
        }
    }
}
