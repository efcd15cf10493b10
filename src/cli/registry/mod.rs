//! `auth-pool accounts` and `auth-pool keys`: what is registered, from the terminal.
//!
//! They ask the running program, by the same requests that anybody sends to it. Where none runs they do the same to the store
//! themselves, and it is found there by the next one that starts. Secrets come from a variable or from standard input: what
//! stands in a command line can be read by everybody on the machine.

mod accounts;
mod keys;
mod office;
mod table;

pub(super) use accounts::AccountsCommand;
pub(super) use keys::KeysCommand;
pub(super) use office::{Office, Where, note};

use crate::config::Env;

pub(super) async fn accounts(command: AccountsCommand, env: &Env) -> anyhow::Result<()> {
    accounts::run(command, env).await
}

pub(super) async fn keys(command: KeysCommand, env: &Env) -> anyhow::Result<()> {
    keys::run(command, env).await
}
