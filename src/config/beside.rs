//! Files beside `auth-pool.json` that hold some of its sections, for those who keep them apart.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::json;
use super::problem::{FieldPath, Findings, Place};

/// Their names, and the sections that each may hold.
const FILES: [(&str, &[&str]); 2] = [
    ("backends.json", &["backends", "routing"]),
    ("multi-account.json", &["accountSelection", "capacityTracking", "circuitBreaker", "quotaAlerts", "rateLimits"]),
];

/// Sections, and the file beside that each stands in.
#[derive(Debug, Default)]
pub(super) struct Beside {
    sections: BTreeMap<String, &'static str>,
    files: Vec<&'static str>,
}

impl Beside {
    /// Puts the sections of the files beside `main` into what `main` holds.
    pub(super) fn join(main: &Path, value: &mut Value, findings: &mut Findings) -> Self {
        let mut beside = Self::default();
        let Some(file) = value.as_object_mut() else { return beside };
        for (name, path) in around(main) {
            let Some(held) = read(name, &path, findings) else { continue };
            beside.files.push(name);
            let Value::Object(held) = held else {
                findings.problem(Place::beside(name, Place::File), "expected an object");
                continue;
            };
            for (section, content) in held.into_iter().filter(|(section, _)| section != "$schema") {
                let place = || Place::beside(name, FieldPath::field(&section).into());
                if !may_hold(name).contains(&section.as_str()) {
                    let known: Vec<String> = may_hold(name).iter().map(|known| format!("`{known}`")).collect();
                    findings.problem(place(), format!("unknown field; known here are {}", known.join(", ")));
                } else if file.contains_key(&section) {
                    let main = main.file_name().unwrap_or_default().to_string_lossy();
                    findings.problem(place(), format!("stands in {main} as well; keep one"));
                } else {
                    beside.sections.insert(section.clone(), name);
                    file.insert(section, content);
                }
            }
        }
        beside
    }

    /// The file in which a field stands, where it is another one.
    pub(super) fn file_of(&self, field: &FieldPath) -> Option<&'static str> {
        self.sections.get(field.section()?).copied()
    }

    /// The files that were there.
    pub(super) fn files(self) -> Vec<&'static str> {
        self.files
    }
}

/// The paths of all of them, whether or not they are there.
pub(super) fn paths(main: &Path) -> impl Iterator<Item = PathBuf> {
    around(main).map(|(_, path)| path)
}

fn around(main: &Path) -> impl Iterator<Item = (&'static str, PathBuf)> {
    let others = FILES.into_iter().filter(move |(name, _)| main.file_name().is_none_or(|own| own != *name));
    others.map(move |(name, _)| (name, main.with_file_name(name)))
}

fn may_hold(name: &str) -> &'static [&'static str] {
    FILES.into_iter().find(|(file, _)| *file == name).map_or(&[], |(_, sections)| sections)
}

fn read(name: &str, path: &Path, findings: &mut Findings) -> Option<Value> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound => return None,
        Err(error) => {
            findings.problem(Place::beside(name, Place::File), format!("cannot be read: {error}"));
            return None;
        }
    };
    let mut own = Findings::default();
    let value = json::parse(&bytes, &mut own);
    findings.take_in(own, |place| Place::beside(name, place));
    value
}
