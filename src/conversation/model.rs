//! The models the pool knows: their names, families, prices and abilities.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::Usage;
use crate::units::MicroUsd;

/// A line of models; the provider limits some lines separately.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Claude Opus.
    Opus,
    /// Claude Sonnet.
    Sonnet,
    /// Claude Haiku.
    Haiku,
    /// Claude Fable.
    Fable,
    /// Claude Mythos.
    Mythos,
    /// Anything else a configuration names.
    Other,
}

impl Family {
    /// The family whose word occurs in a model id or alias, for example `opus` in `claude-opus-4-8`.
    pub fn of(name: &str) -> Self {
        const WORDS: [(&str, Family); 5] = [
            ("opus", Family::Opus),
            ("sonnet", Family::Sonnet),
            ("haiku", Family::Haiku),
            ("fable", Family::Fable),
            ("mythos", Family::Mythos),
        ];
        WORDS.into_iter().find(|(word, _)| name.contains(word)).map_or(Self::Other, |(_, family)| family)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Opus => "opus",
            Self::Sonnet => "sonnet",
            Self::Haiku => "haiku",
            Self::Fable => "fable",
            Self::Mythos => "mythos",
            Self::Other => "other",
        })
    }
}

/// What a model charges, in micro-dollars per million tokens (so that 3 USD per million is 3,000,000).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Fresh input.
    pub input: i64,
    /// Output.
    pub output: i64,
    /// Input read from the prompt cache.
    pub cache_read: i64,
    /// The dearer rate of long requests, where there is one.
    pub long: Option<LongContext>,
}

/// A rate that holds for the whole of a request whose input is long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LongContext {
    /// Input tokens, cached ones included, above which the rate holds.
    pub above: u64,
    /// How many times the usual price every token costs.
    pub factor: i64,
}

impl Price {
    /// A price of whole dollars per million tokens, cache reads at a tenth of the input.
    pub const fn usd_per_million(input: i64, output: i64) -> Self {
        let input = input * 1_000_000;
        Self { input, output: output * 1_000_000, cache_read: input / 10, long: None }
    }

    /// The same price with cache reads at `micros` micro-dollars per million tokens.
    const fn cache_read(self, micros: i64) -> Self {
        Self { cache_read: micros, ..self }
    }

    /// The cost of `usage`. Cache writes count twice the input price: the 1-hour cache, which the CLI uses under a
    /// subscription.
    pub fn cost(&self, usage: &Usage) -> MicroUsd {
        self.reckon(usage, 8)
    }

    /// The cost of `usage` where prompts are cached for 5 minutes: cache writes count 1.25 times the input price.
    pub fn cost_with_short_cache(&self, usage: &Usage) -> MicroUsd {
        self.reckon(usage, 5)
    }

    /// `write_quarters`: what a cache write costs, in quarters of the input price.
    fn reckon(&self, usage: &Usage, write_quarters: i128) -> MicroUsd {
        let at = |count: u64, price: i64| i128::from(count) * i128::from(price);
        let micros = at(usage.input, self.input)
            + at(usage.cache_creation, self.input) * write_quarters / 4
            + at(usage.cache_read, self.cache_read)
            + at(usage.output, self.output);
        let factor = self.long.filter(|long| usage.total_input() > long.above).map_or(1, |long| long.factor);
        MicroUsd::from_micros(i64::try_from(micros * i128::from(factor) / 1_000_000).unwrap_or(i64::MAX))
    }
}

/// How a model's thinking is steered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// By a budget in tokens; off when the budget is 0.
    Budget,
    /// By effort; can be switched off.
    Adaptive,
    /// By effort; always on.
    AlwaysOn,
}

/// One model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    /// The provider's exact id.
    pub id: String,
    /// The line it belongs to.
    pub family: Family,
    /// What it charges; used for estimates and where the CLI reports no cost.
    pub price: Price,
    /// How its thinking is steered.
    pub thinking: Thinking,
}

impl Model {
    /// A model by its exact id, with the abilities and price of its family where nothing better is known.
    pub fn named(id: &str) -> Self {
        let family = Family::of(id);
        let known = KNOWN.iter().find(|known| known.id == id);
        Self {
            id: id.to_owned(),
            family,
            price: known.map_or_else(|| default_price(family), |known| known.price),
            thinking: known.map_or(Thinking::Adaptive, |known| known.thinking),
        }
    }
}

struct Known {
    id: &'static str,
    price: Price,
    thinking: Thinking,
}

const fn known(id: &'static str, input: i64, output: i64, thinking: Thinking) -> Known {
    priced(id, Price::usd_per_million(input, output), thinking)
}

const fn priced(id: &'static str, price: Price, thinking: Thinking) -> Known {
    Known { id, price, thinking }
}

/// The ids the pinned CLI builds know. Prices are what 2.1.329 reckons; 2.1.197 takes its defaults for the models that
/// are newer than itself.
///
/// Both builds send a newer Opus upstream when asked for `claude-opus-4-1` or `claude-opus-4-20250514` (2.1.197
/// `claude-opus-4-8`, 2.1.329 `claude-opus-5-5`) and charge for that; they have the dearer price of the two.
const KNOWN: [Known; 24] = [
    known("claude-fable-5", 10, 50, Thinking::AlwaysOn),
    priced("claude-fable-5-1", Price::usd_per_million(10, 50).cache_read(250_000), Thinking::AlwaysOn),
    priced("claude-fable-5-2", Price::usd_per_million(8, 40).cache_read(200_000), Thinking::AlwaysOn),
    known("claude-opus-4-1", 5, 25, Thinking::Adaptive),
    known("claude-opus-4-1-20250805", 5, 25, Thinking::Adaptive),
    known("claude-opus-4-5", 5, 25, Thinking::Budget),
    known("claude-opus-4-5-20251101", 5, 25, Thinking::Budget),
    known("claude-opus-4-6", 5, 25, Thinking::Adaptive),
    known("claude-opus-4-7", 5, 25, Thinking::Adaptive),
    known("claude-opus-4-8", 5, 25, Thinking::Adaptive),
    known("claude-opus-5", 5, 25, Thinking::Adaptive),
    priced("claude-opus-5-5", Price::usd_per_million(4, 20).cache_read(200_000), Thinking::AlwaysOn),
    known("claude-sonnet-4-5", 3, 15, Thinking::Budget),
    known("claude-sonnet-4-5-20250929", 3, 15, Thinking::Budget),
    known("claude-sonnet-4-6", 3, 15, Thinking::Adaptive),
    known("claude-sonnet-5", 2, 10, Thinking::Adaptive),
    priced("claude-sonnet-5-5", Price::usd_per_million(2, 10).cache_read(100_000), Thinking::AlwaysOn),
    known("claude-haiku-4-5", 1, 5, Thinking::Budget),
    known("claude-haiku-4-5-20251001", 1, 5, Thinking::Budget),
    priced("claude-haiku-5-5", HAIKU_5_5, Thinking::AlwaysOn),
    known("claude-opus-4-20250514", 5, 25, Thinking::Adaptive),
    known("claude-sonnet-4-20250514", 3, 15, Thinking::Budget),
    known("claude-mythos-5", 10, 50, Thinking::AlwaysOn),
    priced("claude-mythos-5-2", Price::usd_per_million(8, 40).cache_read(200_000), Thinking::AlwaysOn),
];

const HAIKU_5_5: Price = Price {
    input: 100_000,
    output: 500_000,
    cache_read: 10_000,
    long: Some(LongContext { above: 100_000, factor: 5 }),
};

const fn default_price(family: Family) -> Price {
    match family {
        Family::Haiku => Price::usd_per_million(1, 5),
        Family::Opus => Price::usd_per_million(5, 25),
        Family::Fable | Family::Mythos => Price::usd_per_million(10, 50),

        Family::Sonnet | Family::Other => Price::usd_per_million(3, 15),
    }
}

/// Every name a client may send, and the model it means.
#[derive(Clone, Debug)]
pub struct Catalog {
    names: BTreeMap<String, Arc<Model>>,
}

impl Catalog {
    /// Builds the catalogue from the built-in ids, the CLI's `aliases` (`sonnet` -> exact id) and the operator's `map`
    /// (`gpt-4o` -> alias or exact id). The operator's word wins over the CLI's, the CLI's over the built-in ids.
    ///
    /// A name in `map` may stand for another name in `map`, one step deep; what is not otherwise known is taken for an
    /// exact id, so that an operator can use a model that is newer than this program.
    pub fn new<'a>(
        aliases: impl IntoIterator<Item = (&'a str, &'a str)>,
        map: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Self {
        let mut names: BTreeMap<String, Arc<Model>> =
            KNOWN.iter().map(|known| (known.id.to_owned(), Arc::new(Model::named(known.id)))).collect();
        for (alias, id) in aliases {
            let model = names.get(id).cloned().unwrap_or_else(|| Arc::new(Model::named(id)));
            names.insert(model.id.clone(), Arc::clone(&model));
            names.insert(alias.to_owned(), model);
        }
        let map: BTreeMap<&str, &str> = map.into_iter().collect();
        for (name, target) in &map {
            let target = map.get(target).unwrap_or(target);
            let model = names.get(*target).cloned().unwrap_or_else(|| Arc::new(Model::named(target)));
            names.insert((*name).to_owned(), model);
        }
        Self { names }
    }

    /// The model behind a name, if there is one.
    pub fn resolve(&self, name: &str) -> Option<&Arc<Model>> {
        self.names.get(name)
    }

    /// Every name with its model, in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Model>)> {
        self.names.iter().map(|(name, model)| (name.as_str(), model))
    }

    /// The known name that is spelled most like `name`, for an error's advice.
    pub fn nearest(&self, name: &str) -> Option<&str> {
        self.names
            .keys()
            .map(|known| (strsim::jaro_winkler(known, name), known.as_str()))
            .filter(|(likeness, _)| *likeness > 0.8)
            .max_by(|left, right| left.0.total_cmp(&right.0))
            .map(|(_, known)| known)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cost_counts_every_kind_of_token_at_its_own_price() {
        let usage = Usage { input: 10, cache_creation: 1000, cache_read: 2000, output: 42, reasoning: 0 };
        // 10*3 + 1000*6 + 2000*0.3 + 42*15 = 30 + 6000 + 600 + 630 micro-dollars.
        assert_eq!(Price::usd_per_million(3, 15).cost(&usage), MicroUsd::from_micros(7260));
        // The same with 1000*3.75 for what is written.
        assert_eq!(Price::usd_per_million(3, 15).cost_with_short_cache(&usage), MicroUsd::from_micros(5010));
    }

    #[test]
    fn a_long_request_costs_more_in_every_kind_of_token() {
        let cost = |input, cache_read| {
            let usage = Usage { input, cache_read, output: 10_000, ..Usage::default() };
            Model::named("claude-haiku-5-5").price.cost(&usage)
        };
        // As 2.1.329 reckons: 100 k input is not long yet; cached input counts towards the length.
        assert_eq!(cost(100_000, 0), MicroUsd::from_micros(10_000 + 5_000));
        assert_eq!(cost(1_000_000, 0), MicroUsd::from_micros(500_000 + 25_000));
        assert_eq!(cost(100_000, 150_000), MicroUsd::from_micros(50_000 + 7_500 + 25_000));
    }

    #[test]
    fn the_operators_map_wins_and_may_name_an_alias() {
        let catalog = Catalog::new([("sonnet", "claude-sonnet-5")], [("gpt-4o", "sonnet"), ("o3", "claude-new-9")]);
        assert_eq!(catalog.resolve("gpt-4o").map(|model| model.id.as_str()), Some("claude-sonnet-5"));
        assert_eq!(catalog.resolve("o3").map(|model| model.id.as_str()), Some("claude-new-9"));
        assert_eq!(catalog.resolve("claude-opus-4-8").map(|model| model.family), Some(Family::Opus));
        assert!(catalog.resolve("gpt-5").is_none());
        assert_eq!(catalog.nearest("claude-sonet-5"), Some("claude-sonnet-5"));
    }
}
