//! What is registered while the program runs: accounts and client keys. One place for the HTTP interface and the terminal.
//!
//! Everything is kept in the store; secrets are sealed before they get there. The running process, if there is one, hears of
//! every change through [`Host`]. Whoever asks does so for an organisation or for the whole house: what belongs to others is
//! not there for them.

mod accounts;
mod books;
mod fields;
mod host;
mod keys;
mod member;
mod rotation;

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::runtime::clock;
use crate::secrets::Vault;
use crate::store::{self, AuditEntry, Scope, Store, StoreError};

pub use fields::{Mistake, Query};
pub use host::{Alone, ConfiguredKeys, Host, ProviderKey, ProviderUsage};
pub use member::{Registered, load_registered};
pub use rotation::{Rotation, rotate};

/// Every result of this room.
pub type Result<T> = std::result::Result<T, AdminError>;

/// Why something was not done.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// What was sent is wrong; at least one mistake.
    #[error("{}", fields::words(.0))]
    Invalid(Vec<Mistake>),
    /// There is none, or it is somebody else's.
    #[error("there is no such {0}")]
    NotFound(&'static str),
    /// It does not go together with what is there.
    #[error("{0}")]
    Conflict(String),
    /// It concerns others.
    #[error("{message}")]
    Forbidden {
        /// The field that says so, if one does.
        param: Option<String>,
        /// Why.
        message: String,
    },
    /// Secrets cannot be kept.
    #[error(
        "ENCRYPTION_KEY is not set, so secrets cannot be kept: set it to 64 hexadecimal digits (`openssl rand -hex 32`)"
    )]
    NoVault,
    /// A secret could not be sealed.
    #[error("the secret could not be sealed")]
    Sealing,
    /// The store failed.
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    /// It was kept, but the running process has not taken it over.
    #[error("it was saved, but is not in use yet: {0}")]
    NotTakenOver(String),
    /// Nobody is there to do it.
    #[error("{0}")]
    Unavailable(String),
}

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Actor {
    /// The name of the client key, or `local` on the machine itself.
    pub name: String,
    /// On whose behalf; `None` is the whole house.
    pub organization: Option<String>,
}

impl Actor {
    /// Whoever sits at the machine.
    pub fn local() -> Self {
        Self { name: "local".to_owned(), organization: None }
    }

    fn scope(&self) -> Scope {
        self.organization.clone().map_or(Scope::Everything, Scope::Organization)
    }

    /// The organisation that is meant where `asked` is named.
    fn organization(&self, asked: Option<String>) -> Result<Option<String>> {
        match (&self.organization, asked) {
            (Some(own), Some(asked)) if *own != asked => Err(AdminError::Forbidden {
                param: Some("organizationId".to_owned()),
                message: "this key is for another organisation".to_owned(),
            }),
            (Some(own), _) => Ok(Some(own.clone())),
            (None, asked) => Ok(asked),
        }
    }

    /// The scope that is meant where `asked` is named.
    fn scope_of(&self, asked: Option<String>) -> Result<Scope> {
        Ok(self.organization(asked)?.map_or(Scope::Everything, Scope::Organization))
    }
}

/// The registry. A cheap handle.
#[derive(Clone)]
pub struct Admin(Arc<Shared>);

struct Shared {
    store: Store,
    vault: Option<Arc<Vault>>,
    host: Arc<dyn Host>,
    /// Where accounts that bring a token but no CLI profile get one.
    profiles: PathBuf,
    /// Changes are made one after the other.
    changing: tokio::sync::Mutex<()>,
    /// Held while an account is tested.
    testing: tokio::sync::Mutex<()>,
}

impl Admin {
    /// A registry over `store`.
    pub fn new(store: Store, vault: Option<Arc<Vault>>, host: Arc<dyn Host>, profiles: PathBuf) -> Self {
        let (changing, testing) = Default::default();
        Self(Arc::new(Shared { store, vault, host, profiles, changing, testing }))
    }

    fn store(&self) -> &Store {
        &self.0.store
    }

    async fn changed(&self) -> Result<()> {
        self.0.host.changed().await.map_err(AdminError::NotTakenOver)
    }

    /// Notes what was done that the store does not keep: a failure is told in the log only.
    async fn note(&self, entry: &AuditEntry) {
        if let Err(error) = self.store().add_audit(entry).await {
            tracing::error!(%error, entry.action, entry.target, "what was done could not be noted in the audit log");
        }
        self.tell(entry);
    }

    /// Tells of a change that is made and noted.
    fn tell(&self, entry: &AuditEntry) {
        let AuditEntry { organization_id, actor, action, target, .. } = entry;
        tracing::info!(actor, action, target, "changed by the operator");
        self.0.host.tell_change(organization_id.as_deref(), action, target);
    }
}

/// Who changes what, to be noted together with the change itself.
fn entry(actor: &Actor, action: &str, organization: Option<&str>, target: &str, detail: Value) -> AuditEntry {
    AuditEntry {
        id: store::new_id(),
        organization_id: organization.map(str::to_owned),
        at: clock::now(),
        actor: actor.name.clone(),
        action: action.to_owned(),
        target: target.to_owned(),
        detail,
    }
}

/// A body: the fields of a JSON object.
pub type Body = Map<String, Value>;
