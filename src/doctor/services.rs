//! What the pool talks to beside the provider: alerts' channels, the store, the state shared with other replicas; and the
//! key of what is encrypted.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::Finding;
use crate::app::alert_settings;
use crate::config::env::SLACK_WEBHOOK_URL;
use crate::config::{Config, Env};
use crate::runtime::tasks::Tasks;
use crate::shared::{self, Address, Shared};
use crate::store::{Location, Store};

/// A bot's token, which other programs post to Slack with.
const SLACK_BOT_TOKEN: &str = "SLACK_BOT_TOKEN";

/// The key of what is encrypted: 32 bytes in hexadecimal.
const ENCRYPTION_KEY: &str = "ENCRYPTION_KEY";

/// Where the store is.
const DATABASE_URL: &str = "DATABASE_URL";

/// Where the state is that replicas share.
const REDIS_URL: &str = "REDIS_URL";

/// How long Redis may take to answer.
const REDIS_PATIENCE: Duration = Duration::from_secs(5);

/// Begins the keys of this check, so that it takes part in nothing.
const REDIS_PREFIX: &str = "auth-pool:doctor:";

/// Looks at everything that the environment names.
pub(super) async fn connections(env: &Env, tasks: &Tasks) -> Vec<Finding> {
    vec![
        encryption_key(env.var(ENCRYPTION_KEY)),
        store(env.var(DATABASE_URL)).await,
        redis(env.var(REDIS_URL), tasks).await,
    ]
}

fn encryption_key(key: Option<&str>) -> Finding {
    let advice = "`openssl rand -hex 32` makes one";
    match key {
        None => Finding::off(ENCRYPTION_KEY, "it is not set: nothing is kept that would have to be encrypted"),
        Some(key) if key.len() == 64 && key.bytes().all(|byte| byte.is_ascii_hexdigit()) => {
            Finding::ok(ENCRYPTION_KEY, "64 hexadecimal digits")
        }
        Some(_) => Finding::failed(ENCRYPTION_KEY, "it is not 64 hexadecimal digits", advice),
    }
}

async fn store(url: Option<&str>) -> Finding {
    const CHECK: &str = "store";
    let Some(url) = url else { return Finding::off(CHECK, format!("{DATABASE_URL} is not set")) };
    let location = match Location::from_url(url) {
        Ok(location) => location,
        Err(error) => return Finding::failed(CHECK, format!("{DATABASE_URL} {error}"), "correct it"),
    };
    if let Location::Sqlite { path, .. } = &location
        && !path.exists()
    {
        return Finding::ok(CHECK, format!("{location}: made when it is first used"));
    }
    let store = Store::new(location);
    let answer = store.ping().await;
    store.close().await;
    match answer {
        Ok(()) => Finding::ok(CHECK, format!("{} answers", store.location())),
        Err(error) => {
            let advice = format!("start the database, or correct {DATABASE_URL}");
            Finding::failed(CHECK, format!("{}: {error}", store.location()), advice)
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

    #[test]
    fn a_key_has_64_hexadecimal_digits_and_is_never_shown() {
        assert_eq!(encryption_key(None).verdict, Verdict::Off);
        assert_eq!(encryption_key(Some(&"0aF".repeat(22)[..64])).verdict, Verdict::Ok);
        for bad in ["secret".to_owned(), "0".repeat(63), "g".repeat(64)] {
            let finding = encryption_key(Some(&bad));
            assert_eq!(finding.verdict, Verdict::Failed);
            assert!(!format!("{finding:?}").contains(&bad), "{finding:?}");
        }
    }

    #[tokio::test]
    async fn services_that_do_not_answer_are_named_without_their_passwords() {
        // Nothing listens on the discard port of this machine.
        let finding = store(Some("postgres://me:s3cret@127.0.0.1:9/pool")).await;
        assert_eq!(finding.verdict, Verdict::Failed, "{finding:?}");
        assert!(!format!("{finding:?}").contains("s3cret"), "{finding:?}");
        assert_eq!(store(Some("mysql://127.0.0.1")).await.verdict, Verdict::Failed);
        assert_eq!(store(None).await.verdict, Verdict::Off);
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("pool.sqlite");
        assert_eq!(store(Some(&format!("sqlite:{}", file.display()))).await.verdict, Verdict::Ok);
        assert!(!file.exists(), "looking changes nothing");

        let tasks = Tasks::default();
        let finding = redis(Some("redis://:s3cret@127.0.0.1:9"), &tasks).await;
        assert_eq!(finding.verdict, Verdict::Failed, "{finding:?}");
        assert!(!format!("{finding:?}").contains("s3cret"), "{finding:?}");
        assert_eq!(redis(None, &tasks).await.verdict, Verdict::Off);
        tokio::time::timeout(Duration::from_secs(30), tasks.finished()).await.expect("nothing is left behind");
    }
}
