//! The server: connections, routes, and what all of them share.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::Options;
use super::cache::Cache;
use super::connection::{Connection, ResetSwitch};
use super::control;
use super::limits::Board;
use super::messages;
use super::organization::Ledger;
use super::record::{Bearer, Log};
use super::reply::{Body, Reply};
use super::script::Script;
use crate::runtime::clock;
use crate::runtime::tasks::Tasks;

/// The API's own bound.
const LARGEST_BODY: usize = 32 * 1024 * 1024;

/// What every connection shares.
#[derive(Debug)]
pub(super) struct State {
    pub(super) options: Options,
    pub(super) log: Log,
    pub(super) script: Script,
    pub(super) limits: Board,
    pub(super) cache: Cache,
    pub(super) ledger: Ledger,
}

impl State {
    pub(super) fn new(options: Options) -> Self {
        Self {
            options,
            log: Log::new(options.keep),
            script: Script::default(),
            limits: Board::default(),
            cache: Cache::default(),
            ledger: Ledger::default(),
        }
    }
}

/// Serves until `stop`.
pub(super) async fn run(listener: TcpListener, state: Arc<State>, tasks: Tasks, stop: CancellationToken) {
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (state, stop) = (Arc::clone(&state), stop.clone());
                tasks.spawn("standin connection", async move {
                    // A stop drops the connection, whatever it is at.
                    let _ = stop.run_until_cancelled(serve(stream, state)).await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the stand-in cannot accept a connection");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, state: Arc<State>) {
    // Every delta shall leave at once. Where that cannot be set, it leaves a little later.
    let _ = stream.set_nodelay(true);
    let connection = Connection::new(stream);
    let switch = connection.switch();
    let service = service_fn(|request| handle(request, Arc::clone(&state), switch.clone()));
    let served =
        http1::Builder::new().timer(TokioTimer::new()).serve_connection(TokioIo::new(connection), service).await;
    if let Err(error) = served {
        // Clients go away and scripts break connections: both are the stand-in's daily work.
        tracing::debug!(%error, "a connection to the stand-in ended early");
    }
}

async fn handle(request: Request<Incoming>, state: Arc<State>, switch: ResetSwitch) -> io::Result<Response<Body>> {
    let at = clock::now();
    let (head, body) = request.into_parts();
    let bytes = match Limited::new(body, LARGEST_BODY).collect().await {
        Ok(body) => Some(body.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => None,
        Err(error) => return Err(io::Error::other(error)),
    };
    let too_large = bytes.is_none();
    let body: Option<Value> = bytes.as_ref().filter(|bytes| !bytes.is_empty()).and_then(parse);
    let path = head.uri.path();
    if let Some(what) = path.strip_prefix("/standin/") {
        let query = head.uri.query().unwrap_or_default();
        return control::reply(&state, &head.method, what, query, body).play(None, switch).await;
    }

    let bearer = Bearer::of(&head.headers);
    let ticket = state.log.begin(&head, bearer.as_ref(), body.clone().unwrap_or_default(), at);
    let reply = match (&head.method, path) {
        _ if too_large => Reply::error(StatusCode::PAYLOAD_TOO_LARGE, "Request exceeds the maximum size"),
        (&Method::HEAD | &Method::GET, "/") => Reply::empty(StatusCode::OK),
        (&Method::POST, "/v1/messages") => messages::reply(&state, bearer.as_ref(), body.as_ref(), ticket.number, at),
        (&Method::POST, "/v1/messages/count_tokens") => {
            Reply::json(StatusCode::OK, &json!({"input_tokens": body.as_ref().map_or(0, Cache::count)}))
        }
        (&Method::GET, "/v1/models") => messages::models(&state, bearer.as_ref(), ticket.number, at),
        (&Method::GET, path) => match path.strip_prefix("/v1/organizations/") {
            Some(what) => {
                let secret = head.headers.get("x-api-key").and_then(|value| value.to_str().ok());
                state.ledger.reply(secret, what, head.uri.query().unwrap_or_default())
            }
            None => Reply::error(StatusCode::NOT_FOUND, "Not Found"),
        },
        _ => Reply::error(StatusCode::NOT_FOUND, "Not Found"),
    };
    reply.play(Some(ticket), switch).await
}

fn parse(bytes: &Bytes) -> Option<Value> {
    serde_json::from_slice(bytes).ok()
}
