//! The way back after a cooldown: one request first, then two at a time, then four, until the subscription has shown
//! that it carries its full load. Without it everything that waited would fall on the recovered subscription at once.

/// How far a recovering subscription is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ramp {
    /// Requests allowed at the same time.
    allowance: u32,
    /// Requests in flight that began on this ramp.
    in_flight: u32,
    /// Requests answered at this allowance.
    answered: u32,
}

impl Ramp {
    /// A ramp that begins with `allowance` requests.
    pub(super) const fn new(allowance: u32) -> Self {
        Self { allowance, in_flight: 0, answered: 0 }
    }

    pub(super) const fn allowance(&self) -> u32 {
        self.allowance
    }

    pub(super) const fn admits(&self) -> bool {
        self.in_flight < self.allowance
    }

    pub(super) const fn start(&mut self) {
        self.in_flight += 1;
    }

    /// A request of this ramp ended; `answered` if it was complete.
    pub(super) const fn finish(&mut self, answered: bool) {
        self.in_flight = self.in_flight.saturating_sub(1);
        if answered {
            self.answered += 1;
            if self.answered >= self.allowance {
                self.allowance = self.allowance.saturating_mul(2);
                self.answered = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_two_four() {
        let mut ramp = Ramp::new(1);
        for allowed in [1, 2, 4] {
            for _ in 0..allowed {
                assert!(ramp.admits());
                ramp.start();
            }
            assert!(!ramp.admits());
            for _ in 0..allowed {
                ramp.finish(true);
            }
        }
        assert_eq!(ramp.allowance(), 8);
    }

    #[test]
    fn only_answers_count() {
        let mut ramp = Ramp::new(1);
        ramp.start();
        ramp.finish(false);
        assert!(ramp.admits());
        assert_eq!(ramp.allowance(), 1);
    }
}
