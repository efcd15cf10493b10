//! `GET /v1/models` and `GET /v1/models/{id}`; the same of one backend below `/v1/{backend}`.

use http::StatusCode;
use serde::Serialize;

use super::error::{Cause, Error};
use crate::api::field::excerpt;
use crate::api::{Caller, Reply};
use crate::conversation::{Catalog, Model};
use crate::gateway::{BackendModel, ModelsAt};

/// A model as OpenAI lists it.
#[derive(Serialize)]
struct Listed<'a> {
    id: &'a str,
    object: &'static str,
    created: i64,
    owned_by: &'a str,
}

/// Every name the caller may send as `model`; `beside` are those of backends beside the pool.
pub fn list(catalog: &Catalog, beside: &[BackendModel], caller: &Caller) -> Reply {
    let names = catalog.iter().filter(|(name, model)| allows(caller, catalog, name, model));
    let beside = beside.iter().filter(|model| allows_beside(caller, model)).map(listed_beside);
    listing(names.map(|(name, model)| listed(name, model)).chain(beside))
}

fn listing<'a>(models: impl Iterator<Item = Listed<'a>>) -> Reply {
    #[derive(Serialize)]
    struct List<'a> {
        object: &'static str,
        data: Vec<Listed<'a>>,
    }
    Reply::json(StatusCode::OK, &List { object: "list", data: models.collect() })
}

/// The same of what a name in the path leads to.
pub fn list_at(catalog: &Catalog, at: &ModelsAt, caller: &Caller) -> Reply {
    match at {
        ModelsAt::Catalog => list(catalog, &[], caller),
        ModelsAt::Backend(own) => {
            listing(own.iter().filter(|model| allows_own(caller, catalog, model)).map(listed_beside))
        }
    }
}

/// One of them.
pub fn show_at(catalog: &Catalog, at: &ModelsAt, caller: &Caller, name: &str) -> Reply {
    let ModelsAt::Backend(own) = at else { return show(catalog, &[], caller, name) };
    match own.iter().find(|model| model.id == name) {
        Some(model) if allows_own(caller, catalog, model) => Reply::json(StatusCode::OK, &listed_beside(model)),
        Some(_) => not_allowed(name).into(),
        None => not_found(catalog, name).into(),
    }
}

/// One model, by any name it has.
pub fn show(catalog: &Catalog, beside: &[BackendModel], caller: &Caller, name: &str) -> Reply {
    if let Some(model) = beside.iter().find(|model| model.id == name) {
        if !allows_beside(caller, model) {
            return not_allowed(name).into();
        }
        return Reply::json(StatusCode::OK, &listed_beside(model));
    }
    let Some(model) = catalog.resolve(name) else { return not_found(catalog, name).into() };
    if !allows(caller, catalog, name, model) {
        return not_allowed(name).into();
    }
    Reply::json(StatusCode::OK, &listed(name, model))
}

/// Whether the caller's key may use a model: its list may hold the name itself or any other name of the same model.
pub(super) fn allows(caller: &Caller, catalog: &Catalog, name: &str, model: &Model) -> bool {
    caller.models.as_ref().is_none_or(|allowed| {
        allowed.iter().any(|entry| entry == name || catalog.resolve(entry).is_some_and(|known| known.id == model.id))
    })
}

/// Whether the caller's key may use a model of a backend: its list holds that very name.
pub(super) fn allows_beside(caller: &Caller, model: &BackendModel) -> bool {
    caller.models.as_ref().is_none_or(|allowed| allowed.contains(&model.id))
}

/// The same where the path names the backend: one of Claude's may be allowed by any of its names.
fn allows_own(caller: &Caller, catalog: &Catalog, model: &BackendModel) -> bool {
    let known = catalog.resolve(&model.id);
    known.map_or_else(|| allows_beside(caller, model), |known| allows(caller, catalog, &model.id, known))
}

pub(super) fn not_found(catalog: &Catalog, name: &str) -> Error {
    let advice = catalog.nearest(name).map(|near| format!(" Did you mean '{near}'?")).unwrap_or_default();
    let name = excerpt(name);
    Error::new(Cause::UnknownModel, format!("The model '{name}' does not exist.{advice}")).with_param("model")
}

pub(super) fn not_allowed(name: &str) -> Error {
    let name = excerpt(name);
    Error::new(Cause::NotAllowed, format!("This client key may not use the model '{name}'.")).with_param("model")
}

fn listed<'a>(name: &'a str, model: &Model) -> Listed<'a> {
    Listed { id: name, object: "model", created: release(&model.id), owned_by: "anthropic" }
}

fn listed_beside(model: &BackendModel) -> Listed<'_> {
    Listed { id: &model.id, object: "model", created: 0, owned_by: &model.backend }
}

/// The day in a dated id (`claude-opus-4-1-20250805`) in Unix seconds; 0 where the id tells none.
fn release(id: &str) -> i64 {
    let day = id.rsplit('-').next().filter(|part| part.len() == 8 && part.bytes().all(|byte| byte.is_ascii_digit()));
    let instant = day.map(|day| format!("{}-{}-{}T00:00:00Z", &day[..4], &day[4..6], &day[6..]));
    instant.and_then(|instant| instant.parse::<jiff::Timestamp>().ok()).map_or(0, jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Content;

    fn caller(models: Option<&[&str]>) -> Caller {
        Caller {
            client: "test".into(),
            models: models.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
            request_id: "r".into(),
            is_operator: false,
            session_header: None,
        }
    }

    fn json(reply: Reply) -> serde_json::Value {
        let Content::Json(body) = reply.content else { panic!("not JSON") };
        serde_json::from_slice(&body).unwrap_or_default()
    }

    #[test]
    fn a_key_sees_its_models_under_all_their_names() {
        let catalog = Catalog::new([("opus", "claude-opus-4-8")], [("gpt-4o", "opus")]);
        let names = |models: Option<&[&str]>| -> Vec<String> {
            let list = json(list(&catalog, &[], &caller(models)));
            let data = list["data"].as_array().cloned().unwrap_or_default();
            data.iter().filter_map(|model| model["id"].as_str().map(str::to_owned)).collect()
        };
        assert_eq!(names(Some(&["opus"])), ["claude-opus-4-8", "gpt-4o", "opus"]);
        assert!(names(Some(&["no-such-model"])).is_empty());
        assert!(names(None).len() > 20);
    }

    #[test]
    fn an_unknown_model_is_answered_with_the_nearest() {
        let catalog = Catalog::new([], []);
        let reply = show(&catalog, &[], &caller(None), "claude-opus-4-88");
        assert_eq!(reply.status, StatusCode::NOT_FOUND);
        let body = json(reply);
        assert_eq!(body["error"]["code"], "model_not_found");
        assert!(body["error"]["message"].as_str().is_some_and(|text| text.contains("Did you mean 'claude-opus-4-8'?")));
        assert_eq!(
            show(&catalog, &[], &caller(Some(&["claude-sonnet-5"])), "claude-opus-4-8").status,
            StatusCode::FORBIDDEN
        );
    }

    #[test]
    fn the_models_of_backends_are_listed_under_the_names_they_are_asked_by() {
        let catalog = Catalog::new([], []);
        let beside = [BackendModel { id: "router/llama".to_owned(), backend: "router".into() }];
        let expected =
            serde_json::json!({ "id": "router/llama", "object": "model", "created": 0, "owned_by": "router" });
        let all = json(list(&catalog, &beside, &caller(None)));
        assert_eq!(all["data"].as_array().and_then(|data| data.last()), Some(&expected));
        assert_eq!(json(show(&catalog, &beside, &caller(None), "router/llama")), expected);
        assert_eq!(show(&catalog, &beside, &caller(None), "router/other").status, StatusCode::NOT_FOUND);
        let narrow = caller(Some(&["sonnet"]));
        assert_eq!(json(list(&catalog, &beside, &narrow))["data"].as_array().map(Vec::len), Some(0));
        assert_eq!(show(&catalog, &beside, &narrow, "router/llama").status, StatusCode::FORBIDDEN);
        assert_eq!(show(&catalog, &beside, &caller(Some(&["router/llama"])), "router/llama").status, StatusCode::OK);
    }

    #[test]
    fn below_a_backends_path_its_models_have_their_own_names() {
        let catalog = Catalog::new([("sonnet", "claude-sonnet-5")], []);
        let own = ["llama", "sonnet"].map(|id| BackendModel { id: id.to_owned(), backend: "router".into() });
        let at = ModelsAt::Backend(own.into());
        let ids = |reply: Reply| -> Vec<String> {
            let list = json(reply);
            list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(ids(list_at(&catalog, &at, &caller(None))), ["llama", "sonnet"]);
        // As its chat takes them: one of Claude's by any of its names.
        let narrow = caller(Some(&["claude-sonnet-5"]));
        assert_eq!(ids(list_at(&catalog, &at, &narrow)), ["sonnet"]);
        let status = |caller: &Caller, name: &str| show_at(&catalog, &at, caller, name).status;
        assert_eq!(status(&caller(None), "llama"), StatusCode::OK);
        assert_eq!(status(&narrow, "llama"), StatusCode::FORBIDDEN);
        assert_eq!(status(&caller(None), "router/llama"), StatusCode::NOT_FOUND);
        assert_eq!(ids(list_at(&catalog, &ModelsAt::Catalog, &caller(None))), ids(list(&catalog, &[], &caller(None))));
    }

    #[test]
    fn the_day_of_a_dated_id_is_its_creation() {
        assert_eq!(release("claude-opus-4-1-20250805"), 1_754_352_000);
        assert_eq!(release("claude-opus-4-8"), 0);
        assert_eq!(release("claude-x-99999999"), 0);
    }
}
