//! Reports as text for a terminal.

use std::fmt::{self, Display, Write as _};

use super::random::real;
use super::report::{BoundReport, Report, StrategyReport};

/// Column titles over cells; the first column is text, the others are figures.
pub(super) struct Table {
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(titles: &[&str]) -> Self {
        Self { rows: vec![titles.iter().map(ToString::to_string).collect()] }
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
        };
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = width(column);
                if column == 0 {
                    write!(line, "{cell:<width$}")?;
                } else {
                    write!(line, "  {cell:>width$}")?;
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let setup = &self.setup;
        writeln!(
            f,
            "{} subscriptions, {} sessions, {} requests over {:.1} days, seed {}",
            counted(u64::from(setup.subscriptions)),
            counted(setup.sessions),
            counted(setup.requests),
            setup.days,
            setup.seed
        )?;
        writeln!(f, "work ${:.0} on warm caches, paid budget ${:.0}\n", setup.work, setup.paid)?;
        let mut table = Table::new(&[
            "strategy",
            "served",
            "of work",
            "refused",
            "failed",
            "cold",
            "cold $",
            "budget used",
            "expired $",
            "max/mean",
            "Gini",
            "limits hit",
            "throttled",
        ]);
        table.rows.push(optimum_row(&self.bound));
        table.rows.extend(self.strategies.iter().map(row));
        writeln!(f, "{table}")?;
        f.write_str(LEGEND)
    }
}

const LEGEND: &str = "\
optimum: an upper bound that knows all, cuts requests, moves for nothing and minds weekly limits only
of work: share of the asked work (cost on warm caches) that was served     refused: by the pool, also after waiting
cold: requests whose conversation was cached on another subscription, and what writing it anew cost
failed: at the provider, three times     expired: unused at weekly resets     limits hit: rejected by a full window
max/mean, Gini: spread of the subscriptions' use, each against its own budget
not_sticky: as if every request were a session of its own";

fn optimum_row(bound: &BoundReport) -> Vec<String> {
    let mut cells = vec![
        "optimum".to_owned(),
        format!("<= {}", counted(bound.served)),
        percent(bound.work_served),
        format!(">= {}", counted(bound.requests - bound.served)),
        String::new(),
        "0".to_owned(),
        "0".to_owned(),
        percent(bound.budget_used),
    ];
    cells.resize(13, String::new());
    cells
}

fn row(report: &StrategyReport) -> Vec<String> {
    vec![
        report.strategy.to_owned(),
        counted(report.served),
        percent(report.work_served),
        counted(report.refused),
        counted(report.failed),
        counted(report.cold_caches),
        format!("{:.0}", report.cold_cache_cost),
        percent(report.budget_used),
        format!("{:.0}", report.expired),
        format!("{:.2}", report.max_over_mean),
        format!("{:.3}", report.gini),
        counted(report.limit_rejections),
        counted(report.throttles),
    ]
}

/// Several sizes of one scenario as one table.
pub fn scale_table(reports: &[Report]) -> String {
    let mut table = Table::new(&[
        "strategy",
        "subscriptions",
        "sessions",
        "requests",
        "unserved",
        "of work",
        "optimum",
        "cold",
        "cold cost",
        "budget used",
        "max/mean",
        "Gini",
        "limits hit",
    ]);
    let contenders = reports.first().map_or(0, |report| report.strategies.len());
    for contender in 0..contenders {
        for report in reports {
            let Some(strategy) = report.strategies.get(contender) else { continue };
            let requests = real(strategy.requests.max(1));
            table.rows.push(vec![
                strategy.strategy.to_owned(),
                counted(u64::from(report.setup.subscriptions)),
                counted(report.setup.sessions),
                counted(strategy.requests),
                percent(strategy.unserved()),
                percent(strategy.work_served),
                percent(report.bound.work_served),
                percent(real(strategy.cold_caches) / requests),
                percent(strategy.cold_cache_cost / report.setup.work),
                percent(strategy.budget_used),
                format!("{:.2}", strategy.max_over_mean),
                format!("{:.3}", strategy.gini),
                percent(real(strategy.limit_rejections) / requests),
            ]);
        }
    }
    format!(
        "{table}\nShares of requests (unserved, cold, limits hit), of the asked work (of work, optimum, cold cost), of the paid \
         budget."
    )
}

pub(super) fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// A count with its thousands apart.
fn counted(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned() {
        let mut table = Table::new(&["a", "bb"]);
        table.rows.push(vec!["long".to_owned(), "1".to_owned()]);
        assert_eq!(table.to_string(), "a     bb\nlong   1\n");
        assert_eq!(counted(1_234_567), "1,234,567");
        assert_eq!(counted(12), "12");
    }
}
