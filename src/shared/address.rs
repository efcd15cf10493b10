//! Where the server is. The password stays inside.

use std::fmt;

use redis::{Client, ConnectionAddr, IntoConnectionInfo as _};

/// An address like `redis://user:password@host:6379/0` or `rediss://...` for TLS. Shown without user and password.
#[derive(Clone)]
pub struct Address {
    client: Client,
    shown: String,
}

/// The text is no such address. The text itself is not repeated: it can hold a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be `redis://[user:password@]host[:port][/database]`, or `rediss://...` for TLS")]
pub struct InvalidAddress;

impl Address {
    /// Reads an address. Nothing is connected yet.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        let info = text.trim().into_connection_info().map_err(|_| InvalidAddress)?;
        let shown = match info.addr() {
            ConnectionAddr::Tcp(host, port) => format!("redis://{host}:{port}"),
            ConnectionAddr::TcpTls { host, port, insecure: false, .. } => format!("rediss://{host}:{port}"),
            ConnectionAddr::Unix(path) => format!("unix:{}", path.display()),
            // Also TLS without a checked certificate: anybody on the way could read and change everything.
            _ => return Err(InvalidAddress),
        };
        let client = Client::open(info).map_err(|_| InvalidAddress)?;
        Ok(Self { client, shown })
    }

    pub(super) const fn client(&self) -> &Client {
        &self.client
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_password() {
        for (text, shown) in [
            ("redis://localhost", "redis://localhost:6379"),
            ("redis://:s3cret@10.0.0.7:7000/2", "redis://10.0.0.7:7000"),
            ("rediss://ann:s3cret@cache.example.com:6380", "rediss://cache.example.com:6380"),
            (" redis://localhost:1 ", "redis://localhost:1"),
        ] {
            let address = Address::parse(text).unwrap();
            assert_eq!(address.to_string(), shown);
            assert!(!format!("{address:?}").contains("s3cret"));
        }
    }

    #[test]
    fn what_is_no_address_is_refused_without_being_repeated() {
        for text in ["", "localhost:6379", "http://:s3cret@localhost", "redis://", "rediss://host/#insecure"] {
            let error = Address::parse(text).map(|_| ()).unwrap_err();
            assert!(!error.to_string().contains("s3cret"));
        }
    }
}
