//! What is known of each build, kept in a file so that it is tried once and not at every start.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::backend::claude_cli::{Binary, Features};

/// Builds that are remembered; the oldest is forgotten first.
const MOST: usize = 16;

/// The file. A cheap handle; reading and writing block for a moment.
#[derive(Clone, Debug)]
pub struct Memory(PathBuf);

/// One build and what was seen of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    binary: Binary,
    /// The version of this program: another one may try other things.
    tried_by: String,
    features: Features,
}

impl Memory {
    pub(super) const fn at(file: PathBuf) -> Self {
        Self(file)
    }

    /// What this version of the program has seen of `binary`. A file that cannot be read knows nothing.
    pub fn recall(&self, binary: &Binary) -> Option<Features> {
        let known = |entry: &Entry| entry.binary == *binary && entry.tried_by == tried_by();
        self.entries().into_iter().find(known).map(|entry| entry.features)
    }

    /// Remembers what was seen of `binary`. Another program that does the same at this moment may win.
    pub fn remember(&self, binary: &Binary, features: &Features) -> anyhow::Result<()> {
        let mut entries = self.entries();
        entries.retain(|entry| entry.binary.path != binary.path);
        let surplus = (entries.len() + 1).saturating_sub(MOST);
        entries.drain(..surplus);
        entries.push(Entry { binary: binary.clone(), tried_by: tried_by(), features: features.clone() });
        let shown = self.0.display();
        self.write(&serde_json::to_vec_pretty(&entries)?).with_context(|| format!("{shown} cannot be written"))
    }

    fn entries(&self) -> Vec<Entry> {
        let text = fs::read(&self.0).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Replaces the file in one step, so that nobody ever reads half of it.
    fn write(&self, text: &[u8]) -> std::io::Result<()> {
        let folder = self.0.parent().ok_or(std::io::ErrorKind::NotFound)?;
        fs::create_dir_all(folder)?;
        let new = self.0.with_extension(format!("{}.new", std::process::id()));
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        let written = file.write_all(text).and_then(|()| fs::rename(&new, &self.0));
        if written.is_err() {
            // It is of no use to anybody; the error that matters is the first.
            let _ = fs::remove_file(&new);
        }
        written
    }
}

fn tried_by() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::claude_cli::{Feature, Support};

    fn binary(bytes: u64) -> Binary {
        Binary { path: "/opt/claude".into(), bytes, modified: 1_795_230_143_000_000_001 }
    }

    #[test]
    fn what_was_seen_is_known_until_the_build_changes() {
        let home = tempfile::tempdir().unwrap();
        let memory = super::super::memory(&home.path().join("not/yet/there"));
        assert_eq!(memory.recall(&binary(1)), None);
        let mut features = Features::default();
        features.set(Feature::Limits, Support::Lacks("no window".to_owned()));
        memory.remember(&binary(1), &features).unwrap();
        assert_eq!(memory.recall(&binary(1)), Some(features.clone()));
        assert_eq!(memory.recall(&binary(2)), None, "another size is another build");
        memory.remember(&binary(2), &Features::default()).unwrap();
        assert_eq!(memory.recall(&binary(1)), None, "the same place holds one build at a time");
        let elsewhere = |index| Binary { path: format!("/{index}").into(), ..binary(1) };
        for index in 0..MOST {
            memory.remember(&elsewhere(index), &features).unwrap();
        }
        assert_eq!(memory.recall(&binary(2)), None, "the oldest is forgotten");
        assert_eq!(memory.recall(&elsewhere(0)), Some(features));
        fs::write(&memory.0, "{ half a file").unwrap();
        assert_eq!(memory.recall(&elsewhere(0)), None);
    }
}
