//! The week as a picture: how the paid budget is used, and how many requests go unserved, strategy by strategy.
//!
//! Plain SVG with two panels that share their time. Colours tell the lines apart for colour-blind eyes too (Okabe and
//! Ito), dashes help where lines lie on each other, and both light and dark surroundings are served.

use std::fmt::{self, Write as _};

use crate::units::{MicroUsd, Timestamp};

use super::random::real;
use super::report::{Report, Sample};

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 660.0;
const LEFT: f64 = 64.0;
const RIGHT: f64 = 744.0;
const UPPER: Panel = Panel { top: 64.0, bottom: 340.0 };
const LOWER: Panel = Panel { top: 416.0, bottom: 600.0 };
/// The legend, from left to right: a piece of the line, its name, and where it ends.
const MARK: (f64, f64) = (RIGHT + 18.0, RIGHT + 48.0);
const NAME: f64 = RIGHT + 56.0;
const FIGURE: f64 = WIDTH - 12.0;
const DAY_SECONDS: f64 = 86_400.0;

/// Colour and dashes of each line, in the order of the strategies.
const STYLES: [(&str, &str); 7] = [
    ("#d55e00", "none"),
    ("#0072b2", "none"),
    ("#009e73", "none"),
    ("#cc79a7", "7 3"),
    ("#b8860b", "2 3"),
    ("#56b4e9", "9 3 2 3"),
    ("#8a6fd1", "4 2"),
];

/// The line that no strategy can be above.
const BOUND: &str = "optimum (bound)";

/// Where a panel is, from above.
struct Panel {
    top: f64,
    bottom: f64,
}

/// One line: a share of the scale for every sample.
struct Line<'a> {
    name: &'a str,
    class: String,
    points: Vec<(f64, f64)>,
}

/// Draws a report.
pub fn plot(report: &Report) -> String {
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = draw(&mut svg, report);
    svg
}

fn draw(svg: &mut String, report: &Report) -> fmt::Result {
    let samples = &report.bound.samples;
    let start = samples.first().map_or_else(Timestamp::default, |sample| sample.at);
    let days = report.setup.days.max(f64::MIN_POSITIVE);
    let paid = MicroUsd::from_usd(report.setup.paid).as_usd().max(f64::MIN_POSITIVE);
    let requests = real(report.setup.requests.max(1));
    let used = |sample: &Sample| 100.0 * sample.used.as_usd() / paid;
    let unserved = |sample: &Sample| 100.0 * real(sample.refused) / requests;
    let lines = |figure: &dyn Fn(&Sample) -> f64| -> Vec<Line<'_>> {
        let strategies = report.strategies.iter().enumerate().map(|(index, strategy)| Line {
            name: strategy.strategy,
            class: format!("line line-{}", index % STYLES.len()),
            points: points(&strategy.samples, start, days, figure),
        });
        strategies.collect()
    };

    head(svg, report)?;
    let mut upper =
        vec![Line { name: BOUND, class: "line bound".to_owned(), points: points(samples, start, days, &used) }];
    upper.extend(lines(&used));
    panel(svg, &UPPER, "Used of the paid budget since Monday, %", &upper, days)?;
    let lower = lines(&unserved);
    panel(svg, &LOWER, "Requests not served since Monday, % of all", &lower, days)?;
    svg.write_str("</svg>\n")
}

fn points(samples: &[Sample], start: Timestamp, days: f64, figure: &dyn Fn(&Sample) -> f64) -> Vec<(f64, f64)> {
    let through = |at: Timestamp| at.since(start).as_secs_f64() / DAY_SECONDS / days;
    samples.iter().map(|sample| (through(sample.at).min(1.0), figure(sample))).collect()
}

fn head(svg: &mut String, report: &Report) -> fmt::Result {
    let setup = &report.setup;
    write!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" \
         height=\"{HEIGHT}\" role=\"img\" aria-label=\"Budget used and requests not served, by strategy\">\n<style>\n\
         text {{ font: 13px system-ui, sans-serif; fill: #333 }}\n\
         .title {{ font-size: 17px; font-weight: 600 }}\n.small {{ font-size: 12px; fill: #666 }}\n\
         .paper {{ fill: #fff }}\n.grid {{ stroke: #ddd; stroke-width: 1 }}\n.axis {{ stroke: #888; stroke-width: 1 }}\n\
         .line {{ fill: none; stroke-width: 2; stroke-linejoin: round }}\n\
         .bound {{ stroke: #777; stroke-dasharray: 2 4 }}\n"
    )?;
    for (index, (colour, dashes)) in STYLES.iter().enumerate() {
        writeln!(svg, ".line-{index} {{ stroke: {colour}; stroke-dasharray: {dashes} }}")?;
    }
    write!(
        svg,
        "@media (prefers-color-scheme: dark) {{ text {{ fill: #ddd }} .small {{ fill: #aaa }} .paper {{ fill: #1b1d21 }} \
         .grid {{ stroke: #3a3d43 }} .bound {{ stroke: #aaa }} }}\n</style>\n\
         <rect class=\"paper\" width=\"{WIDTH}\" height=\"{HEIGHT}\"/>\n\
         <text class=\"title\" x=\"{LEFT}\" y=\"26\">{} subscriptions, {} sessions, {} requests</text>\n",
        setup.subscriptions, setup.sessions, setup.requests
    )
}

fn panel(svg: &mut String, panel: &Panel, title: &str, lines: &[Line<'_>], days: f64) -> fmt::Result {
    let Panel { top, bottom } = panel;
    let greatest = lines.iter().flat_map(|line| &line.points).map(|point| point.1).fold(0.0, f64::max);
    let step = step(greatest);
    let steps = (greatest / step).ceil().max(1.0);
    let scale = steps * step;
    let x = |through: f64| LEFT + through * (RIGHT - LEFT);
    let y = |figure: f64| bottom - figure / scale * (bottom - top);

    writeln!(svg, "<text x=\"{LEFT}\" y=\"{:.1}\">{title}</text>", top - 12.0)?;
    let mut value = 0.0;
    while value <= scale * 1.001 {
        let at = y(value);
        let class = if value == 0.0 { "axis" } else { "grid" };
        writeln!(svg, "<line class=\"{class}\" x1=\"{LEFT}\" x2=\"{RIGHT}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>")?;
        let (text, baseline) = (tick(value, step), at + 4.0);
        writeln!(
            svg,
            "<text class=\"small\" x=\"{:.1}\" y=\"{baseline:.1}\" text-anchor=\"end\">{text}</text>",
            LEFT - 8.0
        )?;
        value += step;
    }
    time_axis(svg, panel, days)?;
    for line in lines {
        let path: Vec<String> =
            line.points.iter().map(|(through, figure)| format!("{:.1},{:.1}", x(*through), y(*figure))).collect();
        writeln!(svg, "<polyline class=\"{}\" points=\"{}\"/>", line.class, path.join(" "))?;
    }
    legend(svg, *top, lines)
}

/// A mark and a name for every day, or every some of them.
fn time_axis(svg: &mut String, Panel { top, bottom }: &Panel, days: f64) -> fmt::Result {
    let every = (days / 14.0).ceil().max(1.0);
    let mut day = 0.0;
    while day < days {
        let at = LEFT + day / days * (RIGHT - LEFT);
        let middle = LEFT + (day + every / 2.0).min(days) / days * (RIGHT - LEFT);
        writeln!(svg, "<line class=\"grid\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top}\" y2=\"{bottom}\"/>")?;
        writeln!(
            svg,
            "<text class=\"small\" x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\">day {:.0}</text>",
            bottom + 18.0,
            day + 1.0
        )?;
        day += every;
    }
    Ok(())
}

/// The names of the lines and where they end, the highest first.
fn legend(svg: &mut String, top: f64, lines: &[Line<'_>]) -> fmt::Result {
    let last = |line: &Line<'_>| line.points.last().map_or(0.0, |point| point.1);
    let mut sorted: Vec<&Line<'_>> = lines.iter().collect();
    sorted.sort_by(|one, other| last(other).total_cmp(&last(one)));
    let mut at = top + 10.0;
    for line in sorted {
        let ((from, to), baseline) = (MARK, at + 4.0);
        writeln!(svg, "<line class=\"{}\" x1=\"{from}\" x2=\"{to}\" y1=\"{at}\" y2=\"{at}\"/>", line.class)?;
        writeln!(svg, "<text x=\"{NAME}\" y=\"{baseline}\">{}</text>", line.name)?;
        writeln!(svg, "<text x=\"{FIGURE}\" y=\"{baseline}\" text-anchor=\"end\">{:.2}</text>", last(line))?;
        at += 22.0;
    }
    Ok(())
}

/// A round distance between marks that gives four to eight of them.
fn step(greatest: f64) -> f64 {
    if greatest <= 0.0 {
        return 1.0;
    }
    let power = 10.0_f64.powf((greatest / 5.0).log10().floor());
    let factors = [1.0, 2.0, 5.0, 10.0];
    factors.into_iter().map(|factor| factor * power).find(|step| greatest / step <= 6.0).unwrap_or(10.0 * power)
}

fn tick(value: f64, step: f64) -> String {
    if step >= 1.0 {
        format!("{value:.0}")
    } else if step >= 0.1 {
        format!("{value:.1}")
    } else {
        format!("{value:.3}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::Contender;
    use super::*;

    /// Wide fonts take so much of a letter's height for a letter.
    const WIDEST: f64 = 0.65 * 13.0;

    #[test]
    fn names_in_the_legend_end_before_the_figures_begin() {
        let strategies = Contender::ALL.into_iter().map(|contender| contender.name);
        for name in strategies.chain([BOUND]) {
            let end = NAME + WIDEST * real(name.len() as u64);
            assert!(end < FIGURE - WIDEST * real("100.00".len() as u64), "{name}");
        }
    }

    #[test]
    fn marks_are_round() {
        for (greatest, distance) in [(100.0, 20.0), (83.0, 20.0), (9.0, 2.0), (0.7, 0.2), (0.0, 1.0)] {
            assert!((step(greatest) - distance).abs() < 1e-9, "{greatest}: {}", step(greatest));
        }
    }
}
