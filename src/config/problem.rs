//! What is wrong with a configuration, and where.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Serialize, Serializer};

/// One step from a JSON value into it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Index(usize),
    Key(String),
}

/// Where a value stands in the file, shown like `subscriptions[0].weeklyBudget`.
///
/// Paths sort as a reader meets them: elements of a list by number, fields by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldPath(Vec<Step>);

impl FieldPath {
    /// The field `name` of the file itself.
    pub fn field(name: &str) -> Self {
        Self::default().key(name)
    }

    /// The field `name` of the object at this path.
    #[must_use]
    pub fn key(&self, name: &str) -> Self {
        self.then(Step::Key(name.to_owned()))
    }

    /// The element number `index` of the list at this path.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        self.then(Step::Index(index))
    }

    /// The section of the file in which it stands.
    pub(super) fn section(&self) -> Option<&str> {
        match self.0.first()? {
            Step::Key(name) => Some(name),
            Step::Index(_) => None,
        }
    }

    /// The path without its first `steps`.
    #[must_use]
    pub(super) fn without(&self, steps: usize) -> Self {
        Self(self.0.iter().skip(steps).cloned().collect())
    }

    fn then(&self, step: Step) -> Self {
        let mut steps = self.0.clone();
        steps.push(step);
        Self(steps)
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (depth, step) in self.0.iter().enumerate() {
            match step {
                Step::Index(index) => write!(f, "[{index}]")?,
                Step::Key(key) if !key.is_empty() && key.chars().all(is_plain) => {
                    write!(f, "{}{key}", if depth == 0 { "" } else { "." })?;
                }
                Step::Key(key) => write!(f, "[{key:?}]")?,
            }
        }
        Ok(())
    }
}

fn is_plain(character: char) -> bool {
    character.is_alphanumeric() || matches!(character, '_' | '-' | '$')
}

/// Where a problem has to be mended.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// The file as a whole.
    File,
    /// A place in a file that is not valid JSON.
    Text {
        /// Counted from 1.
        line: usize,
        /// Counted from 1.
        column: usize,
    },
    /// A value in the file.
    Field(FieldPath),
    /// A place in a file beside the one that was asked for.
    Beside(String, Box<Place>),
    /// An environment variable.
    Variable(String),
    /// A command line argument.
    Argument(String),
}

impl Place {
    /// A place in the file `name` beside.
    pub(super) fn beside(name: &str, place: Self) -> Self {
        Self::Beside(name.to_owned(), Box::new(place))
    }
}

impl From<FieldPath> for Place {
    fn from(path: FieldPath) -> Self {
        if path == FieldPath::default() { Self::File } else { Self::Field(path) }
    }
}

impl From<&FieldPath> for Place {
    fn from(path: &FieldPath) -> Self {
        path.clone().into()
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File => f.write_str("the file"),
            Self::Text { line, column } => write!(f, "line {line}, column {column}"),
            Self::Field(path) => path.fmt(f),
            Self::Beside(name, place) if **place == Self::File => f.write_str(name),
            Self::Beside(name, place) => write!(f, "{name}: {place}"),
            Self::Variable(name) => write!(f, "environment variable {name}"),
            Self::Argument(name) => f.write_str(name),
        }
    }
}

/// One thing that is wrong, or (as a warning) unwise. The message never quotes a value that could be a secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Problem {
    /// Where.
    #[serde(rename = "path", serialize_with = "as_text")]
    pub place: Place,
    /// What, for a person.
    pub message: String,
}

fn as_text<S: Serializer>(place: &Place, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(place)
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

/// Why a configuration cannot be used: everything that is wrong with it, sorted by place.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problems {
    /// The file's name, or what stands for it.
    #[serde(rename = "file")]
    pub heading: String,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let count = self.problems.len();
        write!(f, "{}: {count} problem{}", self.heading, if count == 1 { "" } else { "s" })?;
        for problem in &self.problems {
            write!(f, "\n  {problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// Collects what the checks find, so that one run reports everything.
#[derive(Debug, Default)]
pub(super) struct Findings {
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
    unusable: BTreeSet<FieldPath>,
}

impl Findings {
    pub(super) fn problem(&mut self, place: impl Into<Place>, message: impl Into<String>) {
        self.problems.push(Problem { place: place.into(), message: message.into() });
    }

    pub(super) fn warning(&mut self, place: impl Into<Place>, message: impl Into<String>) {
        self.warnings.push(Problem { place: place.into(), message: message.into() });
    }

    /// Remembers that the value at `path` was reported and taken out, so that no later check calls it missing.
    pub(super) fn unusable(&mut self, path: FieldPath) {
        self.unusable.insert(path);
    }

    /// Whether the value at `path`, if there is one, or anything in it was already reported.
    pub(super) fn is_unusable(&self, path: &FieldPath) -> bool {
        self.unusable.iter().any(|known| known.0.starts_with(&path.0) || path.0.starts_with(&known.0))
    }

    /// Takes over what `other` has found, each thing at another place.
    pub(super) fn take_in(&mut self, other: Self, place: impl Fn(Place) -> Place) {
        let moved = |problem: Problem| Problem { place: place(problem.place), ..problem };
        self.problems.extend(other.problems.into_iter().map(moved));
        self.warnings.extend(other.warnings.into_iter().map(moved));
    }

    /// Says of every field that stands in another file which one that is.
    pub(super) fn relocate(self, file_of: impl Fn(&FieldPath) -> Option<&'static str>) -> Self {
        let mut relocated = Self { unusable: self.unusable.clone(), ..Self::default() };
        relocated.take_in(self, |place| match &place {
            Place::Field(path) => match file_of(path) {
                Some(file) => Place::beside(file, place),
                None => place,
            },
            _ => place,
        });
        relocated
    }

    /// The warnings if nothing is wrong, else the problems under `heading`.
    pub(super) fn finish(mut self, heading: String) -> Result<Vec<Problem>, Problems> {
        if self.problems.is_empty() {
            self.warnings.sort();
            return Ok(self.warnings);
        }
        self.problems.sort();
        self.problems.dedup();
        Err(Problems { heading, problems: self.problems })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_read_like_code_and_sort_by_number() {
        let list = FieldPath::field("subscriptions");
        assert_eq!(list.index(2).key("env").key("A B").to_string(), "subscriptions[2].env[\"A B\"]");
        assert_eq!(FieldPath::field("models").key("gpt-4.1").to_string(), "models[\"gpt-4.1\"]");
        assert!(list.index(2) < list.index(10));
    }

    #[test]
    fn problems_are_sorted_and_said_once() {
        let mut findings = Findings::default();
        findings.problem(FieldPath::field("server"), "second");
        findings.problem(Place::Variable("PORT".into()), "third");
        findings.problem(FieldPath::field("models"), "first");
        findings.problem(FieldPath::field("models"), "first");
        let problems = findings.finish("a.json".into()).unwrap_err();
        assert_eq!(
            problems.to_string(),
            "a.json: 3 problems\n  models: first\n  server: second\n  environment variable PORT: third"
        );
    }
}
