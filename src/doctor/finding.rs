//! What a check says, and all of it as a table.

use serde::Serialize;

/// How something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It works, but not as it could, or not for long.
    Warning,
    /// It does not work.
    Failed,
    /// Not used, or not asked for.
    Off,
}

impl Verdict {
    /// As it stands in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "failed",
            Self::Off => "off",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked, in a few words; the same at every run.
    pub check: String,
    /// How it is.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What to do about it.
    #[serde(rename = "todo", skip_serializing_if = "Option::is_none")]
    pub advice: Option<String>,
}

impl Finding {
    /// All is well.
    pub fn ok(check: impl Into<String>, seen: impl Into<String>) -> Self {
        Self::new(check, Verdict::Ok, seen, None)
    }

    /// Not used.
    pub fn off(check: impl Into<String>, seen: impl Into<String>) -> Self {
        Self::new(check, Verdict::Off, seen, None)
    }

    /// It could be better; `advice` says how.
    pub fn warning(check: impl Into<String>, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, Verdict::Warning, seen, Some(advice.into()))
    }

    /// It does not work; `advice` says what to do.
    pub fn failed(check: impl Into<String>, seen: impl Into<String>, advice: impl Into<String>) -> Self {
        Self::new(check, Verdict::Failed, seen, Some(advice.into()))
    }

    /// The same with something that may be done.
    #[must_use]
    pub fn advise(mut self, advice: impl Into<String>) -> Self {
        self.advice = Some(advice.into());
        self
    }

    fn new(check: impl Into<String>, verdict: Verdict, seen: impl Into<String>, advice: Option<String>) -> Self {
        Self { check: check.into(), verdict, seen: seen.into(), advice }
    }
}

/// Everything that was looked at.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether nothing failed.
    pub ok: bool,
    /// In the order of the table.
    pub checks: Vec<Finding>,
}

impl Report {
    pub(super) fn new(checks: Vec<Finding>) -> Self {
        Self { ok: checks.iter().all(|finding| finding.verdict != Verdict::Failed), checks }
    }

    /// How many have this verdict.
    pub fn count(&self, verdict: Verdict) -> usize {
        self.checks.iter().filter(|finding| finding.verdict == verdict).count()
    }

    /// For people: a line for each finding, and one below it where there is something to do.
    pub fn table(&self) -> String {
        let width = self.checks.iter().map(|finding| finding.check.chars().count()).max().unwrap_or(0);
        let mut lines = Vec::with_capacity(self.checks.len() + 2);
        for Finding { check, verdict, seen, advice } in &self.checks {
            lines.push(format!("{:7}  {check:width$}  {seen}", verdict.as_str()));
            lines.extend(advice.iter().map(|advice| format!("{:7}  {:width$}  -> {advice}", "", "")));
        }
        let counts = [Verdict::Ok, Verdict::Warning, Verdict::Failed, Verdict::Off]
            .map(|verdict| format!("{} {}", self.count(verdict), verdict.as_str()));
        lines.push(format!("\n{}", counts.join(", ")));
        lines.join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_aligned_and_says_what_to_do() {
        let report = Report::new(vec![
            Finding::ok("clock", "fine"),
            Finding::failed("login sub1", "nobody is logged in", "run `claude`"),
            Finding::off("Slack", "not configured"),
        ]);
        assert!(!report.ok);
        assert_eq!(
            report.table(),
            "ok       clock       fine\n\
             failed   login sub1  nobody is logged in\n\
             \x20                    -> run `claude`\n\
             off      Slack       not configured\n\
             \n1 ok, 0 warning, 1 failed, 1 off"
        );
        assert_eq!(serde_json::to_value(&report).unwrap()["checks"][1]["todo"], "run `claude`");
    }

    #[test]
    fn a_warning_is_no_failure() {
        assert!(Report::new(vec![Finding::warning("disk", "nearly full", "make room")]).ok);
    }
}
