//! Secrets at rest: what is stored is sealed with AES-256-GCM under a key from the environment.
//!
//! A sealed text says under which key it was sealed, and is bound to whom it belongs: copied to another owner, or to
//! another use, it does not open. A new key takes over while the old one still opens what it sealed; then everything is
//! sealed anew. Nothing in here is ever shown: not the keys, not what they open.

mod key;

use std::fmt;

use aws_lc_rs::aead::{Aad, NONCE_LEN, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use secrecy::zeroize::Zeroize as _;
use secrecy::{ExposeSecret as _, SecretString};

use key::Key;
pub use key::{KeyError, KeyId};

/// Begins every sealed text of this form.
const VERSION: &str = "v1";

/// What a secret is used for; part of what it is bound to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A provider's API key.
    ApiKey,
    /// A long-lived token of the CLI (`claude setup-token`).
    OauthToken,
}

impl Purpose {
    const fn as_str(self) -> &'static str {
        match self {
            Self::ApiKey => "api-key",
            Self::OauthToken => "oauth-token",
        }
    }
}

/// The keys: one that seals, and those before it, which only open.
pub struct Vault {
    current: Key,
    previous: Vec<Key>,
}

/// Why a sealed text does not open. Says nothing of what is in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It does not have the form of a sealed text.
    #[error("this is not a sealed secret")]
    Malformed,
    /// None of the keys sealed it.
    #[error("it was sealed with the encryption key {key}, which is not given")]
    UnknownKey {
        /// The id of the key that did.
        key: KeyId,
    },
    /// It was changed, or belongs to somebody or something else.
    #[error("it was changed after it was sealed, or belongs to something else")]
    Refused,
}

/// Sealing failed; that happens only where the machine's source of random numbers fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the secret could not be sealed")]
pub struct SealError;

impl Vault {
    /// The keys as 64 hexadecimal digits each; `previous` holds any number of them, divided by commas.
    pub fn new(current: &str, previous: Option<&str>) -> Result<Self, KeyError> {
        let previous = previous.unwrap_or_default().split(',').map(str::trim).filter(|digits| !digits.is_empty());
        Ok(Self { current: Key::parse(current.trim())?, previous: previous.map(Key::parse).collect::<Result<_, _>>()? })
    }

    /// The key that seals.
    pub fn key_id(&self) -> KeyId {
        self.current.id()
    }

    /// Seals a secret of `owner`, the id of a subscription.
    pub fn seal(&self, purpose: Purpose, owner: &str, secret: &SecretString) -> Result<String, SealError> {
        let mut text = secret.expose_secret().as_bytes().to_vec();
        let sealed = self.current.aead().seal_in_place_append_tag(bound_to(purpose, owner), &mut text);
        let Ok(nonce) = sealed else {
            text.zeroize();
            return Err(SealError);
        };
        let bytes = [nonce.as_ref().as_slice(), &text].concat();
        Ok(format!("{VERSION}:{}:{}", self.current.id(), URL_SAFE_NO_PAD.encode(bytes)))
    }

    /// Opens what [`Vault::seal`] gave for the same use and owner.
    pub fn open(&self, purpose: Purpose, owner: &str, sealed: &str) -> Result<SecretString, OpenError> {
        let (id, bytes) = parse(sealed)?;
        let key = self.key(id).ok_or(OpenError::UnknownKey { key: id })?;
        let (nonce, text) = bytes.split_at_checked(NONCE_LEN).ok_or(OpenError::Malformed)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenError::Malformed)?;
        let mut text = text.to_vec();
        let opened = key.aead().open_in_place(nonce, bound_to(purpose, owner), &mut text);
        let secret = match opened {
            Ok(plain) => std::str::from_utf8(plain).map(SecretString::from).map_err(|_| OpenError::Malformed),
            Err(_) => Err(OpenError::Refused),
        };
        text.zeroize();
        secret
    }

    /// Seals anew, under the current key, what an earlier one sealed; `None` if the current one did.
    pub fn reseal(&self, purpose: Purpose, owner: &str, sealed: &str) -> Result<Option<String>, ResealError> {
        if parse(sealed)?.0 == self.current.id() {
            // It must open, or it would be lost without anybody noticing.
            self.open(purpose, owner, sealed)?;
            return Ok(None);
        }
        let secret = self.open(purpose, owner, sealed)?;
        Ok(Some(self.seal(purpose, owner, &secret)?))
    }

    fn key(&self, id: KeyId) -> Option<&Key> {
        std::iter::once(&self.current).chain(&self.previous).find(|key| key.id() == id)
    }
}

/// Why a secret was not sealed anew.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResealError {
    /// It does not open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// It could not be sealed.
    #[error(transparent)]
    Seal(#[from] SealError),
}

impl fmt::Debug for Vault {
    /// Ids only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let previous: Vec<_> = self.previous.iter().map(Key::id).collect();
        f.debug_struct("Vault").field("current", &self.current.id()).field("previous", &previous).finish()
    }
}

/// The key's id and the sealed bytes.
fn parse(sealed: &str) -> Result<(KeyId, Vec<u8>), OpenError> {
    let mut parts = sealed.splitn(3, ':');
    let (Some(VERSION), Some(id), Some(bytes)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(OpenError::Malformed);
    };
    let id = KeyId::parse(id).ok_or(OpenError::Malformed)?;
    Ok((id, URL_SAFE_NO_PAD.decode(bytes).map_err(|_| OpenError::Malformed)?))
}

/// What a sealed text is bound to. Neither part holds a NUL, so no two can be taken for each other.
fn bound_to(purpose: Purpose, owner: &str) -> Aad<Vec<u8>> {
    Aad::from(format!("auth-pool\0{VERSION}\0{}\0{owner}", purpose.as_str()).into_bytes())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ONE: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";
    const TWO: &str = "F00102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f";

    fn vault(current: &str, previous: Option<&str>) -> Vault {
        Vault::new(current, previous).unwrap()
    }

    fn opened(vault: &Vault, owner: &str, sealed: &str) -> Result<String, OpenError> {
        vault.open(Purpose::ApiKey, owner, sealed).map(|secret| secret.expose_secret().to_owned())
    }

    #[test]
    fn the_same_secret_is_never_sealed_alike() {
        let vault = vault(ONE, None);
        let seal = || vault.seal(Purpose::ApiKey, "a", &"sk-ant".into()).unwrap();
        assert_ne!(seal(), seal());
    }

    #[test]
    fn a_new_key_takes_over() {
        let old = vault(ONE, None).seal(Purpose::ApiKey, "a", &"sk-ant".into()).unwrap();
        let missing = OpenError::UnknownKey { key: vault(ONE, None).key_id() };
        assert_eq!(opened(&vault(TWO, None), "a", &old), Err(missing));
        let both = vault(TWO, Some(&format!(" {ONE} ,")));
        assert_eq!(opened(&both, "a", &old).as_deref(), Ok("sk-ant"));
        let new = both.reseal(Purpose::ApiKey, "a", &old).unwrap().unwrap();
        assert_eq!(opened(&vault(TWO, None), "a", &new).as_deref(), Ok("sk-ant"));
        assert_eq!(both.reseal(Purpose::ApiKey, "a", &new), Ok(None));
        // What does not open is not passed over, whoever sealed it.
        assert_eq!(both.reseal(Purpose::ApiKey, "b", &new), Err(OpenError::Refused.into()));
        assert_eq!(both.reseal(Purpose::OauthToken, "a", &old), Err(OpenError::Refused.into()));
    }

    #[test]
    fn keys_have_64_digits_and_are_not_shown() {
        for (bad, why) in [("", "0 characters"), (&ONE[1..], "63 characters"), (&"x".repeat(64), "hexadecimal")] {
            let error = Vault::new(bad, None).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(why), "{error}");
            assert!(bad.is_empty() || !error.contains(bad));
        }
        assert!(Vault::new(&"0".repeat(64), None).is_err(), "a key that anybody would guess");
        assert!(Vault::new(ONE, Some("x")).is_err());
        let shown = format!("{:?}", vault(ONE, Some(TWO)));
        assert!(!shown.contains("0001") && !shown.contains("[0, 1"), "{shown}");
    }

    proptest! {
        #[test]
        fn what_is_sealed_opens_for_its_owner_and_its_use_only(
            secret in ".{0,200}", owner in "[a-z0-9.-]{1,20}", other in "[a-z0-9.-]{1,20}",
        ) {
            let vault = vault(ONE, None);
            let sealed = vault.seal(Purpose::ApiKey, &owner, &secret.as_str().into()).unwrap();
            prop_assert!(secret.len() < 4 || !sealed.contains(&secret));
            prop_assert_eq!(opened(&vault, &owner, &sealed), Ok(secret));
            prop_assert!(vault.open(Purpose::OauthToken, &owner, &sealed).is_err());
            if owner != other {
                prop_assert_eq!(opened(&vault, &other, &sealed), Err(OpenError::Refused));
            }
        }

        #[test]
        fn whatever_is_changed_does_not_open(secret in ".{0,60}", at in any::<prop::sample::Index>(), to in "[ -~]") {
            let vault = vault(ONE, None);
            let sealed = vault.seal(Purpose::ApiKey, "a", &secret.as_str().into()).unwrap();
            let at = at.index(sealed.len());
            let changed = format!("{}{to}{}", &sealed[..at], &sealed[at + 1..]);
            if changed != sealed {
                prop_assert!(opened(&vault, "a", &changed).is_err(), "{}", changed);
            }
            prop_assert!(opened(&vault, "a", &sealed[..at]).is_err());
        }

        #[test]
        fn any_text_at_all_is_refused_and_nothing_breaks(text in ".{0,100}") {
            let vault = vault(ONE, None);
            prop_assert!(opened(&vault, "a", &text).is_err());
            let dressed_up = format!("v1:{}:{text}", vault.key_id());
            prop_assert!(opened(&vault, "a", &dressed_up).is_err());
        }
    }
}
