//! Upstreams that are broken or mean no good.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use auth_pool::runtime::tasks::Tasks;
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

use super::{PATIENCE, Proxy, account, ask, pool, until, with};

pub(super) const STREAM: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
const START: &str =
    "event: message_start\ndata: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":3}}}\n\n";

/// Answers every connection with `head`, then with `piece` again and again until nobody reads it any more, or
/// `pieces` times.
pub(super) struct Upstream {
    addr: SocketAddr,
    sent: Arc<AtomicUsize>,
    closed: Arc<AtomicBool>,
}

impl Upstream {
    pub(super) async fn start(head: String, piece: Vec<u8>, pieces: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (sent, closed) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let upstream = Self { addr, sent: Arc::clone(&sent), closed: Arc::clone(&closed) };
        Tasks::default().spawn("upstream", async move {
            while let Ok((stream, _)) = listener.accept().await {
                if answer(stream, &head, &piece, pieces, &sent).await.is_err() {
                    closed.store(true, Ordering::Relaxed);
                }
            }
        });
        upstream
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }
}

async fn answer(
    mut stream: TcpStream,
    head: &str,
    piece: &[u8],
    pieces: usize,
    sent: &AtomicUsize,
) -> std::io::Result<()> {
    let mut request = vec![0; 64 * 1024];
    let _ = stream.read(&mut request).await?;
    stream.write_all(head.as_bytes()).await?;
    for _ in 0..pieces {
        stream.write_all(piece).await?;
        sent.fetch_add(piece.len(), Ordering::Relaxed);
    }
    stream.shutdown().await
}

#[tokio::test]
async fn what_is_not_the_api_is_an_upstream_error_and_never_fills_the_memory() {
    let mega = vec![b'x'; 1024 * 1024];
    let huge_line = (format!("{STREAM}data: "), mega.clone(), 1000);
    let huge_event = (STREAM.to_owned(), [b"data: ", &mega[..], b"\n"].concat(), 1000);
    let huge_error = ("HTTP/1.1 500 Oh no\r\nconnection: close\r\n\r\n".to_owned(), mega, 1000);
    let garbage = (format!("{STREAM}data: {{not json\n\n"), Vec::new(), 0);
    let web_page =
        ("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\nconnection: close\r\n\r\n<html>".to_owned(), Vec::new(), 0);
    let nonsense = ("SSH-2.0-OpenSSH_9.9\r\n".to_owned(), Vec::new(), 0);
    let early_end = (format!("{STREAM}{START}"), Vec::new(), 0);
    let silence = (String::new(), Vec::new(), 0);
    for (name, (head, piece, pieces)) in [
        ("huge line", huge_line),
        ("huge event", huge_event),
        ("huge error", huge_error),
        ("garbage", garbage),
        ("web page", web_page),
        ("nonsense", nonsense),
        ("early end", early_end),
        ("closed at once", silence),
    ] {
        let upstream = Upstream::start(head, piece, pieces).await;
        let mut file = pool(&[account("a", &upstream.url())]);
        file["accountSelection"] = json!({ "retryOnFailure": false });
        let proxy = Proxy::start(&file).await;
        let refused = proxy.chat(&ask("hello")).await;
        assert_eq!(refused.status(), 502, "{name}");
        let body: serde_json::Value = refused.json().await.unwrap();
        assert!(body.to_string().len() < 2000, "{name}");
        assert!(upstream.sent.load(Ordering::Relaxed) < 64 << 20, "{name}: it was read to its end");
        proxy.app.stop().await;
    }
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_gets_no_key() {
    let target = Upstream::start(STREAM.to_owned(), START.into(), 1).await;
    let head =
        format!("HTTP/1.1 307 Over there\r\nlocation: {}/v1/messages\r\ncontent-length: 0\r\n\r\n", target.url());
    let upstream = Upstream::start(head, Vec::new(), 0).await;
    let proxy = Proxy::start(&pool(&[account("a", &upstream.url())])).await;
    assert_eq!(proxy.chat(&ask("hello")).await.status(), 502);
    assert_eq!(target.sent.load(Ordering::Relaxed), 0, "somebody followed");
    proxy.app.stop().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_holds_the_provider_up() {
    let delta = format!(
        "event: content_block_delta\ndata: {{\"type\":\"content_block_delta\",\"index\":0,\"delta\":{{\"type\":\"text_delta\",\"text\":\"{}\"}}}}\n\n",
        "x".repeat(32 * 1024)
    );
    let upstream = Upstream::start(format!("{STREAM}{START}"), delta.into_bytes(), 1_000_000).await;
    let proxy = Proxy::start(&pool(&[account("a", &upstream.url())])).await;
    let answer = proxy.chat(&with(ask("hello"), &json!({ "stream": true }))).await;
    assert_eq!(answer.status(), 200);
    // It sends until every buffer between it and the client is full, and then not a byte more.
    let mut last = 0;
    tokio::time::timeout(PATIENCE, async {
        loop {
            tokio::time::sleep(Duration::from_millis(500)).await;
            let sent = upstream.sent.load(Ordering::Relaxed);
            if sent > 0 && sent == last {
                return;
            }
            last = sent;
        }
    })
    .await
    .expect("it sends for ever");
    assert!(last < 64 << 20, "{last} bytes went somewhere");
    drop(answer);
    until(async || upstream.closed.load(Ordering::Relaxed)).await;
    proxy.app.stop().await;
}
