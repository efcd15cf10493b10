//! Alerts of the whole program that are open: what they tell of is this program's own, so it closes those that it raised
//! and no other. Of several programs on one database each says now and then that its own still hold; those of which
//! nobody says so were raised by one that is gone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info};

use super::running::{BEAT, SILENCE};
use crate::alert::{Alert, Kind};
use crate::runtime::clock;
use crate::store::{Result, Store};

/// What an alert tells of: its kind, and for what the runaway guard stops also what that is and whose.
type Subject = (Kind, [Option<String>; 2]);

/// The ids of the open ones that this program raised. A cheap handle.
#[derive(Clone, Default)]
pub(super) struct Raised(Arc<Mutex<HashMap<Subject, Vec<String>>>>);

impl Raised {
    /// It was raised, and is kept under this id.
    pub(super) fn begin(&self, alert: &Alert, id: String) {
        self.lock().entry(subject(alert)).or_default().push(id);
    }

    /// It says that earlier ones are over: these.
    pub(super) fn end(&self, alert: &Alert) -> Vec<String> {
        self.lock().remove(&subject(alert)).unwrap_or_default()
    }

    /// Says of them that they hold and closes those that nobody holds, until it is dropped. There is nobody else who
    /// serves from a file: what is open there when it starts was closed then.
    pub(super) async fn look_after(&self, store: &Store) {
        if store.location().is_ours_alone() {
            return;
        }
        let mut ticks = interval(BEAT);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            match self.beat(store).await {
                Ok(0) => {}
                Ok(lost) => info!(lost, "nobody knows whether what alerts told of still holds: they are closed"),
                // Whoever writes says so loudly.
                Err(error) => debug!(%error, "nobody hears which alerts hold"),
            }
        }
    }

    async fn beat(&self, store: &Store) -> Result<u64> {
        let now = clock::now();
        let mut ids: Vec<String> = self.lock().values().flatten().cloned().collect();
        // In one order everywhere, so that two programs on one database never wait for each other in a circle.
        ids.sort();
        store.hold_alerts(&ids, now).await?;
        store.close_lost_alerts(now - SILENCE, now).await
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Subject, Vec<String>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn subject(alert: &Alert) -> Subject {
    let detail = |name: &str| alert.data.get(name).and_then(Value::as_str).map(str::to_owned);
    let details = if alert.kind == Kind::Runaway { [detail("what"), detail("client")] } else { [None, None] };
    (alert.kind, details)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::alert::Severity;
    use crate::units::Timestamp;

    fn alert(kind: Kind, data: Value) -> Alert {
        let Value::Object(data) = data else { panic!("an object") };
        let (at, severity, message) = (Timestamp::from_secs(1), Severity::Critical, String::new());
        Alert { at, kind, severity, subscription: None, message, data, resolved: false }
    }

    #[test]
    fn an_end_is_that_of_its_own_subject() {
        let raised = Raised::default();
        let prompts = |client: &str| json!({ "what": "repeated_prompts", "client": client, "cause": "c" });
        let (ann, bob) = (alert(Kind::Runaway, prompts("ann")), alert(Kind::Runaway, prompts("bob")));
        let spawns = alert(Kind::Runaway, json!({ "what": "spawns", "client": null }));
        for (alert, id) in [(&ann, "1"), (&bob, "2"), (&spawns, "3"), (&ann, "4")] {
            raised.begin(alert, id.to_owned());
        }
        // A store that fails may be told with another cause each time.
        raised.begin(&alert(Kind::StoreFailed, json!({ "what": "x" })), "5".to_owned());
        let over = alert(Kind::Runaway, json!({ "what": "repeated_prompts", "client": "ann", "afterSeconds": 9 }));
        assert_eq!(raised.end(&over), ["1", "4"]);
        assert_eq!(raised.end(&over), [""; 0]);
        assert_eq!(raised.end(&spawns), ["3"]);
        assert_eq!(raised.end(&alert(Kind::StoreFailed, json!({}))), ["5"]);
        assert_eq!(raised.end(&bob), ["2"]);
    }
}
