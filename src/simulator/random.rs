//! Numbers that look random: the same seed gives the same numbers, on every run.

/// A small generator (`SplitMix64`; Steele, Lea and Flood, 2014).
#[derive(Clone, Debug)]
pub(super) struct Random(u64);

impl Random {
    /// A generator of its own for every `stream` of a seed, so that what one part draws changes nothing for another.
    pub(super) const fn new(seed: u64, stream: u64) -> Self {
        Self(mixed(mixed(seed.wrapping_add(GOLDEN)) ^ stream.wrapping_mul(GOLDEN)))
    }

    pub(super) const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN);
        mixed(self.0)
    }

    /// Evenly between 0 and 1, never 0.
    pub(super) fn share(&mut self) -> f64 {
        (real(self.next() >> 11) + 1.0) / real(1 << 53)
    }

    /// Evenly between two bounds.
    pub(super) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.share()
    }

    /// Whether something of this probability happens.
    pub(super) fn happens(&mut self, probability: f64) -> bool {
        self.share() <= probability
    }

    /// The time until the next of many independent events that happen every `mean` on average.
    pub(super) fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.share().ln()
    }

    /// Around `median`, with a heavy tail upwards: two thirds lie within a factor of e^`sigma`.
    pub(super) fn lognormal(&mut self, median: f64, sigma: f64) -> f64 {
        let normal = (-2.0 * self.share().ln()).sqrt() * (std::f64::consts::TAU * self.share()).cos();
        median * (sigma * normal).exp()
    }
}

const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

const fn mixed(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

/// A count as a float.
#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^53")]
pub(super) const fn real(count: u64) -> f64 {
    count as f64
}

/// The whole number nearest to a quantity; what is negative or no number is 0.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a cast saturates, which is what is wanted"
)]
pub(super) fn whole(quantity: f64) -> u64 {
    quantity.round() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mean(draws: u32, mut draw: impl FnMut() -> f64) -> f64 {
        (0..draws).map(|_| draw()).sum::<f64>() / f64::from(draws)
    }

    #[test]
    fn the_same_seed_gives_the_same_numbers_and_streams_differ() {
        let (mut one, mut same, mut other) = (Random::new(1, 2), Random::new(1, 2), Random::new(1, 3));
        let first = one.next();
        assert_eq!(first, same.next());
        assert_ne!(first, other.next());
        assert_ne!(first, Random::new(2, 2).next());
    }

    #[test]
    fn distributions_have_their_means() {
        let mut random = Random::new(1, 1);
        assert!((mean(20_000, || random.share()) - 0.5).abs() < 0.01);
        assert!((mean(20_000, || random.exponential(8.0)) - 8.0).abs() < 0.3);
        // The mean of a log-normal quantity is median * e^(sigma^2 / 2).
        assert!((mean(20_000, || random.lognormal(10.0, 0.5)) - 10.0 * 0.125_f64.exp()).abs() < 0.3);
    }
}
