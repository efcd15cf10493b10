//! The pool as text, for a terminal of 80 columns.

use super::model::{Member, Pool};
use super::words::{HARD_SPACE, clip, count, dollars, thousands, time, wrap};
use crate::units::Timestamp;

const WIDTH: usize = 80;
/// Where a line's content begins, behind its name.
const INDENT: usize = 9;
/// Cells of a bar.
const CELLS: usize = 20;
/// Shares in percent that a bar marks: from the first on a subscription is `approaching`, from the second on `limited`.
const MARKS: [usize; 2] = [80, 95];
/// From this number of subscriptions on each has one line only.
const MANY: usize = 17;

/// How the terminal wants it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Look {
    pub colour: bool,
    pub unicode: bool,
}

#[derive(Clone, Copy)]
enum Colour {
    Good,
    Warning,
    Bad,
    Dim,
}

impl Look {
    fn paint(self, text: &str, colour: Colour) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match colour {
            Colour::Good => 32,
            Colour::Warning => 33,
            Colour::Bad => 31,
            Colour::Dim => 2,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Filled cells in the colour of their share, with the marks between cells.
    fn bar(self, percent: f64) -> String {
        let (full, empty, mark) = if self.unicode { ('█', '░', '│') } else { ('#', '.', '|') };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "cut to 0..=100 before")]
        let share = percent.clamp(0.0, 100.0) as usize;
        // Whoever has used anything shows a cell, and only the full bar is full.
        let filled = (share * CELLS / 100).max(usize::from(percent > 0.0));
        let colour = match share {
            share if share >= MARKS[1] => Colour::Bad,
            share if share >= MARKS[0] => Colour::Warning,
            _ => Colour::Good,
        };
        let mut text = String::from("[");
        let mut begin = 0;
        for end in MARKS.map(|mark| mark * CELLS / 100).into_iter().chain([CELLS]) {
            let used = filled.clamp(begin, end) - begin;
            if used > 0 {
                text.push_str(&self.paint(&full.to_string().repeat(used), colour));
            }
            text.extend(std::iter::repeat_n(empty, end - begin - used));
            text.push(if end == CELLS { ']' } else { mark });
            begin = end;
        }
        text
    }

    /// `text` in the colour of `status`, padded to `width`.
    fn status(self, status: &str, text: &str, width: usize) -> String {
        let colour = match status {
            "available" => Colour::Good,
            "approaching" => Colour::Warning,
            "disabled" | "draining" => Colour::Dim,
            _ => Colour::Bad,
        };
        self.paint(&format!("{:width$}", clip(text, width)), colour)
    }
}

/// Everything.
pub(super) fn render(pool: &Pool, url: &str, look: Look) -> String {
    let mut lines = heading(pool, url);
    if pool.members.len() >= MANY {
        lines.push(String::new());
        lines.push("SUBSCRIPTION         STATUS            WEEK   5 H  HEALTH  CLIENTS  IN FLIGHT".to_owned());
        lines.extend(pool.members.iter().map(|member| row(member, pool.at, look)));
    } else {
        for member in &pool.members {
            lines.push(String::new());
            lines.extend(section(member, pool.at, look));
        }
    }
    lines.join("\n").replace(HARD_SPACE, " ")
}

fn heading(pool: &Pool, url: &str) -> Vec<String> {
    let totals = &pool.totals;
    let mut lines = vec![clip(&format!("auth-pool {} at {url}, {}", pool.version, pool.at), WIDTH)];
    let line = format!(
        "{}, {} can take a session; {} in flight, {} waiting, {}",
        count(totals.subscriptions, "subscription"),
        totals.eligible,
        count(totals.in_flight, "request"),
        pool.queue.waiting,
        count(totals.sessions, "session"),
    );
    lines.extend(wrap(&line, WIDTH));
    let sum = |of: fn(&Member) -> f64| pool.members.iter().map(of).sum::<f64>();
    let (used, budget) = (sum(|member| member.weekly_used), sum(|member| member.weekly_budget));
    let line = format!(
        "week {} of {}, {}/h; CLI processes: {} running, {} ready",
        dollars(used),
        dollars(budget),
        dollars(sum(|member| member.burn_rate)),
        pool.processes.running,
        pool.processes.spare,
    );
    lines.extend(wrap(&line, WIDTH));
    if pool.config_problems.is_some() {
        let line =
            "the changed configuration file is not in force: `auth-pool config check` says what is wrong with it";
        lines.extend(wrap(line, WIDTH));
    }
    lines
}

/// A subscription in full.
fn section(member: &Member, now: Timestamp, look: Look) -> Vec<String> {
    let mut lines = vec![format!(
        "{:32} {:10} {} health {:5.1}",
        clip(&member.id, 32),
        clip(&member.kind, 10),
        look.status(&member.status, &member.status, 18),
        member.health_score
    )];
    lines.extend(labelled("", &state(member, now)));

    let reset = member.reset_of("seven_day").map(|at| format!(", {}", resets(at, now))).unwrap_or_default();
    let week = format!("{} of {}{reset}", dollars(member.weekly_used), dollars(member.weekly_budget));
    lines.push(gauge("week", member.weekly_percent, &week, look));
    let block = match member.block_ends_at.or_else(|| member.reset_of("five_hour")) {
        Some(end) => format!("{}, {}", dollars(member.current_block_cost), resets(end, now)),
        None => "not begun".to_owned(),
    };
    lines.push(gauge("5 h", member.block_percent, &block, look));

    let load = format!(
        "{} of {} clients, {} of {} requests in flight, {}",
        member.assigned_clients,
        member.max_clients,
        member.in_flight,
        member.max_concurrent,
        count(member.sessions() as usize, "session"),
    );
    lines.extend(labelled("load", &load));
    lines.extend(labelled("rate", &rate(member, now)));
    lines
}

/// Why it is in its state and until when, and what else keeps it from new sessions.
fn state(member: &Member, now: Timestamp) -> String {
    let mut parts = Vec::new();
    let cause = &member.status_cause;
    let by_budget = is_by_budget(&member.status);
    if member.status != "available" {
        let until = cause.until.map(|until| {
            // A budget is not given back at once: use ages out of the week, piece by piece.
            if by_budget {
                format!(", less in {}", time(until.since(now)))
            } else {
                format!(", {}", resets(until, now))
            }
        });
        parts.push(format!("{} (source: {}){}", cause.cause, cause.source, until.unwrap_or_default()));
    }
    if let Some(excluded) = &member.excluded
        && by_budget
    {
        let until = excluded.until.map(|until| format!(" for {}", time(until.since(now)))).unwrap_or_default();
        let cause = excluded.cause.replace('_', " ");
        parts.push(format!("takes no new session{until}: {cause} (source: {})", excluded.source));
    }
    for limit in &member.family_limits {
        parts.push(format!("{}, {}", limit.cause, resets(limit.until, now)));
    }
    parts.join("; ")
}

/// Whether a status tells of the budget only, so that something else may keep the subscription out, too.
fn is_by_budget(status: &str) -> bool {
    matches!(status, "available" | "approaching" | "limited")
}

/// How fast it is used, and where that leads if it goes on.
fn rate(member: &Member, now: Timestamp) -> String {
    let mut text = format!("{}/h, {} tokens/min", dollars(member.burn_rate), thousands(member.tokens_per_minute));
    match member.exhaustion_at {
        Some(at) if at <= now => text.push_str(", week spent"),
        Some(at) => text = format!("{text}, week spent in {}", time(at.since(now))),
        None => {}
    }
    if member.burn_rate > 0.0 {
        text = format!("{text}, block to reach {}", dollars(member.projected_block_cost));
    }
    text
}

fn resets(at: Timestamp, now: Timestamp) -> String {
    if at <= now { "resets now".to_owned() } else { format!("resets in {}", time(at.since(now))) }
}

/// A line with a bar.
fn gauge(name: &str, percent: f64, text: &str, look: Look) -> String {
    // The bar has a bracket at both ends and its marks.
    let room = WIDTH - INDENT - (CELLS + 2 + MARKS.len()) - 8;
    format!("  {name:7}{} {percent:3.0} %  {}", look.bar(percent), clip(text, room))
}

/// Lines with a name before the first; none if there is no text.
fn labelled(name: &str, text: &str) -> Vec<String> {
    let lines = wrap(text, WIDTH - INDENT).into_iter().enumerate();
    lines.map(|(index, line)| format!("  {:7}{line}", if index == 0 { name } else { "" })).collect()
}

/// A subscription in one line.
fn row(member: &Member, now: Timestamp, look: Look) -> String {
    let until = member.status_cause.until.filter(|_| !is_by_budget(&member.status));
    let status = match until {
        Some(until) => format!("{} {}", member.status, time(until.since(now))),
        None => member.status.clone(),
    };
    format!(
        "{:20} {} {:3.0} % {:3.0} %  {:6.1} {:>8} {:>10}",
        clip(&member.id, 20),
        look.status(&member.status, &status, 17),
        member.weekly_percent,
        member.block_percent,
        member.health_score,
        format!("{}/{}", member.assigned_clients, member.max_clients),
        format!("{}/{}", member.in_flight, member.max_concurrent),
    )
}

#[cfg(test)]
mod tests {

    use serde_json::{Value, json};

    use super::*;
    use crate::pool;
    use crate::units::MicroUsd;

    const PLAIN: Look = Look { colour: false, unicode: false };

    fn sample() -> Pool {
        Pool::read(serde_json::from_str(include_str!("testdata/debug.json")).unwrap()).unwrap()
    }

    fn columns(text: &str) -> usize {
        text.lines().map(|line| line.chars().count()).max().unwrap_or(0)
    }

    #[test]
    fn the_text_is_as_agreed() {
        let text = render(&sample(), "http://127.0.0.1:3000", PLAIN);
        let expected = include_str!("testdata/status.txt");
        assert_eq!(text.trim_end(), expected.trim_end(), "\n{text}");
        assert!(columns(&text) <= WIDTH);
    }

    #[test]
    fn many_subscriptions_have_a_line_each() {
        let mut pool = sample();
        while pool.members.len() < MANY {
            pool.members.extend(sample().members);
        }
        let text = render(&pool, "http://127.0.0.1:3000", PLAIN);
        assert_eq!(text.lines().skip_while(|line| !line.starts_with("SUBSCRIPTION")).count(), pool.members.len() + 1);
        assert!(columns(&text) <= WIDTH, "{text}");
        assert!(text.contains("cooldown 2 h 13"), "{text}");
    }

    #[test]
    fn colour_changes_no_character() {
        let look = Look { colour: true, unicode: true };
        let text = render(&sample(), "http://127.0.0.1:3000", look);
        assert!(text.contains("\x1b[31m") && text.contains('█'));
        let mut plain = String::new();
        let mut rest = text.as_str();
        while let Some((before, after)) = rest.split_once("\x1b[") {
            plain.push_str(before);
            rest = after.split_once('m').unwrap().1;
        }
        plain.push_str(rest);
        assert_eq!(plain, render(&sample(), "http://127.0.0.1:3000", Look { colour: false, unicode: true }));
    }

    #[test]
    fn a_bar_is_full_only_at_the_end() {
        let bar = |percent| PLAIN.bar(percent);
        assert_eq!(bar(0.0), "[................|...|.]");
        assert_eq!(bar(0.1), "[#...............|...|.]");
        assert_eq!(bar(79.9), "[###############.|...|.]");
        assert_eq!(bar(80.0), "[################|...|.]");
        assert_eq!(bar(99.9), "[################|###|.]");
        assert_eq!(bar(120.0), "[################|###|#]");
    }

    #[test]
    fn what_a_real_pool_tells_is_understood() {
        let now = Timestamp::from_secs(1_795_238_507);
        let member = |id: &str| pool::SubscriptionSettings {
            id: id.into(),
            email: None,
            kind: "claude-max".into(),
            weekly_budget: MicroUsd::from_usd(456.0),
            max_clients: None,
            max_concurrent: 10,
            enabled: id != "off",
            priority: pool::Priority::Normal,
            organization: None,
            capacity: pool::CapacityLimits::default(),
        };
        let settings = pool::Settings { subscriptions: ["on", "off"].map(member).into(), ..pool::Settings::default() };
        let mut debug = serde_json::to_value(pool::Pool::new(settings, now).snapshot(now)).unwrap();
        debug["version"] = json!("0.1.0");
        debug["configProblems"] = Value::Null;
        let text = render(&Pool::read(debug).unwrap(), "http://127.0.0.1:3000", PLAIN);
        assert!(text.contains("disabled in the configuration (source: configuration)"), "{text}");
        assert!(text.contains("5 h    [................|...|.]   0 %  not begun"), "{text}");
    }
}
