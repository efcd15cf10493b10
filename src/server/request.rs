//! One HTTP request, from its head to its response.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures_util::FutureExt as _;
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Response, StatusCode};
use tracing::Instrument as _;
use uuid::Uuid;

use super::activity::Activity;
use super::auth::{self, Client};
use super::budget::Held;
use super::limits::Allowance;
use super::origin::{self, Cors};
use super::response::{Exchange, ResponseBody, response};
use super::route::{Access, Found, Route};
use super::{Settings, Shared, body};
use crate::admin::Actor;
use crate::api::{self, Caller, Denial, Reply, admin, events, openai, ops};
use crate::runtime::clock;
use crate::runtime::instance::{self, HOP_HEADER};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
const SESSION_ID: HeaderName = HeaderName::from_static("x-session-id");

/// Answers a request. Dropping the future, or later the response's body, cancels everything behind it.
pub(super) async fn handle(
    shared: Arc<Shared>,
    peer: SocketAddr,
    activity: &Activity,
    request: hyper::Request<Incoming>,
) -> Response<ResponseBody> {
    let (parts, body) = request.into_parts();
    let settings = shared.settings.load_full();
    let id = request_id(&parts.headers);
    let path = parts.uri.path();
    let span = tracing::info_span!(
        "request", %id, method = %parts.method, path = path.get(..128).unwrap_or(path), %peer,
        client = tracing::field::Empty, subscription = tracing::field::Empty, code = tracing::field::Empty,
    );
    let mut exchange = Exchange::new(span.clone(), activity.begin(), shared.bodies.hold());
    let found = shared.routes.find(path);
    exchange.is_probe = found.as_ref().is_some_and(|found| found.route.is_probe());
    let cors = Cors::of(&settings, &parts.headers);

    let answer = answer(&shared, &settings, peer, &parts, body, &mut exchange.body, found, &cors, &id);
    let outcome = AssertUnwindSafe(answer).catch_unwind().instrument(span.clone()).await;
    let reply = outcome.unwrap_or_else(|_| {
        let _entered = span.enter();
        tracing::error!("a request's handler panicked; the panic's own message is on standard error");
        api::deny(parts.uri.path(), Denial::Internal)
    });

    let head = parts.method == Method::HEAD;
    let mut response = response(reply, head, settings.sse_keep_alive, exchange);
    cors.apply(response.headers_mut());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    response
}

/// The client's own id if it is sane, else a new one.
fn request_id(headers: &HeaderMap) -> Arc<str> {
    let sent = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok());
    let is_sane = |id: &&str| {
        (1..=128).contains(&id.len())
            && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
    };
    sent.filter(is_sane).map_or_else(|| Uuid::now_v7().to_string().into(), Arc::from)
}

#[expect(clippy::too_many_arguments, reason = "the request in its parts, used in one place")]
async fn answer(
    shared: &Shared,
    settings: &Settings,
    peer: SocketAddr,
    parts: &Parts,
    mut body: Incoming,
    held: &mut Held,
    found: Option<Found>,
    cors: &Cors,
    id: &Arc<str>,
) -> Reply {
    let mut allowance = None;
    let outcome = match admit(shared, settings, peer, parts, found, cors, &mut allowance) {
        Ok(Admitted::Serve(found, client)) => {
            tracing::Span::current().record("client", &*client.name);
            let organization = client.organization().cloned();
            let has_key = client.key.is_some();
            let caller = Caller {
                is_operator: is_operator(&client) || settings.client_keys.is_empty() && is_local_peer(peer, parts),
                client: client.name,
                models: client.key.and_then(|key| key.models),
                request_id: Arc::clone(id),
                session_header: parts.headers.get(SESSION_ID).map(|value| value.as_bytes().to_vec()),
            };
            if matches!(found.route, Route::Events | Route::Admin) {
                let actor = Manager { name: has_key.then(|| Arc::clone(&caller.client)), organization };
                manage(shared, settings, parts, (&mut body, held), found, actor).await
            } else {
                serve(shared, settings, parts, &mut body, held, found, &caller).await
            }
        }
        Ok(Admitted::Options(reply)) => Ok(reply),
        Err(denial) => Err(denial),
    };
    // Who sends a body too slowly, or none that can be read, is not waited for any longer.
    if !matches!(outcome, Err(Denial::SlowBody { .. } | Denial::BrokenBody)) {
        body::discard(body, &parts.headers).await;
    }
    let mut reply = outcome.unwrap_or_else(|denial| api::deny(parts.uri.path(), denial));
    if let Some(allowance) = allowance {
        allowance.tell(&mut reply.headers);
    }
    reply
}

/// What becomes of a request that is let in.
enum Admitted {
    /// It goes to its dialect.
    Serve(Found, Client),
    /// It asks only what it might do.
    Options(Reply),
}

/// Everything that is decided by the head alone. What is left of a rate limit is put into `allowance`.
fn admit(
    shared: &Shared,
    settings: &Settings,
    peer: SocketAddr,
    parts: &Parts,
    found: Option<Found>,
    cors: &Cors,
    allowance: &mut Option<Allowance>,
) -> Result<Admitted, Denial> {
    // Before anything else: what comes back to us must not go round once more.
    if parts.headers.get(HOP_HEADER).is_some_and(|from| from.as_bytes() == instance::id().as_bytes()) {
        tracing::error!("a request of our own came back: the runaway guard stops it");
        shared.gateway.came_back();
        return Err(Denial::Loop);
    }
    if settings.client_keys.is_empty() {
        origin::check_local(parts, cors)?;
    }
    let (method, path) = (&parts.method, parts.uri.path());
    let shown_path = || path.chars().take(256).collect::<String>();
    let Some(found) = found else {
        return Err(Denial::UnknownRoute { method: method.to_string(), path: shown_path() });
    };
    let allow = found.route.allow();
    if method == Method::OPTIONS {
        let mut reply = Reply::empty(StatusCode::NO_CONTENT);
        if origin::is_preflight(parts) {
            reply.headers = cors.preflight(&parts.headers, allow);
        } else {
            reply.headers.insert(ALLOW, HeaderValue::from_static(allow));
        }
        return Ok(Admitted::Options(reply));
    }
    if !found.route.takes(method) {
        return Err(Denial::WrongMethod { method: method.to_string(), path: shown_path(), allow });
    }
    if settings.is_locked && found.route.access() != Access::Open {
        return Err(Denial::KeysUnknown);
    }
    if shared.is_exposed && settings.client_keys.is_empty() && found.route.access() != Access::Open {
        return Err(Denial::MissingKey);
    }
    let client = match found.route.access() {
        Access::Open => Client::anonymous(),
        Access::Client => {
            let client = auth::authenticate(settings, &parts.headers, clock::now())?;
            if client.key.as_ref().is_some_and(|key| !key.chat) {
                return Err(Denial::Scope { needed: "chat" });
            }
            *allowance = shared.limits.count(settings, &client, peer);
            if let Some(denial) = allowance.as_ref().and_then(Allowance::denial) {
                tracing::Span::current().record("client", &*client.name);
                return Err(denial);
            }
            client
        }
        Access::Operator => operator(settings, peer, parts, cors, is_operator)?,
        Access::Admin => operator(settings, peer, parts, cors, Client::is_admin)?,
    };
    Ok(Admitted::Serve(found, client))
}

/// The operator comes with an admin key. Where there are no keys at all, whoever comes from this machine itself, and not
/// through a proxy or a browser's page, is the operator. Where there are, coming from this machine proves nothing: a proxy
/// in front of us may not say that it is one.
fn operator(
    settings: &Settings,
    peer: SocketAddr,
    parts: &Parts,
    cors: &Cors,
    may: impl Fn(&Client) -> bool,
) -> Result<Client, Denial> {
    let client = auth::authenticate(settings, &parts.headers, clock::now());
    if client.as_ref().is_ok_and(may) {
        return client;
    }
    if settings.client_keys.is_empty() && is_local_peer(peer, parts) {
        origin::check_local(parts, cors)?;
        return Ok(client.unwrap_or_else(|_| Client::anonymous()));
    }
    client.and(Err(Denial::AdminOnly))
}

/// Whether a key opens what concerns the whole pool. One of an organisation does not.
fn is_operator(client: &Client) -> bool {
    client.is_admin() && client.organization().is_none()
}

/// Whether the request comes from this machine itself, as far as can be told.
fn is_local_peer(peer: SocketAddr, parts: &Parts) -> bool {
    peer.ip().to_canonical().is_loopback() && !origin::is_forwarded(&parts.headers)
}

async fn serve(
    shared: &Shared,
    settings: &Settings,
    parts: &Parts,
    body: &mut Incoming,
    held: &mut Held,
    found: Found,
    caller: &Caller,
) -> Result<Reply, Denial> {
    let gateway = &*shared.gateway;
    Ok(match found.route {
        Route::Chat => {
            let body = body::read(body, &parts.headers, settings, held).await?;
            openai::chat::create(gateway, caller, found.name.as_deref(), body).await
        }
        Route::Models => openai::models::list(&gateway.catalog(), &gateway.models_of_backends(&caller.client), caller),
        Route::Model => {
            let beside = gateway.models_of_backends(&caller.client);
            openai::models::show(&gateway.catalog(), &beside, caller, &found.name.unwrap_or_default())
        }
        Route::ModelsAt | Route::ModelAt => {
            let at = gateway.models_at(&found.name.unwrap_or_default(), &caller.client);
            let unknown = || Denial::UnknownRoute {
                method: parts.method.to_string(),
                path: parts.uri.path().chars().take(256).collect(),
            };
            let (at, catalog) = (at.ok_or_else(unknown)?, gateway.catalog());
            match found.model {
                None => openai::models::list_at(&catalog, &at, caller),
                Some(model) => openai::models::show_at(&catalog, &at, caller, &model),
            }
        }
        Route::Health => ops::health(gateway),
        Route::Live => ops::live(),
        Route::Ready => ops::ready(gateway),
        Route::Redis => ops::service(gateway, "redis"),
        Route::Database => ops::service(gateway, "db"),
        Route::Debug => ops::debug(gateway),
        Route::Decisions => ops::decisions(gateway, parts.uri.query()),
        Route::Rebalance => ops::rebalance(gateway),
        // Where an organisation matters: see `manage`.
        Route::Events | Route::Admin => return Err(Denial::Internal),
    })
}

/// Whoever may use what admins use.
struct Manager {
    /// The key's name; `None` on this machine itself, where there are no keys.
    name: Option<Arc<str>>,
    /// What it is limited to.
    organization: Option<Arc<str>>,
}

/// What admins use, each for their own organisation.
async fn manage(
    shared: &Shared,
    settings: &Settings,
    parts: &Parts,
    (body, held): (&mut Incoming, &mut Held),
    found: Found,
    manager: Manager,
) -> Result<Reply, Denial> {
    let query = parts.uri.query();
    if found.route == Route::Events {
        let last = parts.headers.get(LAST_EVENT_ID).and_then(|id| id.to_str().ok());
        return Ok(events::stream(&shared.gateway.feed(), manager.organization.as_ref(), last, query));
    }
    let settings = Settings { max_body_bytes: settings.max_body_bytes.min(admin::MAX_BODY), ..settings.clone() };
    let body = body::read(body, &parts.headers, &settings, held).await?;
    let actor = Actor {
        name: manager.name.map_or_else(|| Actor::local().name, |name| name.to_string()),
        organization: manager.organization.map(|id| id.to_string()),
    };
    let path = found.name.unwrap_or_default();
    let request = admin::Request { actor, method: &parts.method, path: &path, query, body };
    Ok(admin::handle(shared.admin.get(), request).await)
}
