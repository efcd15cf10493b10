//! Figures as people read them.

use std::time::Duration;

/// Stands between a figure and its unit until lines are broken.
pub(super) const HARD_SPACE: char = '\u{a0}';

/// A length of time in its two largest units.
pub(super) fn time(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (1.., ..) => two((days, "d"), (hours % 24, "h")),
        (0, 1.., _) => two((hours, "h"), (minutes % 60, "min")),
        (0, 0, 1..) => unit(minutes, "min"),
        _ => unit(seconds, "s"),
    }
}

fn two((large, large_unit): (u64, &str), (small, small_unit): (u64, &str)) -> String {
    let text = unit(large, large_unit);
    if small == 0 { text } else { format!("{text} {}", unit(small, small_unit)) }
}

fn unit(number: u64, unit: &str) -> String {
    format!("{number}{HARD_SPACE}{unit}")
}

/// Dollars; from a thousand on without cents.
pub(super) fn dollars(amount: f64) -> String {
    if amount < 999.995 { format!("${amount:.2}") } else { format!("${}", thousands(amount)) }
}

/// A whole number with a comma at every thousand.
pub(super) fn thousands(number: f64) -> String {
    let digits = format!("{:.0}", number.max(0.0));
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `count` things, in the plural unless there is one.
pub(super) fn count(number: usize, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {thing}{plural}", thousands(f64::from(u32::try_from(number).unwrap_or(u32::MAX))))
}

/// At most `width` characters; what is cut off leaves a mark.
pub(super) fn clip(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(2)).chain("..".chars()).collect()
}

/// Breaks text between words into lines of at most `width` characters; a longer word is clipped. What a terminal would
/// take for a command is not let through.
pub(super) fn wrap(text: &str, width: usize) -> Vec<String> {
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut lines: Vec<String> = Vec::new();
    for word in text.split(' ').filter(|word| !word.is_empty()) {
        let word = clip(word, width);
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(&word);
            }
            _ => lines.push(word),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_two_units_at_most() {
        let of = |seconds| time(Duration::from_secs(seconds)).replace(HARD_SPACE, " ");
        assert_eq!([of(0), of(59), of(60), of(3599)], ["0 s", "59 s", "1 min", "59 min"]);
        assert_eq!([of(3600), of(7980), of(86_399)], ["1 h", "2 h 13 min", "23 h 59 min"]);
        assert_eq!([of(86_400), of(190_800), of(8_640_000)], ["1 d", "2 d 5 h", "100 d"]);
    }

    #[test]
    fn figures_are_grouped() {
        assert_eq!([dollars(0.0), dollars(999.99), dollars(999.999)], ["$0.00", "$999.99", "$1,000"]);
        assert_eq!([thousands(0.0), thousands(1_234_567.4), thousands(100.0)], ["0", "1,234,567", "100"]);
        assert_eq!([count(1, "session"), count(1200, "session")], ["1 session", "1,200 sessions"]);
    }

    #[test]
    fn text_is_broken_between_words() {
        assert_eq!(wrap("one two  three", 7), ["one two", "three"]);
        assert_eq!(wrap("a\nb\u{1b}[2J incomprehensible", 8), ["a b [2J", "incomp.."]);
        assert!(wrap(" ", 8).is_empty());
    }
}
