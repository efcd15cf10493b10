//! What a start that nobody waits for leaves to those who are served.
//!
//! A start keeps a core busy for half a second. Where a core is free that costs nobody anything; where none is, every
//! answer would be late by it. So the kernel is told that such a process gives way until it is ready, which it does to the
//! millisecond: with a free core it starts as fast as ever. A niceness can only be taken back with a right to do so, and a
//! process that kept it would serve its conversation as a second-class one ever after. Where that right is missing, the
//! start is held back instead while answers are under way and work waits for cores.
//!
//! Both have an end: there has to be a spare, also on a machine that is always busy. And nothing is held back any longer
//! when somebody waits for the start to be over.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::runtime::pressure::CpuPressure;
use crate::runtime::priority::{GivingWay, Priority};

/// How long a process gives way at most.
pub(super) const GIVES_WAY: Duration = Duration::from_secs(3);

/// How long a start is held back at most.
const HELD_BACK: Duration = Duration::from_secs(2);

/// How long the kernel's count is looked at each time.
const LOOK: Duration = Duration::from_millis(100);

/// Work waits for cores if some of it did for this part of the time.
const BUSY: u32 = 4;

/// What is done so that a start disturbs nobody.
#[derive(Clone, Debug)]
pub(super) enum Courtesy {
    /// The process gives way until it is ready.
    GivesWay(Priority),
    /// It is started when there is a core for it.
    HeldBack(CpuPressure),
    /// The system offers nothing.
    None,
}

impl Courtesy {
    /// What this system offers.
    pub(super) fn find() -> Self {
        let held_back = || CpuPressure::find().map_or(Self::None, Self::HeldBack);
        Priority::find().map_or_else(held_back, Self::GivesWay)
    }

    /// Waits until a start disturbs nobody, as long as `is_serving` says that there is somebody.
    pub(super) async fn moment(&self, is_serving: impl Fn() -> bool) {
        if let Self::HeldBack(pressure) = self {
            hold_back(is_serving, || pressure.waited()).await;
        }
    }

    /// Makes the process `pid` give way until what is returned is dropped.
    pub(super) fn give_way(&self, pid: Option<i32>) -> Option<GivingWay> {
        match self {
            Self::GivesWay(priority) => priority.give_way(pid?),
            Self::HeldBack(_) | Self::None => None,
        }
    }
}

/// Waits while somebody is served and work waits for cores, by the kernel's count `waited`.
async fn hold_back(is_serving: impl Fn() -> bool, waited: impl Fn() -> Option<Duration>) {
    let begun = Instant::now();
    while is_serving() && begun.elapsed() < HELD_BACK {
        let Some(before) = waited() else { return };
        let look = Instant::now();
        sleep(LOOK).await;
        let looked = look.elapsed();
        if waited().unwrap_or(before).saturating_sub(before) * BUSY < looked {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_start_is_held_back_while_work_waits_and_somebody_is_served() {
        let begun = Instant::now();
        let busy = || Some(begun.elapsed() / 2);
        hold_back(|| true, busy).await;
        assert!(begun.elapsed() >= HELD_BACK, "it was held back");

        let looks = Cell::new(0);
        let served_twice = || looks.replace(looks.get() + 1) < 2;
        hold_back(served_twice, busy).await;
        assert!(looks.get() <= 3, "nobody is served any more");

        // Nothing waits for a core.
        looks.set(0);
        let served = || looks.replace(looks.get() + 1) < 100;
        hold_back(served, || Some(Duration::from_secs(5))).await;
        assert_eq!(looks.get(), 1, "one look tells");
        hold_back(served, || None).await;
        assert_eq!(looks.get(), 2, "who cannot tell holds nothing back");
    }

    #[test]
    fn this_system_offers_something() {
        assert!(!matches!(Courtesy::find(), Courtesy::None));
    }
}
