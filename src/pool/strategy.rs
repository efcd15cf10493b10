//! The strategies: what makes one subscription preferable to another for a new session.
//!
//! A strategy only orders. Who is eligible at all is the same for each, so a fallback strategy decides where the one
//! before it sees no difference.

use crate::units::Timestamp;

use super::command::{Priority, Strategy};
use super::usage::WEEK;

/// Strategies that count: the first and the fallbacks.
pub(super) const STRATEGIES: usize = 3;

/// What each strategy says of a subscription; less is better.
pub(super) type Preference = [i64; STRATEGIES];

/// What strategies look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Qualities {
    /// The health score before it is cut to 0..100.
    pub(super) health: f64,
    /// Client slots in use, and how many there are.
    pub(super) clients: (u32, u32),
    /// Requests in flight, and how many there may be.
    pub(super) in_flight: (u32, u32),
    /// When it was last chosen, counted in grants.
    pub(super) last_chosen: u64,
    /// A random number of its own, drawn anew whenever it is chosen.
    pub(super) lot: i64,
    /// What its owner says.
    pub(super) priority: Priority,
    /// Its place in the configuration.
    pub(super) position: u32,
    /// Share of the weekly budget used.
    pub(super) week_share: f64,
    /// When its week resets, if it has a fixed reset.
    pub(super) week_reset: Option<Timestamp>,
    /// Share of the 5-hour block used: the provider's word where there is one, because it alone knows how much a block
    /// of this subscription lets pass.
    pub(super) block_share: f64,
}

/// The preference by `strategies`, the first one first.
pub(super) fn preference(strategies: [Strategy; STRATEGIES], of: &Qualities, now: Timestamp) -> Preference {
    strategies.map(|strategy| match strategy {
        Strategy::Health => highest_first(of.health),
        Strategy::LeastLoaded => lowest_first(load(of)),
        Strategy::RoundRobin => i64::try_from(of.last_chosen).unwrap_or(i64::MAX),
        Strategy::Random => of.lot,
        Strategy::Priority => {
            let class = match of.priority {
                Priority::High => 0,
                Priority::Normal => 1,
                Priority::Low => 2,
            };
            (class << 32) + i64::from(of.position)
        }
        Strategy::Pace => highest_first(pace(of, now)),
    })
}

/// The fuller of its slots and its request places.
fn load(of: &Qualities) -> f64 {
    let share = |(used, all): (u32, u32)| f64::from(used) / f64::from(all.max(1));
    share(of.clients).max(share(of.in_flight))
}

/// Each session is expected to use this share of a block that is not on the books yet.
const BLOCK_A_CLIENT: f64 = 0.1;
/// A share of the block counts as much as this share of the week. A block that fills up drives its sessions away from
/// their caches, and whoever is left has to carry them all within its own.
const BLOCK_WEIGHT: f64 = 2.0;

/// How far a subscription is behind the pace at which its week would be used up exactly when it resets, in weeks, and
/// how much room its block has. What would expire soonest unused comes first, so that none of it does; but no faster
/// than its block bears, and not until it is dry long before its reset, because the blocks of few cannot carry the hours
/// in which most is asked. A rolling week gives back evenly what was used, so it counts as always halfway to its reset.
///
/// All resets come nearer at the same rate, so the order of fixed ones does not change as time goes by. That is why the
/// reset is taken as it is, in weeks since 1970, and not as the time until then.
fn pace(of: &Qualities, now: Timestamp) -> f64 {
    let week_left = (1.0 - of.week_share).max(0.0);
    let block_left = (1.0 - of.block_share).max(0.0) - BLOCK_A_CLIENT * f64::from(of.clients.0);
    let reset = of.week_reset.unwrap_or(now + WEEK / 2);
    #[expect(clippy::cast_precision_loss, reason = "milliseconds of this age are far below 2^53")]
    let resets_at = reset.as_millis() as f64 / WEEK.as_millis() as f64;
    week_left - resets_at + BLOCK_WEIGHT * block_left
}

/// Billionths: they order floats as well as the floats do, and compare faster.
fn lowest_first(score: f64) -> i64 {
    #[expect(clippy::cast_possible_truncation, reason = "scores are small; a cast saturates")]
    let billionths = (score * 1e9) as i64;
    billionths
}

fn highest_first(score: f64) -> i64 {
    -lowest_first(score)
}

/// A small generator of numbers that look random: the same seed gives the same numbers.
#[derive(Clone, Debug)]
pub(super) struct Lots {
    state: u64,
}

impl Lots {
    pub(super) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// A number from 0 to `i64::MAX`.
    pub(super) const fn draw(&mut self) -> i64 {
        // SplitMix64 (Steele, Lea and Flood, 2014).
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) >> 1).cast_signed()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const IDLE: Qualities = Qualities {
        health: 100.0,
        clients: (0, 15),
        in_flight: (0, 100),
        last_chosen: 0,
        lot: 0,
        priority: Priority::Normal,
        position: 0,
        week_share: 0.0,
        week_reset: None,
        block_share: 0.0,
    };

    #[track_caller]
    fn prefers(strategy: Strategy, better: &Qualities, worse: &Qualities) {
        let now = Timestamp::from_secs(1_800_000_000);
        let strategies = [strategy, Strategy::Health, Strategy::Health];
        assert!(preference(strategies, better, now)[0] < preference(strategies, worse, now)[0]);
    }

    #[test]
    fn each_strategy_has_its_own_order() {
        prefers(Strategy::Health, &Qualities { health: 70.5, ..IDLE }, &Qualities { health: 70.4, ..IDLE });
        prefers(
            Strategy::LeastLoaded,
            &Qualities { clients: (1, 15), ..IDLE },
            &Qualities { clients: (1, 10), ..IDLE },
        );
        prefers(Strategy::LeastLoaded, &IDLE, &Qualities { in_flight: (1, 100), ..IDLE });
        prefers(Strategy::RoundRobin, &Qualities { last_chosen: 3, ..IDLE }, &Qualities { last_chosen: 4, ..IDLE });
        prefers(Strategy::Random, &Qualities { lot: 3, ..IDLE }, &Qualities { lot: 4, ..IDLE });
        prefers(Strategy::Priority, &Qualities { priority: Priority::High, position: 9, ..IDLE }, &IDLE);
        prefers(Strategy::Priority, &IDLE, &Qualities { priority: Priority::Low, ..IDLE });
        prefers(Strategy::Priority, &IDLE, &Qualities { position: 1, ..IDLE });
    }

    fn resets_in(hours: u64, week_share: f64) -> Qualities {
        let week_reset = Some(Timestamp::from_secs(1_800_000_000) + Duration::from_hours(hours));
        Qualities { week_share, week_reset, ..IDLE }
    }

    #[test]
    fn pace_uses_first_what_expires_soonest_and_who_is_behind() {
        prefers(Strategy::Pace, &resets_in(24, 0.3), &resets_in(120, 0.3));
        prefers(Strategy::Pace, &resets_in(24, 0.3), &IDLE);
        prefers(Strategy::Pace, &resets_in(24, 0.3), &resets_in(24, 0.5));
        // Half of a week's time left and half of its budget is as good as an eighth of both.
        prefers(Strategy::Pace, &resets_in(84, 0.49), &resets_in(21, 0.875));
        prefers(Strategy::Pace, &resets_in(21, 0.865), &resets_in(84, 0.5));
        // A rolling week is always halfway.
        prefers(Strategy::Pace, &Qualities { week_share: 0.49, ..IDLE }, &resets_in(84, 0.5));
        prefers(Strategy::Pace, &resets_in(84, 0.49), &Qualities { week_share: 0.5, ..IDLE });
    }

    #[test]
    fn pace_drives_nobody_into_the_end_of_its_block() {
        let block = |block_share, of: Qualities| Qualities { block_share, ..of };
        prefers(Strategy::Pace, &block(0.6, IDLE), &block(0.8, IDLE));
        // A day until the reset is a seventh of a week, and so is a fourteenth of the block.
        prefers(Strategy::Pace, &block(0.07, resets_in(24, 0.3)), &resets_in(48, 0.3));
        prefers(Strategy::Pace, &resets_in(48, 0.3), &block(0.08, resets_in(24, 0.3)));
        prefers(Strategy::Pace, &IDLE, &block(0.99, resets_in(1, 0.1)));
        // Sessions count before what they use is on the books, so that a burst spreads: each a tenth of the block.
        prefers(Strategy::Pace, &IDLE, &Qualities { clients: (1, 15), ..IDLE });
        prefers(Strategy::Pace, &Qualities { clients: (2, 15), ..IDLE }, &block(0.21, IDLE));
        prefers(Strategy::Pace, &block(0.19, IDLE), &Qualities { clients: (2, 15), ..IDLE });
    }

    #[test]
    fn lots_are_spread_and_repeatable() {
        let mut lots = Lots::new(7);
        let drawn: Vec<i64> = (0..1000).map(|_| lots.draw()).collect();
        let low = drawn.iter().filter(|lot| **lot < i64::MAX / 2).count();
        assert!((450..550).contains(&low), "{low}");
        assert!(drawn.iter().all(|lot| *lot >= 0));
        assert_eq!(Lots::new(7).draw(), drawn[0]);
    }
}
