//! What is written down as the pool runs: alerts, usage, activities, and who changed what.

use serde_json::{Value, json};

use super::fields::Query;
use super::{Actor, Admin, AdminError, Result, entry};
use crate::runtime::clock;
use crate::store::{ActivityFilter, ActivityStatus, AlertFilter, AuditFilter, UsageFilter, UsageGroup};

/// How far back the provider is asked.
const DAYS: u32 = 7;

impl Admin {
    /// Alerts, the newest first.
    pub async fn alerts(&self, actor: &Actor, mut query: Query) -> Result<Value> {
        let filter = AlertFilter {
            scope: actor.scope_of(query.text("organizationId"))?,
            account: query.text("account"),
            kind: query.text("type"),
            severity: query.text("severity"),
            resolved: query.flag("resolved"),
            from: query.instant("from"),
            until: query.instant("until"),
        };
        let page = query.page();
        query.finish()?;
        Ok(json!(self.store().alerts(&filter, &page).await?))
    }

    /// Says that what an alert told of is over.
    pub async fn resolve_alert(&self, actor: &Actor, id: &str) -> Result<Value> {
        let entry = entry(actor, "alert.resolve", actor.organization.as_deref(), id, json!({}));
        if !self.store().resolve_alert(&actor.scope(), id, clock::now(), &entry).await? {
            return Err(AdminError::NotFound("open alert"));
        }
        self.tell(&entry);
        Ok(json!({ "id": id, "resolved": true }))
    }

    /// What was used: single records, or with `groupBy` sums of them.
    pub async fn usage(&self, actor: &Actor, mut query: Query) -> Result<Value> {
        let filter = UsageFilter {
            scope: actor.scope_of(query.text("organizationId"))?,
            subscription: query.text("subscription"),
            client: query.text("client"),
            model: query.text("model"),
            from: query.instant("from"),
            until: query.instant("until"),
        };
        let group = |text: &str| match text {
            "all" => Some(UsageGroup::All),
            "subscription" => Some(UsageGroup::Subscription),
            "client" => Some(UsageGroup::Client),
            "model" => Some(UsageGroup::Model),
            "day" => Some(UsageGroup::Day),
            _ => None,
        };
        let group = query.word("groupBy", group, "must be all, subscription, client, model or day");
        let page = query.page();
        query.finish()?;
        match group {
            Some(group) => Ok(json!({ "items": self.store().usage_totals(&filter, group).await?, "next": null })),
            None => Ok(json!(self.store().usage(&filter, &page).await?)),
        }
    }

    /// What the provider has counted for the organisation's keys, beside what was written down here for the same time. Of
    /// the house: its keys are nobody else's business.
    pub async fn organization_usage(&self, actor: &Actor, mut query: Query) -> Result<Value> {
        if actor.organization.is_some() {
            let message = "the provider's account is the operator's of the whole pool".to_owned();
            return Err(AdminError::Forbidden { param: None, message });
        }
        let days =
            query.word("days", |text| text.parse().ok().filter(|days| (1..=31).contains(days)), "must be 1 to 31");
        query.finish()?;
        let told = self.0.host.organization_usage(days.unwrap_or(DAYS)).await.map_err(AdminError::Unavailable)?;
        let filter = UsageFilter { from: Some(told.from), until: Some(told.until), ..UsageFilter::default() };
        let own = self.store().usage_totals(&filter, UsageGroup::Subscription).await?;
        let keys = told.keys.iter().map(|key| {
            let own = own.iter().find(|sum| Some(&sum.key) == key.subscription.as_ref());
            let mut item = json!(key);
            item["own"] = json!(own.map(|sum| json!({ "usage": sum.usage, "cost": sum.cost })));
            // Above zero: the key was used elsewhere too, or something of ours was lost.
            item["difference"] = json!(own.map(|sum| key.cost - sum.cost));
            item
        });
        let items: Vec<Value> = keys.collect();
        Ok(json!({ "from": told.from, "until": told.until, "reportedCost": told.cost, "items": items, "next": null }))
    }

    /// Requests and how they ended, the newest first.
    pub async fn activities(&self, actor: &Actor, mut query: Query) -> Result<Value> {
        let filter = ActivityFilter {
            scope: actor.scope_of(query.text("organizationId"))?,
            client: query.text("client"),
            subscription: query.text("subscription"),
            status: query.word(
                "status",
                ActivityStatus::parse,
                "must be running, completed, failed, cancelled or interrupted",
            ),
            from: query.instant("from"),
            until: query.instant("until"),
        };
        let page = query.page();
        query.finish()?;
        Ok(json!(self.store().activities(&filter, &page).await?))
    }

    /// One request.
    pub async fn activity(&self, actor: &Actor, id: &str) -> Result<Value> {
        let found = self.store().activity(&actor.scope(), id).await?;
        Ok(json!(found.ok_or(AdminError::NotFound("activity"))?))
    }

    /// Who changed what, the newest first.
    pub async fn audit(&self, actor: &Actor, mut query: Query) -> Result<Value> {
        let filter = AuditFilter {
            scope: actor.scope_of(query.text("organizationId"))?,
            actor: query.text("actor"),
            action: query.text("action"),
            target: query.text("target"),
            from: query.instant("from"),
            until: query.instant("until"),
        };
        let page = query.page();
        query.finish()?;
        Ok(json!(self.store().audit(&filter, &page).await?))
    }
}
