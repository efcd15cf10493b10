//! `/api/v1/admin/...`: accounts, client keys, and what was written down, for the operator and for organisations' own admins.

use bytes::Bytes;
use http::{Method, StatusCode};

use super::field;
use super::openai::error::{Cause, Error};
use super::query;
use super::{Denial, Reply};
use crate::admin::{Actor, Admin, AdminError, Body, Mistake, Query};

/// Bodies are small here.
pub const MAX_BODY: usize = 256 << 10;

/// A request for the registry.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// Who asks.
    pub actor: Actor,
    /// How.
    pub method: &'a Method,
    /// What is asked for: the path behind `/api/v1/admin/`, decoded.
    pub path: &'a str,
    /// What stands behind the question mark.
    pub query: Option<&'a str>,
    /// What was sent.
    pub body: Bytes,
}

/// Answers a request. `None` as the registry means that there is no store.
pub async fn handle(admin: Option<&Admin>, request: Request<'_>) -> Reply {
    let Some(admin) = admin else {
        return Error::new(Cause::NoneHealthy, "There is no store, so nothing can be registered.").into();
    };
    match answer(admin, request).await {
        Ok(reply) => reply,
        Err(error) => error.into(),
    }
}

async fn answer(admin: &Admin, request: Request<'_>) -> Result<Reply, Error> {
    let Request { actor, method, path, query: asked, body } = request;
    let steps: Vec<&str> = path.split('/').collect();
    let query: Query = query::pairs(asked).collect();
    let read = *method == Method::GET || *method == Method::HEAD;
    let change = *method == Method::PATCH || *method == Method::PUT;
    let (create, delete) = (*method == Method::POST, *method == Method::DELETE);
    let status = if create && steps.len() == 1 { StatusCode::CREATED } else { StatusCode::OK };
    let done = match steps.as_slice() {
        ["claude-accounts"] if read => admin.list_accounts(&actor, query).await,
        ["claude-accounts"] if create => admin.create_account(&actor, object(&body)?).await,
        ["claude-accounts", id] if read => admin.read_account(&actor, id).await,
        ["claude-accounts", id] if change => admin.update_account(&actor, id, object(&body)?).await,
        ["claude-accounts", id] if delete => admin.delete_account(&actor, id).await,
        ["claude-accounts", id, "enable"] if create => admin.switch_account(&actor, id, true).await,
        ["claude-accounts", id, "disable"] if create => admin.switch_account(&actor, id, false).await,
        ["claude-accounts", id, "reset"] if create => admin.reset_account(&actor, id).await,
        ["claude-accounts", id, "test"] if create => admin.test_account(&actor, id).await,
        ["client-keys"] if read => admin.list_keys(&actor, query).await,
        ["client-keys"] if create => admin.create_key(&actor, object(&body)?).await,
        ["client-keys", id] if read => admin.read_key(&actor, id).await,
        ["client-keys", id] if change => admin.update_key(&actor, id, object(&body)?).await,
        ["client-keys", id] if delete => admin.revoke_key(&actor, id).await,
        ["alerts"] if read => admin.alerts(&actor, query).await,
        ["alerts", id, "resolve"] if create => admin.resolve_alert(&actor, id).await,
        ["usage"] if read => admin.usage(&actor, query).await,
        ["organization-usage"] if read => admin.organization_usage(&actor, query).await,
        ["activities"] if read => admin.activities(&actor, query).await,
        ["activities", id] if read => admin.activity(&actor, id).await,
        ["audit"] if read => admin.audit(&actor, query).await,
        known => return Err(elsewhere(known, method, path)),
    };
    let value = done.map_err(refused)?;
    Ok(Reply::json(status, &value))
}

/// There is nothing there, or it does not take the method.
fn elsewhere(steps: &[&str], method: &Method, path: &str) -> Error {
    let allow = match steps {
        ["claude-accounts" | "client-keys"] => "GET, HEAD, POST, OPTIONS",
        ["claude-accounts" | "client-keys", _] => "GET, HEAD, PATCH, PUT, DELETE, OPTIONS",
        ["claude-accounts", _, "enable" | "disable" | "reset" | "test"] | ["alerts", _, "resolve"] => "POST, OPTIONS",
        ["alerts" | "usage" | "organization-usage" | "activities" | "audit"] | ["activities", _] => {
            "GET, HEAD, OPTIONS"
        }
        _ => {
            let path = format!("/api/v1/admin/{}", path.chars().take(128).collect::<String>());
            return Denial::UnknownRoute { method: method.to_string(), path }.into();
        }
    };
    let path = format!("/api/v1/admin/{path}");
    Denial::WrongMethod { method: method.to_string(), path, allow }.into()
}

fn object(body: &Bytes) -> Result<Body, Error> {
    Ok(field::document(body)?)
}

fn refused(error: AdminError) -> Error {
    let message = error.to_string();
    match error {
        AdminError::Invalid(mistakes) => {
            let Some(Mistake { path, .. }) = mistakes.into_iter().next() else {
                return Error::new(Cause::InvalidValue, "The request is not complete.");
            };
            Error::new(Cause::InvalidValue, sentence(message)).with_param(path)
        }
        AdminError::NotFound(_) => Error::new(Cause::NotFound, sentence(message)),
        AdminError::Conflict(_) => Error::new(Cause::Conflict, sentence(message)),
        AdminError::Forbidden { param, .. } => {
            let error = Error::new(Cause::NotAllowed, sentence(message));
            match param {
                Some(param) => error.with_param(param),
                None => error,
            }
        }
        AdminError::NoVault => Error::new(Cause::NoEncryptionKey, sentence(message)),
        AdminError::Unavailable(_) => Error::new(Cause::StoreFailed, sentence(message)),
        AdminError::Store(_) | AdminError::Sealing | AdminError::NotTakenOver(_) => {
            tracing::error!(%error, "the registry failed");
            Error::new(Cause::StoreFailed, sentence(message))
        }
    }
}

fn sentence(text: String) -> String {
    super::openai::error::sentence(text)
}

/// What belongs to another organisation.
pub(super) fn foreign(param: &str) -> Error {
    Error::new(Cause::NotAllowed, "This key is for another organisation.").with_param(param)
}
