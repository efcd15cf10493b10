//! Which path leads where.

use hyper::Method;
use percent_encoding::percent_decode_str;

/// What is behind a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    Chat,
    Models,
    Model,
    /// Of the backend that the path names.
    ModelsAt,
    ModelAt,
    Health,
    Live,
    Ready,
    Redis,
    Database,
    Debug,
    Decisions,
    Rebalance,
    Events,
    Admin,
}

/// Who may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody: monitors have no keys.
    Open,
    /// Clients.
    Client,
    /// The operator of the whole pool.
    Operator,
    /// The operator, or an organisation's own.
    Admin,
}

impl Route {
    const ALL: [(&'static str, Self); 16] = [
        ("/v1/chat/completions", Self::Chat),
        ("/v1/{name}/chat/completions", Self::Chat),
        ("/v1/models", Self::Models),
        ("/v1/models/{*name}", Self::Model),
        ("/v1/{name}/models", Self::ModelsAt),
        ("/v1/{name}/models/{*model}", Self::ModelAt),
        ("/health", Self::Health),
        ("/health/live", Self::Live),
        ("/health/ready", Self::Ready),
        ("/health/redis", Self::Redis),
        ("/health/db", Self::Database),
        ("/debug/auth-pool", Self::Debug),
        ("/debug/auth-pool/decisions", Self::Decisions),
        ("/debug/auth-pool/rebalance", Self::Rebalance),
        ("/api/events/stream", Self::Events),
        ("/api/v1/admin/{*name}", Self::Admin),
    ];

    pub(super) const fn access(self) -> Access {
        match self {
            Self::Chat | Self::Models | Self::Model | Self::ModelsAt | Self::ModelAt => Access::Client,
            Self::Health | Self::Live | Self::Ready | Self::Redis | Self::Database => Access::Open,
            Self::Debug | Self::Decisions | Self::Rebalance => Access::Operator,
            Self::Events | Self::Admin => Access::Admin,
        }
    }

    /// The methods it takes, as in the `Allow` header.
    pub(super) const fn allow(self) -> &'static str {
        match self {
            Self::Chat | Self::Rebalance => "POST, OPTIONS",
            Self::Events => "GET, OPTIONS",
            // Each of its paths takes some of them.
            Self::Admin => "GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS",
            _ => "GET, HEAD, OPTIONS",
        }
    }

    pub(super) fn takes(self, method: &Method) -> bool {
        match self {
            Self::Chat | Self::Rebalance => method == Method::POST,
            Self::Events => method == Method::GET,
            Self::Admin => {
                let all = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
                all.contains(method)
            }
            _ => method == Method::GET || method == Method::HEAD,
        }
    }

    /// Whether its requests are too many and too dull for the log.
    pub(super) const fn is_probe(self) -> bool {
        matches!(self, Self::Health | Self::Live | Self::Ready | Self::Redis | Self::Database)
    }
}

/// Finds routes.
pub(super) struct Routes(matchit::Router<Route>);

/// A path that leads somewhere.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) route: Route,
    /// The variable part of the path, decoded.
    pub(super) name: Option<String>,
    /// The part behind it where there are two, decoded.
    pub(super) model: Option<String>,
}

impl Routes {
    pub(super) fn new() -> Self {
        let mut router = matchit::Router::new();
        for (pattern, route) in Route::ALL {
            if let Err(error) = router.insert(pattern, route) {
                tracing::error!(pattern, %error, "two routes are in each other's way");
            }
        }
        Self(router)
    }

    pub(super) fn find(&self, path: &str) -> Option<Found> {
        let found = self.0.at(path).ok()?;
        let part =
            |name: &str| found.params.get(name).map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned());
        Some(Found { route: *found.value, name: part("name"), model: part("model") })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_pattern_leads_to_its_route() {
        let routes = Routes::new();
        for (pattern, route) in Route::ALL {
            let path =
                pattern.replace("{*name}", "a%2Fb/c%20d").replace("{name}", "a%2Fb").replace("{*model}", "m/n%20o");
            let name = if pattern.contains("{name}") {
                Some("a/b".to_owned())
            } else {
                pattern.contains('{').then(|| "a/b/c d".to_owned())
            };
            let model = pattern.contains("{*model}").then(|| "m/n o".to_owned());
            assert_eq!(routes.find(&path), Some(Found { route, name, model }), "{path}");
        }
        for path in ["/", "/v1", "/v1/chat/completions/", "/v1/models/", "//v1/models", "*", "", "/V1/models"] {
            assert_eq!(routes.find(path), None, "{path}");
        }
    }
}
