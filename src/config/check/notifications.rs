//! Alerts and where they go.

use std::net::IpAddr;

use reqwest::Url;

use super::Context;
use crate::config::env::SLACK_WEBHOOK_URL;
use crate::config::model::{Channel, Notifications, Rule, RuleKind};
use crate::config::problem::{FieldPath, Findings};
use crate::config::raw::{self, RuleType};
use crate::config::sections::QuotaChannels;
use crate::runtime::address::is_public;

pub(super) fn check(section: &raw::Notifications, context: &Context<'_>, findings: &mut Findings) -> Notifications {
    let at = FieldPath::field("notifications");
    let allow_hosts = allow_hosts(section);
    if let Some(url) = &section.webhook_url
        && let Err(message) = check_webhook(url, &allow_hosts)
    {
        findings.problem(at.key("webhookUrl"), message);
    }
    if let Some(name) = &section.webhook_secret_env
        && context.env.var(name).is_none()
    {
        // The name is not quoted: somebody may have written the secret itself here.
        findings.problem(at.key("webhookSecretEnv"), "names an environment variable that is not set");
    }
    let rules = section.rules.iter().enumerate();
    let rules = rules.filter_map(|(index, rule)| {
        check_rule(rule.as_ref()?, &at.key("rules").index(index), section, context, findings)
    });
    Notifications {
        rules: rules.collect(),
        webhook_url: section.webhook_url.clone(),
        webhook_secret_env: section.webhook_secret_env.clone(),
        allow_hosts,
    }
}

fn check_rule(
    rule: &raw::Rule,
    at: &FieldPath,
    section: &raw::Notifications,
    context: &Context<'_>,
    findings: &mut Findings,
) -> Option<Rule> {
    let url = FieldPath::field("notifications").key("webhookUrl");
    if rule.enabled
        && rule.channels.contains(&Channel::Webhook)
        && section.webhook_url.is_none()
        && !findings.is_unusable(&url)
    {
        findings.problem(at.key("channels"), "names `webhook`, but there is no `webhookUrl`");
    }
    if rule.enabled && rule.channels.contains(&Channel::Slack) {
        needs_slack(&at.key("channels"), section, context, findings);
    }
    if rule.enabled && rule.channels.contains(&Channel::Email) {
        findings.problem(at.key("channels"), NO_MAIL);
    }
    let threshold_at = at.key("threshold");
    let kind = match (rule.kind?, rule.threshold) {
        (RuleType::UsageThreshold, Some(threshold)) => RuleKind::UsageThreshold { threshold },
        (RuleType::UsageThreshold, None) => {
            if !findings.is_unusable(&threshold_at) {
                findings.problem(threshold_at, "is missing: `usage_threshold` needs one, for example 0.8");
            }
            return None;
        }
        (_, Some(_)) => {
            findings.problem(threshold_at, "has no meaning here: only `usage_threshold` has one");
            return None;
        }
        (RuleType::Failover, None) => RuleKind::Failover,
        (RuleType::Rotation, None) => RuleKind::Rotation,
        (RuleType::LimitReached, None) => RuleKind::LimitReached,
        (RuleType::AuthFailed, None) => RuleKind::AuthFailed,
        (RuleType::Recovered, None) => RuleKind::Recovered,
        (RuleType::ReplicasApart, None) => RuleKind::ReplicasApart,
        (RuleType::Runaway, None) => RuleKind::Runaway,
    };
    Some(Rule { kind, channels: rule.channels.clone(), enabled: rule.enabled })
}

/// Checks the channels of the quota alerts, which are at `at`.
pub(super) fn check_quota(
    channels: QuotaChannels,
    at: &FieldPath,
    section: &raw::Notifications,
    context: &Context<'_>,
    findings: &mut Findings,
) {
    if channels.slack {
        needs_slack(&at.key("slack"), section, context, findings);
    }
    if channels.webhook
        && section.webhook_url.is_none()
        && !findings.is_unusable(&FieldPath::field("notifications").key("webhookUrl"))
    {
        findings.problem(at.key("webhook"), "is on, but there is no `notifications.webhookUrl`");
    }
    if channels.email {
        findings.problem(at.key("email"), NO_MAIL);
    }
}

const NO_MAIL: &str = "`email` is not possible: nothing here sends mail; use `webhook`, `slack` or `log`";

/// Reports the use of Slack at `at` while nobody has said where Slack is, or somewhere it cannot be.
fn needs_slack(at: &FieldPath, section: &raw::Notifications, context: &Context<'_>, findings: &mut Findings) {
    let message = match context.env.var(SLACK_WEBHOOK_URL) {
        None => "is not set".to_owned(),
        Some(url) => match check_webhook(url, &allow_hosts(section)) {
            Ok(()) => return,
            Err(message) => message,
        },
    };
    findings.problem(at, format!("names `slack`, but the environment variable {SLACK_WEBHOOK_URL} {message}"));
}

fn allow_hosts(section: &raw::Notifications) -> Vec<String> {
    section.allow_hosts.iter().flatten().map(|host| host.trim_matches(['[', ']']).to_lowercase()).collect()
}

/// What can be said of a webhook's address without looking it up; the sender checks what its name resolves to. The
/// address is not quoted: for many services it is the credential.
fn check_webhook(text: &str, allow_hosts: &[String]) -> Result<(), String> {
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    if !matches!(url.scheme(), "https" | "http") {
        return Err("must begin with `https://`".to_owned());
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err("must not contain a user name or password".to_owned());
    }
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).trim_end_matches('.').to_lowercase();
    if allow_hosts.contains(&host) {
        return Ok(());
    }
    if url.scheme() == "http" {
        return Err("must begin with `https://`, unless `allowHosts` names its host".to_owned());
    }
    let is_local = host == "localhost" || host.ends_with(".localhost");
    if is_local || host.parse().is_ok_and(|address: IpAddr| !is_public(address)) {
        return Err("must be on a public address, unless `allowHosts` names its host".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_webhook_is_https_on_a_public_address_unless_its_host_is_allowed() {
        for good in ["https://your-webhook-endpoint.com/notify", "https://1.1.1.1/x", "https://[2606:4700::1111]/"] {
            assert_eq!(check_webhook(good, &[]), Ok(()), "{good}");
        }
        for bad in [
            "http://example.com/",
            "https://127.0.0.1/",
            "https://0x7f.1/",
            "https://localhost:1/",
            "https://10.1.2.3/",
            "https://169.254.169.254/latest",
            "https://100.64.0.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[fd00::1]/",
            "https://user:secret@example.com/",
            "ftp://example.com",
            "example.com",
        ] {
            let message = check_webhook(bad, &[]).err().unwrap_or_default();
            assert!(!message.is_empty() && !message.contains("secret"), "{bad}: {message}");
        }
        assert_eq!(check_webhook("http://127.0.0.1:9/hook", &["127.0.0.1".to_owned()]), Ok(()));
    }
}
