//! Alerts over real sockets: what arrives, and what an endpoint can do to us, which is nothing.

mod delivery;
mod program;
mod service;

use std::net::SocketAddr;
use std::time::Duration;

use auth_pool::alert::{Pace, Sender, Target};
use auth_pool::runtime::tasks::Tasks;
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// Longer than anything in here takes, on any machine.
pub(super) const LONG: Duration = Duration::from_secs(30);

/// Quick, but with all that there is.
pub(super) const QUICK: Pace = Pace {
    queue: 8,
    attempts: 3,
    first_pause: Duration::from_millis(4),
    longest_pause: Duration::from_millis(20),
    attempt_limit: LONG,
    flush_limit: Duration::from_secs(5),
};

/// An HTTP endpoint that does as it is told; the last answer is repeated.
pub(super) struct Endpoint {
    pub(super) addr: SocketAddr,
    pub(super) received: mpsc::UnboundedReceiver<Received>,
}

pub(super) struct Received {
    pub(super) head: String,
    pub(super) body: String,
}

impl Received {
    pub(super) fn json(&self) -> Value {
        serde_json::from_str(&self.body).expect("JSON")
    }

    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.head
            .lines()
            .find_map(|line| line.split_once(": ").filter(|(known, _)| *known == name))
            .map(|(_, value)| value)
    }
}

#[derive(Clone)]
pub(super) enum Says {
    Status(&'static str),
    /// A status and a header.
    With(&'static str, String),
    Nothing,
}

impl Endpoint {
    pub(super) async fn start(tasks: &Tasks, answers: &[Says]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        Self::on(listener, tasks, answers)
    }

    pub(super) fn on(listener: TcpListener, tasks: &Tasks, answers: &[Says]) -> Self {
        let addr = listener.local_addr().expect("an address");
        let (sender, received) = mpsc::unbounded_channel();
        let mut answers = answers.to_vec();
        answers.reverse();
        tasks.spawn("endpoint", async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let Some(request) = read(&mut stream).await else { continue };
                let answer = if answers.len() > 1 { answers.pop() } else { answers.last().cloned() };
                let (status, header) = match answer.expect("an answer") {
                    Says::Status(status) => (status, String::new()),
                    Says::With(status, header) => (status, header + "\r\n"),
                    Says::Nothing => {
                        open.push(stream);
                        let _ = sender.send(request);
                        continue;
                    }
                };
                let answer = format!("HTTP/1.1 {status}\r\n{header}content-length: 0\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
                let _ = sender.send(request);
            }
        });
        Self { addr, received }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/hook", self.addr)
    }

    pub(super) fn target(&self) -> Target {
        Target { url: self.url(), secret: Some("s3cret".to_owned()), allow_hosts: vec!["127.0.0.1".to_owned()] }
    }

    pub(super) async fn next(&mut self) -> Received {
        timeout(LONG, self.received.recv()).await.expect("in time").expect("the endpoint runs")
    }
}

/// `None` if the client leaves first.
async fn read(stream: &mut TcpStream) -> Option<Received> {
    let mut bytes = Vec::new();
    loop {
        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&bytes);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let received = Received { head: head.to_owned(), body: body.to_owned() };
        let length: usize = received.header("content-length").map_or(0, |length| length.parse().expect("a number"));
        if received.body.len() == length {
            return Some(received);
        }
    }
}

pub(super) struct Bench {
    pub(super) tasks: Tasks,
    pub(super) stop: CancellationToken,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

pub(super) fn bench() -> Bench {
    Bench { tasks: Tasks::default(), stop: CancellationToken::new() }
}

impl Bench {
    pub(super) async fn endpoint(&self, answers: &[Says]) -> Endpoint {
        Endpoint::start(&self.tasks, answers).await
    }

    pub(super) fn sender(&self, target: Target, pace: Pace) -> Sender {
        Sender::start("webhook", Some(target), pace, &self.tasks, &self.stop)
    }
}

pub(super) async fn until(condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(LONG, wait).await.expect("in time");
}
