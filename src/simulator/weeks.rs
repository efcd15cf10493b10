//! The same comparison over several weeks, each from a seed of its own: what is a strategy and what is luck.

use super::random::real;
use super::report::{Report, StrategyReport};
use super::table::Table;
use super::{Options, Progress, synthetic};

/// Simulates `weeks` synthetic weeks, from the seed of `options` on.
pub fn weeks(options: &Options, weeks: u32, progress: &mut dyn FnMut(Progress)) -> Vec<Report> {
    let seeds = (0..u64::from(weeks)).map(|week| options.seed.wrapping_add(week));
    seeds.map(|seed| synthetic(&Options { seed, ..options.clone() }, progress)).collect()
}

/// A mean and how far single weeks are from it (the standard deviation).
#[derive(Clone, Copy, Debug, PartialEq)]
struct Mean {
    mean: f64,
    deviation: f64,
}

impl Mean {
    fn of(figures: &[f64]) -> Self {
        let count = real(figures.len().max(1) as u64);
        let mean = figures.iter().sum::<f64>() / count;
        let squares: f64 = figures.iter().map(|figure| (figure - mean).powi(2)).sum();
        Self { mean, deviation: (squares / (count - 1.0).max(1.0)).sqrt() }
    }

    fn percent(self) -> String {
        format!("{:.2} ± {:.2}", self.mean * 100.0, self.deviation * 100.0)
    }

    fn plain(self) -> String {
        format!("{:.3} ± {:.3}", self.mean, self.deviation)
    }
}

/// Weeks of one scenario as one table: means and deviations, and how often the first strategy served at least as much
/// of the work as the others did in the very same week.
pub fn weeks_table(reports: &[Report]) -> String {
    let Some(first) = reports.first() else { return String::new() };
    let mut table = Table::new(&[
        "strategy",
        "unserved %",
        "of work %",
        "moved %",
        "cold cost %",
        "budget used %",
        "Gini",
        "not better",
    ]);
    let optimum = |figure: fn(&Report) -> f64| Mean::of(&reports.iter().map(figure).collect::<Vec<_>>()).percent();
    let mut bound = vec![
        "optimum".to_owned(),
        optimum(|report| 1.0 - real(report.bound.served) / real(report.bound.requests.max(1))),
        optimum(|report| report.bound.work_served),
    ];
    bound.extend(["0", "0"].map(str::to_owned));
    bound.push(optimum(|report| report.bound.budget_used));
    bound.resize(8, String::new());
    table.rows.push(bound);
    for contender in 0..first.strategies.len() {
        table.rows.push(row(reports, contender));
    }
    format!(
        "{} subscriptions, {} weeks from seed {} on, mean ± standard deviation\n\n{table}\n{LEGEND}",
        first.setup.subscriptions,
        reports.len(),
        first.setup.seed
    )
}

const LEGEND: &str = "\
optimum: an upper bound that knows all, cuts requests, moves for nothing and minds weekly limits only
unserved, moved: of the requests     moved: sessions that changed their subscription, by need or by the rebalancer
of work: share of the asked work (cost on warm caches) that was served     cold cost: of the asked work
Gini: spread of the subscriptions' use, each against its own budget
not better: weeks in which this strategy served no more of the work than the first one";

fn row(reports: &[Report], contender: usize) -> Vec<String> {
    let pairs = || reports.iter().filter_map(|report| Some((report, report.strategies.get(contender)?)));
    let mean = |figure: &dyn Fn(&Report, &StrategyReport) -> f64| {
        Mean::of(&pairs().map(|(report, strategy)| figure(report, strategy)).collect::<Vec<_>>())
    };
    let of_requests = |count: u64, strategy: &StrategyReport| real(count) / real(strategy.requests.max(1));
    let not_better = pairs().filter(|(report, strategy)| strategy.work_served <= report.strategies[0].work_served);
    let name = pairs().next().map_or("", |(_, strategy)| strategy.strategy);
    vec![
        name.to_owned(),
        mean(&|_, strategy| strategy.unserved()).percent(),
        mean(&|_, strategy| strategy.work_served).percent(),
        mean(&|_, strategy| of_requests(strategy.rotations + strategy.rebalanced, strategy)).percent(),
        mean(&|report, strategy| strategy.cold_cache_cost / report.setup.work).percent(),
        mean(&|_, strategy| strategy.budget_used).percent(),
        mean(&|_, strategy| strategy.gini).plain(),
        format!("{} of {}", not_better.count(), reports.len()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_deviations() {
        let mean = Mean::of(&[1.0, 2.0, 3.0, 4.0]);
        assert!((mean.mean - 2.5).abs() < 1e-12 && (mean.deviation - (5.0_f64 / 3.0).sqrt()).abs() < 1e-12);
        assert_eq!(Mean::of(&[0.25]).percent(), "25.00 ± 0.00");
        assert_eq!(weeks_table(&[]), "");
    }

    #[test]
    fn the_table_has_a_line_for_everybody() {
        let options = Options { subscriptions: 3, sessions_per_subscription: 4.0, ..Options::default() };
        let reports = weeks(&options, 2, &mut |_| {});
        assert_ne!(reports[0].setup.seed, reports[1].setup.seed);
        let table = weeks_table(&reports);
        for strategy in &reports[0].strategies {
            assert!(table.lines().any(|line| line.starts_with(strategy.strategy)), "{table}");
        }
        assert!(table.contains("2 of 2"), "{table}");
    }
}
