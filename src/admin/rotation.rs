//! Another encryption key: everything that is sealed is sealed anew.

use serde_json::json;

use crate::secrets::{KeyId, Vault};
use crate::store::{Page, Scope, Store};

use super::accounts::purpose_of;
use super::{Actor, AdminError, Result, entry};

/// How often a rotation begins again because an account was changed meanwhile.
const MOST_ROUNDS: u32 = 10;

/// What a rotation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// The key that everything is sealed with now.
    pub key: KeyId,
    /// Secrets that were sealed anew.
    pub resealed: usize,
    /// Secrets that were sealed with it before.
    pub kept: usize,
}

/// Seals every stored secret with the current key, all or none of them. One that does not open stops it: nothing is lost
/// that way.
pub async fn rotate(store: &Store, vault: &Vault) -> Result<Rotation> {
    for _ in 0..MOST_ROUNDS {
        let mut rotation = Rotation { key: vault.key_id(), resealed: 0, kept: 0 };
        let mut changes = Vec::new();
        let mut page = Page { limit: Page::LARGEST, after: None };
        loop {
            let found = store.accounts(&Scope::Everything, None, &page).await?;
            for account in found.items {
                let Some(sealed) = account.sealed_secret else { continue };
                match vault.reseal(purpose_of(&account.kind), &account.id, &sealed) {
                    Ok(Some(anew)) => changes.push((account.id, sealed, anew)),
                    Ok(None) => rotation.kept += 1,
                    Err(error) => {
                        let message = format!("the secret of the account {} was not sealed anew: {error}", account.id);
                        return Err(AdminError::Conflict(message));
                    }
                }
            }
            page.after = found.next;
            if page.after.is_none() {
                break;
            }
        }
        rotation.resealed = changes.len();
        if changes.is_empty() {
            return Ok(rotation);
        }
        let detail = json!({ "resealed": rotation.resealed, "kept": rotation.kept });
        let entry = entry(&Actor::local(), "secrets.rotate", None, &rotation.key.to_string(), detail);
        if store.replace_secrets(&changes, &entry).await? {
            return Ok(rotation);
        }
    }
    Err(AdminError::Conflict("accounts are changed all the time; nothing was sealed anew".to_owned()))
}
