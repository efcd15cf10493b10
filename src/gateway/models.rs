//! The models of backends beside the pool, as clients find and ask for them: `BACKEND/MODEL`.

use std::sync::Arc;

use super::routing::Target;
use super::{BackendModel, Gateway as _, PooledGateway};

impl PooledGateway {
    /// All that `client` may ask for, in the order of their ids.
    pub(super) fn models_beside(&self, client: &str) -> Vec<BackendModel> {
        if !self.may_leave_the_pool(client) {
            return Vec::new();
        }
        let (catalog, routing) = (self.catalog(), self.routing());
        let mut models = Vec::new();
        for (name, target) in &routing.named {
            let Target::Backend(named) = target else { continue };
            let takes = |model: &String| target.takes_any_model() || catalog.resolve(model).is_some();
            let own = named.backend().models().into_iter().filter(takes);
            models.extend(own.map(|model| BackendModel { id: format!("{name}/{model}"), backend: Arc::clone(name) }));
        }
        models.sort_by(|one, other| one.id.cmp(&other.id));
        models
    }
}
