//! Encryption keys.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, RandomizedNonceKey};
use secrecy::zeroize::Zeroize as _;
use sha2::{Digest as _, Sha256};

/// Bytes of a key.
const KEY_BYTES: usize = 32;

/// Why something is no encryption key. Never shows it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// It does not have 64 digits.
    #[error("must be 64 hexadecimal digits (`openssl rand -hex 32` makes some), and has {characters} characters")]
    Length {
        /// How many it has.
        characters: usize,
    },
    /// It holds something else than digits.
    #[error("must be 64 hexadecimal digits (`openssl rand -hex 32` makes some), and holds other characters")]
    Digits,
    /// All its bytes are the same.
    #[error("is the same byte over and over, which anybody could guess: make one with `openssl rand -hex 32`")]
    Weak,
    /// The cipher does not take it.
    #[error("is not accepted by the cipher")]
    Unusable,
}

/// Tells keys apart without telling anything of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyId([u8; 8]);

impl KeyId {
    /// As [`fmt::Display`] shows it.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 8];
        decode_hex(text, &mut bytes).then_some(Self(bytes)).filter(|id| id.to_string() == text)
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A key in use.
pub(super) struct Key {
    id: KeyId,
    aead: RandomizedNonceKey,
}

impl Key {
    pub(super) fn parse(digits: &str) -> Result<Self, KeyError> {
        let characters = digits.chars().count();
        if characters != KEY_BYTES * 2 {
            return Err(KeyError::Length { characters });
        }
        let mut bytes = [0; KEY_BYTES];
        let key = if !decode_hex(digits, &mut bytes) {
            Err(KeyError::Digits)
        } else if bytes.iter().all(|byte| *byte == bytes[0]) {
            Err(KeyError::Weak)
        } else {
            RandomizedNonceKey::new(&AES_256_GCM, &bytes)
                .map(|aead| Self { id: id_of(&bytes), aead })
                .map_err(|_| KeyError::Unusable)
        };
        bytes.zeroize();
        key
    }

    pub(super) const fn id(&self) -> KeyId {
        self.id
    }

    /// Draws a new nonce for everything that it seals.
    pub(super) const fn aead(&self) -> &RandomizedNonceKey {
        &self.aead
    }
}

/// The beginning of a hash: 256 random bits cannot be found from it.
fn id_of(key: &[u8; KEY_BYTES]) -> KeyId {
    let mut hash = Sha256::new();
    hash.update(b"auth-pool encryption key\0");
    hash.update(key);
    let mut id = [0; 8];
    id.iter_mut().zip(hash.finalize()).for_each(|(to, from)| *to = from);
    KeyId(id)
}

/// Whether `digits` are as many hexadecimal digits as fill `bytes`.
fn decode_hex(digits: &str, bytes: &mut [u8]) -> bool {
    let digits = digits.as_bytes();
    digits.len() == bytes.len() * 2
        && digits.iter().all(u8::is_ascii_hexdigit)
        && bytes.iter_mut().zip(digits.chunks(2)).all(|(byte, pair)| {
            let parsed = std::str::from_utf8(pair).ok().and_then(|pair| u8::from_str_radix(pair, 16).ok());
            parsed.inspect(|parsed| *byte = *parsed).is_some()
        })
}
