//! What the pool talks to beside the provider: alerts' channels, the store, the state shared with other replicas; and the
//! key of what is encrypted.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Finding;
use crate::app::{Registration, alert_settings, registered, store_location, vault};
use crate::config::env::SLACK_WEBHOOK_URL;
use crate::config::{Config, Env};
use crate::runtime::tasks::Tasks;
use crate::shared::{self, Address, Shared};
use crate::store::{Location, Store};

/// A bot's token, which other programs post to Slack with.
const SLACK_BOT_TOKEN: &str = "SLACK_BOT_TOKEN";

/// The key of what is encrypted.
const ENCRYPTION_KEY: &str = "ENCRYPTION_KEY";

/// The check of the store.
const STORE: &str = "store";

/// Where the state is that replicas share.
const REDIS_URL: &str = "REDIS_URL";

/// How long Redis may take to answer.
const REDIS_PATIENCE: Duration = Duration::from_secs(5);

/// Begins the keys of this check, so that it takes part in nothing.
const REDIS_PREFIX: &str = "auth-pool:doctor:";

/// Looks at the key of what is encrypted, at the store and what is registered there, and at what replicas share. Where the
/// store can be read, what is registered comes back with the configuration.
pub(super) async fn connections(
    config: Option<&Config>,
    env: &Env,
    tasks: &Tasks,
) -> (Vec<Finding>, Option<Registration>) {
    let mut findings = vec![encryption_key(env)];
    let mut registration = None;
    match config {
        Some(config) => {
            let (found, known) = store(config, env).await;
            findings.extend(found);
            registration = known;
        }
        None => findings.push(Finding::off(STORE, "the configuration, which names it, cannot be used")),
    }
    findings.push(redis(env.var(REDIS_URL), tasks).await);
    (findings, registration)
}

fn encryption_key(env: &Env) -> Finding {
    match vault(env) {
        Ok(None) => {
            let seen = "it is not set: API keys and tokens cannot be registered";
            Finding::off(ENCRYPTION_KEY, seen).advise("`openssl rand -hex 32` makes one")
        }
        Ok(Some(vault)) => {
            Finding::ok(ENCRYPTION_KEY, format!("set; secrets are sealed with the key {}", vault.key_id()))
        }
        Err(error) => Finding::failed(ENCRYPTION_KEY, format!("{error:#}"), "`openssl rand -hex 32` makes one"),
    }
}

/// Where the configuration says that it is.
async fn store(config: &Config, env: &Env) -> (Vec<Finding>, Option<Registration>) {
    let location = match store_location(config) {
        Ok(Some(location)) => location,
        Ok(None) => return (vec![Finding::off(STORE, "nothing is kept over a restart, as configured")], None),
        Err(error) => return (vec![Finding::failed(STORE, format!("{error:#}"), "correct it")], None),
    };
    if let Location::Sqlite { path, .. } = &location
        && !path.exists()
    {
        return (vec![Finding::ok(STORE, format!("{location}: made when it is first used"))], None);
    }
    let store = Store::new(location);
    let answer = store.ping().await;
    let found = match answer {
        Ok(()) => {
            let mut findings = vec![Finding::ok(STORE, format!("{} answers", store.location()))];
            let known = registered(config, env, &store).await;
            findings.extend(registrations(known.as_ref()));
            (findings, known.ok())
        }
        Err(error) => {
            let advice = "start the database, or correct `store.url` or DATABASE_URL";
            (vec![Finding::failed(STORE, format!("{}: {error}", store.location()), advice)], None)
        }
    };
    store.close().await;
    found
}

fn registrations(known: Result<&Registration, &anyhow::Error>) -> Vec<Finding> {
    const CHECK: &str = "registered";
    match known {
        Err(error) => {
            vec![Finding::failed(CHECK, format!("it cannot be read: {error:#}"), "see the line of the store")]
        }
        Ok(Registration { counts: (accounts, keys), problems, .. }) => {
            let left_out = problems.iter().map(|(id, problem)| {
                let advice = "set the ENCRYPTION_KEY it was sealed with, or register it anew (`auth-pool accounts`)";
                Finding::failed(CHECK, format!("the account {id} is not in the pool: {problem}"), advice)
            });
            std::iter::once(Finding::ok(CHECK, format!("{accounts} accounts, {keys} client keys")))
                .chain(left_out)
                .collect()
        }
    }
}

async fn redis(url: Option<&str>, tasks: &Tasks) -> Finding {
    const CHECK: &str = "Redis";
    let Some(url) = url else { return Finding::off(CHECK, format!("{REDIS_URL} is not set")) };
    let address = match Address::parse(url) {
        Ok(address) => address,
        Err(error) => return Finding::failed(CHECK, format!("{REDIS_URL}: {error}"), "correct it"),
    };
    let stop = CancellationToken::new();
    let settings = shared::Settings { prefix: REDIS_PREFIX.to_owned(), ..shared::Settings::default() };
    let shared = Shared::start(&address, settings, |_| {}, tasks, &stop);
    let has_answered = shared.joined(REDIS_PATIENCE).await;
    let cause = shared.status().cause.unwrap_or_else(|| "no answer".to_owned());
    stop.cancel();
    if has_answered {
        return Finding::ok(CHECK, format!("{address} answers"));
    }
    let advice = format!("start it, or correct {REDIS_URL}; until then each replica counts by itself");
    Finding::failed(CHECK, format!("{address}: {cause}"), advice)
}

pub(super) fn check(config: &Config, env: &Env) -> Vec<Finding> {
    let channels = alert_settings(config, env).channels;
    let try_it = "`auth-pool alerts test` sends one alert of each rule";
    let slack = if channels.slack.is_some() {
        Finding::ok("Slack", format!("{SLACK_WEBHOOK_URL} is set")).advise(try_it)
    } else if env.var(SLACK_BOT_TOKEN).is_some() {
        let seen = format!("{SLACK_BOT_TOKEN} is set, but alerts go through an incoming webhook");
        Finding::warning("Slack", seen, format!("set {SLACK_WEBHOOK_URL}"))
    } else {
        Finding::off("Slack", format!("{SLACK_WEBHOOK_URL} is not set"))
    };
    let webhook = match &channels.webhook {
        Some(target) if target.secret.is_none() => Finding::warning(
            "webhook",
            "configured, but its messages are not signed",
            "name in `notifications.webhookSecretEnv` the variable that holds a key",
        ),
        Some(_) => Finding::ok("webhook", "configured and signed").advise(try_it),
        None => Finding::off("webhook", "`notifications.webhookUrl` is not set"),
    };
    vec![slack, webhook]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Verdict;

    fn env(vars: &[(&str, &str)]) -> Env {
        vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn a_key_has_64_hexadecimal_digits_and_is_never_shown() {
        let check = |key: &str| encryption_key(&env(&[(ENCRYPTION_KEY, key)]));
        assert_eq!(encryption_key(&env(&[])).verdict, Verdict::Off);
        assert_eq!(check(&"0aF".repeat(22)[..64]).verdict, Verdict::Ok);
        for bad in ["secret".to_owned(), "0123456789abcde".repeat(5)[..63].to_owned(), "g".repeat(64)] {
            let finding = check(&bad);
            assert_eq!(finding.verdict, Verdict::Failed);
            assert!(!format!("{finding:?}").contains(&bad), "{finding:?}");
        }
        let finding =
            encryption_key(&env(&[(ENCRYPTION_KEY, &"0aF".repeat(22)[..64]), ("ENCRYPTION_KEY_PREVIOUS", "x")]));
        assert_eq!(finding.verdict, Verdict::Failed, "{finding:?}");
    }

    /// What is said of the store that a file and the environment name.
    async fn store_of(file: &serde_json::Value, vars: &[(&str, &str)]) -> Vec<Finding> {
        let home = tempfile::tempdir().unwrap();
        std::fs::create_dir(home.path().join(".claude")).unwrap();
        let path = home.path().join("auth-pool.json");
        std::fs::write(&path, file.to_string()).unwrap();
        let home = home.path().to_string_lossy().into_owned();
        let env = env(&[vars, &[("HOME", home.as_str())]].concat());
        let config = crate::config::load(&env, &crate::config::Overrides { config: Some(path), listen: None }).unwrap();
        store(&config, &env).await.0
    }

    #[tokio::test]
    async fn services_that_do_not_answer_are_named_without_their_passwords() {
        // Nothing listens on the discard port of this machine.
        let gone = "postgres://me:s3cret@127.0.0.1:9/pool";
        let by_file = store_of(&serde_json::json!({ "store": { "url": gone } }), &[]).await;
        let by_environment = store_of(&serde_json::json!({}), &[("DATABASE_URL", gone)]).await;
        for findings in [by_file, by_environment] {
            assert_eq!((findings.len(), findings[0].verdict), (1, Verdict::Failed), "{findings:?}");
            assert!(!format!("{findings:?}").contains("s3cret"), "{findings:?}");
        }
        let none = store_of(&serde_json::json!({ "store": { "url": "none" } }), &[]).await;
        assert_eq!(none[0].verdict, Verdict::Off);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pool.sqlite");
        let fresh = store_of(&serde_json::json!({ "store": { "path": file } }), &[]).await;
        assert_eq!(fresh[0].verdict, Verdict::Ok, "{fresh:?}");
        assert!(!file.exists(), "looking changes nothing");

        let tasks = Tasks::default();
        let finding = redis(Some("redis://:s3cret@127.0.0.1:9"), &tasks).await;
        assert_eq!(finding.verdict, Verdict::Failed, "{finding:?}");
        assert!(!format!("{finding:?}").contains("s3cret"), "{finding:?}");
        assert_eq!(redis(None, &tasks).await.verdict, Verdict::Off);
        tokio::time::timeout(Duration::from_secs(30), tasks.finished()).await.expect("nothing is left behind");
    }
}
