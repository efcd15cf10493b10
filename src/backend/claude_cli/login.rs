//! Asks the CLI whether a subscription is logged in.
//!
//! It looks at the profile only: neither is the provider asked, nor is a token proven good. What the CLI says of the
//! account's owner is not even read.

use std::time::Duration;

use serde::Deserialize;
use tokio::time::timeout;

use super::launch::Recipe;
use super::process::ReadError;
use super::spares::Spares;

/// How long the CLI may take; it is a whole start.
const LIMIT: Duration = Duration::from_secs(20);

/// More than it ever says.
const MAX_BYTES: usize = 64 * 1024;

/// What the CLI says of a profile.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Login {
    /// Whether there is a login at all.
    pub logged_in: bool,
    /// For example `claude.ai`, `oauth_token`, `api_key` or `none`.
    #[serde(default)]
    pub auth_method: Option<String>,
    /// For example `max`; unknown for a token.
    #[serde(default)]
    pub subscription_type: Option<String>,
}

/// Runs `claude auth status` with the environment of `recipe`.
pub(super) async fn ask(spares: &Spares, recipe: &Recipe) -> anyhow::Result<Login> {
    let launch = recipe.launch_command(["auth", "status"], "--json");
    let read = async {
        let mut process = spares.start(&launch).await?;
        let mut text = Vec::new();
        loop {
            match process.read_line().await {
                Ok(line) if text.len() + line.len() < MAX_BYTES => text.extend_from_slice(line),
                Ok(_) => anyhow::bail!("it said more than {MAX_BYTES} bytes"),
                Err(ReadError::Ended) => break,
                Err(error) => anyhow::bail!("{error}"),
            }
        }
        // What it said may name the owner: it is not quoted.
        serde_json::from_slice(&text).map_err(|_| anyhow::anyhow!("`claude auth status --json` gave no JSON"))
    };
    timeout(LIMIT, read)
        .await
        .unwrap_or_else(|_| Err(anyhow::anyhow!("no answer within {}", humantime::format_duration(LIMIT))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answers_of_both_builds_are_read() {
        let read = |text: &str| serde_json::from_str::<Login>(text).unwrap();
        let max = read(
            r#"{"loggedIn":true,"authMethod":"claude.ai","apiProvider":"firstParty","email":"a@b.c","orgId":null,"orgName":null,"subscriptionType":"max"}"#,
        );
        assert_eq!((max.logged_in, max.subscription_type.as_deref()), (true, Some("max")));
        assert!(!format!("{max:?}").contains("a@b.c"));
        let none = read(
            r#"{"loggedIn":false,"authMethod":"none","apiProvider":"firstParty","analyticsDisabled":false,"loginExpiresAt":null}"#,
        );
        assert_eq!((none.logged_in, none.auth_method.as_deref(), none.subscription_type), (false, Some("none"), None));
    }
}
