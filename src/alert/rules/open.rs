//! What was told before a restart and is not over.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Rulebook, Told};
use crate::alert::Kind;
use crate::units::Timestamp;

/// How far the threshold that was kept may be off: it is kept in percent, to the hundredth.
const ROUNDING: f64 = 0.006;

/// A share of a week that was told, and not that it is over.
#[derive(Clone, Debug, PartialEq)]
pub struct Open {
    /// Of which subscription.
    pub subscription: Arc<str>,
    /// As what it was told.
    pub kind: Kind,
    /// The threshold, in percent.
    pub threshold: f64,
    /// When it was told.
    pub at: Timestamp,
}

impl Rulebook {
    /// Takes in what was told before. It is not told again, and its end will be. Returns what no rule is about any more:
    /// nobody would ever say that it is over.
    pub fn recall(&mut self, open: impl IntoIterator<Item = Open>) -> Vec<Open> {
        let mut strangers = Vec::new();
        let mut highest: HashMap<Arc<str>, (f64, Timestamp)> = HashMap::new();
        for open in open {
            let level = self
                .levels
                .iter()
                .find(|level| level.kind == open.kind && (level.share * 100.0 - open.threshold).abs() < ROUNDING);
            let Some(level) = level else {
                strangers.push(open);
                continue;
            };
            let crossed = self.told.entry(Arc::clone(&open.subscription)).or_default();
            if crossed.iter().any(|told| told.is(level)) {
                continue;
            }
            crossed.push(Told { kind: level.kind, share: level.share, at: open.at, week_ends: None, sent: true });
            if level.kind == Kind::QuotaAlert {
                let (share, at) = highest.entry(open.subscription).or_insert((level.share, open.at));
                (*share, *at) = (share.max(level.share), (*at).max(open.at));
            }
        }
        // Of several quota levels crossed at once only the highest was told.
        for (subscription, (share, at)) in highest {
            let crossed = self.told.entry(subscription).or_default();
            for level in self.levels.iter().filter(|level| level.kind == Kind::QuotaAlert && level.share < share) {
                if !crossed.iter().any(|told| told.is(level)) {
                    crossed.push(Told { kind: level.kind, share: level.share, at, week_ends: None, sent: false });
                }
            }
        }
        strangers
    }
}
