//! How many processes were started within the last minute, and a bound on that.
//!
//! Nothing that goes well starts more than a machine can carry. What does (a CLI that ends as soon as it is started, a
//! client in a loop whose every request breaks) is stopped here before it keeps the machine from everything else.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

/// The time in which starts are counted.
const WINDOW: Duration = Duration::from_mins(1);

/// The starts of the last minute.
#[derive(Debug, Default)]
pub(super) struct Spawns(VecDeque<Instant>);

impl Spawns {
    /// Counts a start, unless there were `most` within the last minute. Then it says how long until there may be another.
    pub(super) fn admit(&mut self, most: usize, now: Instant) -> Result<(), Duration> {
        while self.0.front().is_some_and(|start| now.duration_since(*start) >= WINDOW) {
            self.0.pop_front();
        }
        if self.0.len() < most {
            self.0.push_back(now);
            return Ok(());
        }
        Err(self.0.front().map_or(WINDOW, |oldest| WINDOW.saturating_sub(now.duration_since(*oldest))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minute_has_so_many_starts_and_no_more() {
        let mut spawns = Spawns::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(spawns.admit(2, at(0)), Ok(()));
        assert_eq!(spawns.admit(2, at(30)), Ok(()));
        assert_eq!(spawns.admit(2, at(40)), Err(Duration::from_secs(20)));
        assert_eq!(spawns.admit(2, at(60)), Ok(()), "the first is a minute ago");
        assert_eq!(spawns.admit(2, at(61)), Err(Duration::from_secs(29)));
    }
}
