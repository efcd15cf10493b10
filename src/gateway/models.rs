//! The models of backends beside the pool, as clients find and ask for them: `BACKEND/MODEL`.

use std::sync::Arc;

use super::routing::{NamedBackend, Target};
use super::{BackendModel, Gateway as _, ModelsAt, PooledGateway};

impl PooledGateway {
    /// All that `client` may ask for, in the order of their ids.
    pub(super) fn models_beside(&self, client: &str) -> Vec<BackendModel> {
        if !self.may_leave_the_pool(client) {
            return Vec::new();
        }
        let routing = self.routing();
        let mut models = Vec::new();
        for (name, target) in &routing.named {
            let Target::Backend(named) = target else { continue };
            let own = self.models_of(named, target.takes_any_model()).into_iter();
            models.extend(own.map(|model| BackendModel { id: format!("{name}/{model}"), backend: Arc::clone(name) }));
        }
        models.sort_by(|one, other| one.id.cmp(&other.id));
        models
    }

    /// Those behind a name in a path; `None` where that leads nowhere.
    pub(super) fn models_behind(&self, name: &str, client: &str) -> Option<ModelsAt> {
        let target = self.target(name)?;
        let Target::Backend(named) = &target else { return Some(ModelsAt::Catalog) };
        if !self.may_leave_the_pool(client) {
            return Some(ModelsAt::Backend(Vec::new()));
        }
        let own = self.models_of(named, target.takes_any_model()).into_iter();
        Some(ModelsAt::Backend(own.map(|id| BackendModel { id, backend: Arc::clone(named.shared_name()) }).collect()))
    }

    /// The names that a backend knows; those of the catalogue only, unless it takes any.
    fn models_of(&self, named: &NamedBackend, any: bool) -> Vec<String> {
        let catalog = self.catalog();
        named.backend().models().into_iter().filter(|model| any || catalog.resolve(model).is_some()).collect()
    }
}
