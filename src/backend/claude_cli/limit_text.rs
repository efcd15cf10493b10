//! What the words of a failed turn say of a limit: which window, and when it resets.
//!
//! The CLI's structured fields come first (see [`super::classify`]); but some builds give only words, such as
//! `Claude AI usage limit reached|1795230143`, `You've hit your weekly limit · resets Aug 3, 7am (Europe/Zurich)` or
//! `Please retry in 2892 seconds`. A time of day means the next one in its zone; a date without a year the nearest one.

use std::time::Duration;

use jiff::Zoned;
use jiff::civil::{Date, Time};
use jiff::tz::TimeZone;

use crate::conversation::{Family, Window};
use crate::units::Timestamp;

/// A session's window is no longer than this: a later reset is one that has just passed.
const FIVE_HOURS: Duration = Duration::from_mins(5 * 60 + 1);
/// A date that is further back than this is meant for the next year.
const LONG_AGO_DAYS: i64 = 180;
/// Words between `resets` and its time that say nothing.
const FILLERS: [&str; 4] = ["at", "on", "in", "again"];
const MONTHS: [&str; 12] = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"];
const WEEKDAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

/// What a text says of a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    /// The window that is spent, if it is named.
    pub window: Option<Window>,
    /// When it resets, if that is said and still to come.
    pub resets_at: Option<Timestamp>,
}

/// Whether a text says by itself that a limit of the account is spent.
pub(super) fn is_limit(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    let spent = ["limit reached", "limit exceeded", "hit your"].iter().any(|words| text.contains(words));
    spent && text.contains("limit") && !text.contains("not your usage limit")
}

/// Whether a text says that there is no money left to go on with.
pub(super) fn is_out_of_credit(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    ["out of credit", "out_of_credit", "out of extra usage", "credit balance is too low"]
        .iter()
        .any(|words| text.contains(words))
}

/// Reads a text at `now`. Times without a zone are in `zone`.
pub(super) fn read(text: &str, now: Timestamp, zone: &TimeZone) -> Told {
    let lower = text.to_ascii_lowercase();
    let window = window(&lower);
    let resets_at = epoch(&lower).or_else(|| wait(&lower, now)).or_else(|| reset(text, now, zone));
    let longest = if window == Some(Window::FiveHour) { now + FIVE_HOURS } else { Timestamp::from_millis(i64::MAX) };
    Told { window, resets_at: resets_at.filter(|reset| *reset > now && *reset <= longest) }
}

fn window(lower: &str) -> Option<Window> {
    let family = ["opus", "sonnet", "haiku", "fable", "mythos"].into_iter().find(|family| {
        [" limit", " weekly limit", " usage limit"].iter().any(|rest| lower.contains(&format!("{family}{rest}")))
            || lower.contains(&format!("weekly {family}"))
    });
    if let Some(family) = family {
        return Some(Window::SevenDayFamily(Family::of(family)));
    }
    let names = |words: &[&str]| words.iter().any(|words| lower.contains(words));
    if names(&["weekly limit", "weekly usage limit", "7-day limit", "seven-day limit"]) {
        Some(Window::SevenDay)
    } else if names(&["session limit", "5-hour limit", "5 hour limit", "five-hour limit"]) {
        Some(Window::FiveHour)
    } else {
        None
    }
}

/// `...|1795230143`, in seconds or milliseconds since 1970.
fn epoch(lower: &str) -> Option<Timestamp> {
    let after = lower.split('|').nth(1)?;
    let digits: String = after.trim_start().chars().take_while(char::is_ascii_digit).collect();
    let number: i64 = digits.parse().ok()?;
    match digits.len() {
        9..=11 => Some(Timestamp::from_secs(number)),
        12..=14 => Some(Timestamp::from_millis(number)),
        _ => None,
    }
}

/// `retry in 2892 seconds`, `try again in 5 minutes`, `resets in 2h 15m`.
fn wait(lower: &str, now: Timestamp) -> Option<Timestamp> {
    let start = ["retry in ", "retrying in ", "again in ", "resets in ", "retry after "]
        .into_iter()
        .find_map(|words| lower.find(words).map(|at| at + words.len()))?;
    let mut rest = &lower[start..];
    let mut total = 0_u64;
    let mut known = false;
    loop {
        rest = rest.trim_start();
        let digits = rest.len() - rest.trim_start_matches(|character: char| character.is_ascii_digit()).len();
        let Ok(number) = rest[..digits].parse::<u64>() else { break };
        rest = rest[digits..].trim_start();
        let letters = rest.len() - rest.trim_start_matches(|character: char| character.is_ascii_alphabetic()).len();
        let seconds = match &rest[..letters] {
            "" | "s" | "sec" | "secs" | "second" | "seconds" => 1,
            "m" | "min" | "mins" | "minute" | "minutes" => 60,
            "h" | "hr" | "hrs" | "hour" | "hours" => 3600,
            "d" | "day" | "days" => 86_400,
            _ => break,
        };
        total = total.saturating_add(number.saturating_mul(seconds));
        known = true;
        rest = rest[letters..].trim_start_matches([' ', ',']).trim_start_matches("and ");
    }
    // Nobody waits longer than a month; whatever says so means something else.
    (known && total <= 31 * 86_400).then(|| now + Duration::from_secs(total))
}

/// `resets 3:02am (UTC)`, `resets Aug 3, 7am (Europe/Zurich)`, `reset at 15:30`, `resets Mon 9am`.
fn reset(text: &str, now: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    let lower = text.to_ascii_lowercase();
    let found = lower.find("resets").map(|at| at + "resets".len());
    let start = found.or_else(|| lower.find("reset ").map(|at| at + "reset".len()))?;
    // Lowering ASCII letters moves nothing, so the place is the same in the text itself, where zones have capitals.
    let rest = text.get(start..)?;
    let (when, zone) = match rest.split_once('(') {
        Some((when, named)) => {
            let name = named.split(')').next().unwrap_or_default().trim();
            (when, TimeZone::get(name).unwrap_or_else(|_| zone.clone()))
        }
        None => (rest, zone.clone()),
    };
    let here = jiff::Timestamp::from_millisecond(now.as_millis()).ok()?.to_zoned(zone);
    let mut day = None;
    let mut month = None;
    let mut weekday = None;
    let mut year = None;
    let mut time = None;
    let words = when.split([' ', ',', '\u{a0}']).map(|word| word.trim_matches(['.', ':', ';', '·']));
    for word in words.filter(|word| !word.is_empty()).map(str::to_ascii_lowercase) {
        let start = word.get(..3).unwrap_or(&word);
        if let Some(clock) = time_of_day(&word) {
            time = Some(clock);
        } else if word == "am" || word == "pm" {
            // "7 am": the number was taken for a day.
            let hour = day.take().and_then(|hour: i8| time_of_day(&format!("{hour}{word}")));
            time = hour.or(time);
        } else if let Ok(number) = word.trim_end_matches(char::is_alphabetic).parse::<i16>() {
            match number {
                1..=31 => day = i8::try_from(number).ok(),
                2000..=2999 => year = Some(number),
                _ => break,
            }
        } else if let Some(index) = MONTHS.iter().position(|month| *month == start) {
            month = i8::try_from(index + 1).ok();
        } else if let Some(index) = WEEKDAYS.iter().position(|weekday| *weekday == start) {
            weekday = i8::try_from(index + 1).ok();
        } else if word == "tomorrow" {
            weekday = Some(here.weekday().next().to_monday_one_offset());
        } else if !FILLERS.contains(&&*word) {
            // Another sentence.
            break;
        }
    }
    let zoned = match (month, day, weekday) {
        (Some(month), Some(day), _) => on_date(&here, year, month, day, time.unwrap_or(Time::midnight()))?,
        (_, _, Some(weekday)) => {
            next(&here, time.unwrap_or(Time::midnight()), |date| date.weekday().to_monday_one_offset() == weekday)?
        }
        _ => next(&here, time?, |_| true)?,
    };
    Some(Timestamp::from_millis(zoned.timestamp().as_millisecond()))
}

/// The next day that `fits` on which this time of day is still to come.
fn next(here: &Zoned, time: Time, fits: impl Fn(Date) -> bool) -> Option<Zoned> {
    (0..=7).find_map(|days| {
        let date = here.date().checked_add(jiff::Span::new().days(days)).ok()?;
        let zoned = date.to_datetime(time).to_zoned(here.time_zone().clone()).ok()?;
        (fits(date) && zoned > *here).then_some(zoned)
    })
}

/// A date; without its year the one that is nearest.
fn on_date(here: &Zoned, year: Option<i16>, month: i8, day: i8, time: Time) -> Option<Zoned> {
    let date = |year: i16| Date::new(year, month, day).ok();
    let this = date(year.unwrap_or(here.year()));
    let long_ago = |date: Date| here.date().since(date).is_ok_and(|span| i64::from(span.get_days()) > LONG_AGO_DAYS);
    let date = match this {
        Some(date_this_year) if year.is_none() && long_ago(date_this_year) => date(here.year() + 1)?,
        this => this?,
    };
    date.to_datetime(time).to_zoned(here.time_zone().clone()).ok()
}

/// `7am`, `3:02am`, `12:30pm`, `15:30`.
fn time_of_day(word: &str) -> Option<Time> {
    let (clock, afternoon) = match (word.strip_suffix("am"), word.strip_suffix("pm")) {
        (Some(clock), _) => (clock, Some(false)),
        (_, Some(clock)) => (clock, Some(true)),
        _ => (word, None),
    };
    let (hour, minute) = match clock.split_once(':') {
        Some((hour, minute)) => (hour.parse::<i8>().ok()?, minute.parse::<i8>().ok()?),
        // A bare number is a day of the month.
        None => (afternoon.and_then(|_| clock.parse::<i8>().ok())?, 0),
    };
    let hour = match afternoon {
        Some(_) if !(1..=12).contains(&hour) => return None,
        Some(afternoon) => hour % 12 + if afternoon { 12 } else { 0 },
        None => hour,
    };
    Time::new(hour, minute, 0, 0).ok()
}
