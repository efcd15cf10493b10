//! What alerts can and cannot do.

use super::*;

#[test]
fn what_alerts_cannot_do_is_refused_by_name() {
    let no_mail = "`email` is not possible: nothing here sends mail; use `webhook`, `slack` or `log`";
    let file = json!({
        "notifications": {"rules": [
            {"type": "rotation", "channels": ["log", "email"]},
            {"type": "recovered", "channels": ["email"], "enabled": false}
        ]},
        "quotaAlerts": {"channels": {"slack": true, "webhook": true, "email": true}}
    });
    let home = Home::new().with("SLACK_WEBHOOK_URL", "http://10.0.0.1/secret");
    let problems = home.problems(&file);
    assert_eq!(
        problems,
        [
            format!("notifications.rules[0].channels: {no_mail}"),
            format!("quotaAlerts.channels.email: {no_mail}"),
            "quotaAlerts.channels.slack: names `slack`, but the environment variable SLACK_WEBHOOK_URL must begin with \
             `https://`, unless `allowHosts` names its host"
                .to_owned(),
            "quotaAlerts.channels.webhook: is on, but there is no `notifications.webhookUrl`".to_owned(),
        ]
    );
    let mut off = file.clone();
    off["quotaAlerts"]["enabled"] = json!(false);
    off["notifications"]["rules"][0]["enabled"] = json!(false);
    assert!(home.load(&off).is_ok(), "what is off is not looked at");
    let good = json!({"notifications": {"allowHosts": ["10.0.0.1"]}, "quotaAlerts": {"channels": {"slack": true}}});
    assert!(home.load(&good).is_ok());
}
