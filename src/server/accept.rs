//! Connections: taking them in, and letting them go.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::activity::{Activity, Verdict, cuttable};
use super::{Shared, request};
use crate::runtime::tasks::Tasks;

/// How long a connection may go on sending what is ready when it has to end.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// Pause after an accept that failed for want of resources: the cause will not be gone at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// The largest request head.
const MAX_HEAD: usize = 64 << 10;
/// Requests at the same time on one HTTP/2 connection.
const MAX_STREAMS: u32 = 256;
/// How often an HTTP/2 peer is asked whether it is still there, and how long it may take to say so.
const PING: Duration = Duration::from_secs(20);

/// Takes in the connections of one listener.
pub(super) struct Acceptor {
    pub(super) shared: Arc<Shared>,
    /// The connections' tasks, HTTP/2 streams among them.
    pub(super) connections: Tasks,
    /// One for each connection that may be open.
    pub(super) permits: Arc<Semaphore>,
    pub(super) drain: CancellationToken,
    pub(super) kill: CancellationToken,
}

impl Acceptor {
    /// Accepts until `drain` is cancelled; the listener is closed then.
    pub(super) async fn run(self, listener: TcpListener) {
        let mut full = false;
        // Connections beyond the limit wait in the kernel's queue.
        while let Some(permit) = self.unless_draining(self.permit(&mut full)).await
            && let Some(accepted) = self.unless_draining(listener.accept()).await
        {
            match accepted {
                Ok((stream, peer)) => self.serve(stream, peer, permit),
                // The client's side of the matter: it has left already.
                Err(error) if is_the_peers(&error) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot accept connections");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    async fn unless_draining<F: Future>(&self, future: F) -> Option<F::Output> {
        self.drain.run_until_cancelled(future).await
    }

    /// The right to one more connection. `full` is whether there was none the last time, so that it is said once.
    async fn permit(&self, full: &mut bool) -> Option<OwnedSemaphorePermit> {
        if self.permits.available_permits() > 0 {
            *full = false;
        } else if !std::mem::replace(full, true) {
            tracing::warn!("all connections are taken; further clients wait");
        }
        // Fails only if the semaphore were closed, which nobody does.
        Arc::clone(&self.permits).acquire_owned().await.ok()
    }

    fn serve(&self, stream: TcpStream, peer: SocketAddr, permit: Option<OwnedSemaphorePermit>) {
        // Pieces of a stream are small and must not wait for each other.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "TCP_NODELAY");
        }
        let shared = Arc::clone(&self.shared);
        let (drain, kill) = (self.drain.clone(), self.kill.clone());
        let executor = Executor(self.connections.clone());
        self.connections.spawn("connection", async move {
            if let Err(error) = connection(stream, peer, shared, executor, &drain, &kill).await {
                tracing::debug!(%peer, %error, "the connection broke");
            }
            drop(permit);
        });
    }
}

/// Serves one connection to its end.
async fn connection(
    stream: TcpStream,
    peer: SocketAddr,
    shared: Arc<Shared>,
    executor: Executor,
    drain: &CancellationToken,
    kill: &CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let settings = shared.settings.load_full();
    let activity = Activity::new();

    let mut builder = auto::Builder::new(executor);
    // Hyper counts this time from the end of the request before; the first request is the watch's business below, because
    // no timer of hyper's runs before it knows the protocol.
    builder.http1().timer(TokioTimer::new()).header_read_timeout(settings.idle_timeout).max_buf_size(MAX_HEAD);
    builder
        .http2()
        .timer(TokioTimer::new())
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .max_concurrent_streams(MAX_STREAMS)
        .max_header_list_size(u32::try_from(MAX_HEAD).unwrap_or(u32::MAX));
    let service = service_fn(|request| {
        let (shared, activity) = (Arc::clone(&shared), activity.clone());
        async move { Ok::<_, Infallible>(request::handle(shared, peer, &activity, request).await) }
    });
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));

    let mut watch = tokio::time::interval(Activity::interval(&settings));
    // Whether the connection knows that it shall take no further request.
    let mut ending = false;
    loop {
        tokio::select! {
            result = connection.as_mut() => return result,
            () = drain.cancelled(), if !ending => {
                ending = true;
                connection.as_mut().graceful_shutdown();
            }
            () = kill.cancelled() => {
                connection.as_mut().graceful_shutdown();
                break;
            }
            _ = watch.tick() => match activity.verdict(&settings) {
                Verdict::Keep => {}
                // A request may be coming in just now: it still gets its answer.
                Verdict::Idle if !ending => {
                    ending = true;
                    connection.as_mut().graceful_shutdown();
                }
                Verdict::Idle | Verdict::Silent => return Ok(()),
                Verdict::Stalled => {
                    tracing::warn!(%peer, "the client does not read its answer; closing the connection");
                    return Ok(());
                }
            },
        }
    }
    tokio::time::timeout(LAST_WORDS, connection).await.unwrap_or(Ok(()))
}

/// Runs the streams of HTTP/2 connections.
#[derive(Clone)]
struct Executor(Tasks);

impl<F> hyper::rt::Executor<F> for Executor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn("http2 stream", cuttable(future));
    }
}

fn is_the_peers(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset)
}
