//! From a raw file and the environment to a checked [`Config`].
//!
//! One run says everything that is wrong, each thing with its place: `json` reads the text, `structure` holds it
//! against the schema generated from `raw`, `check` applies the rules that a schema cannot say, and `env` adds
//! what the environment decides. The order of precedence is command line, environment, file, default.

mod beside;
mod check;
mod config_dir;
pub mod env;
mod json;
mod model;
mod problem;
mod raw;
mod schema;
mod sections;
mod size;
mod span;
mod store;
mod structure;
#[cfg(test)]
mod tests;
mod watch;

use std::path::{Path, PathBuf};

pub use env::Env;
pub use model::{
    Api, Backend, BackendKind, CapacityTracking, Channel, CircuitBreaker, Claude, ClientKey, Config, Kind,
    Notifications, OrganizationSelection, Priority, Queue, Rebalancing, Routing, Rule, RuleKind, Scope, Server, Source,
    Subscription,
};
pub use problem::{FieldPath, Place, Problem, Problems};
pub use schema::json_schema;
pub use sections::{AccountSelection, QuotaAlerts, QuotaChannels, QuotaThresholds, RateLimit, RunawayGuard, Strategy};
pub use store::{Store, StorePlace};
pub use watch::Watcher;

use beside::Beside;
use check::Context;
use problem::Findings;

/// The file that is read, if it exists, when nobody names another.
pub const DEFAULT_PATH: &str = "config/auth-pool.json";

/// What the command line decides.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config`: the file to read.
    pub config: Option<PathBuf>,
    /// `--listen`: the address to listen on.
    pub listen: Option<String>,
}

/// Reads and checks everything.
pub fn load(env: &Env, overrides: &Overrides) -> Result<Config, Problems> {
    read_and_check(env, overrides, Path::new(DEFAULT_PATH))
}

/// The file that [`load`] would read if it existed.
pub fn path(env: &Env, overrides: &Overrides) -> PathBuf {
    asked_for(env, overrides).map_or_else(|| PathBuf::from(DEFAULT_PATH), |location| location.path)
}

fn read_and_check(env: &Env, overrides: &Overrides, default_path: &Path) -> Result<Config, Problems> {
    let location = asked_for(env, overrides).or_else(|| usual_place(default_path));
    read_location(env, overrides, location)
}

fn read_location(env: &Env, overrides: &Overrides, location: Option<Location>) -> Result<Config, Problems> {
    let mut findings = Findings::default();
    let settings = env.settings(&mut findings);
    let source = location.as_ref().map_or(Source::DefaultProfile, |location| Source::File(location.path.clone()));
    let heading = source.to_string();
    let mut beside = Beside::default();
    let file = match &location {
        Some(location) => read(location, &mut beside, &mut findings),
        None => Some(raw::File::default()),
    };
    // Without a file nothing can be said of what it would have held.
    let Some(file) = file else {
        let findings = findings.relocate(|field| beside.file_of(field));
        return Err(findings.finish(heading).err().unwrap_or_else(|| unreadable(&source)));
    };
    let base = location.map_or_else(PathBuf::new, |location| location.base());
    let context = Context { env, settings, listen: overrides.listen.as_deref(), source, base };
    let config = check::config(file, &context, &mut findings);
    let warnings = findings.relocate(|field| beside.file_of(field)).finish(heading)?;
    Ok(Config { warnings, beside: beside.files(), ..config })
}

/// Checks one subscription by itself, as if it stood in a file; what it names of the environment is in `env`. Paths begin at
/// the subscription. Returns what is legal but unwise with it.
pub fn check_member(member: &serde_json::Value, env: &Env) -> Result<(Subscription, Vec<Problem>), Vec<Problem>> {
    let here = |problem: Problem| match problem.place {
        Place::Field(path) => Problem { place: path.without(2).into(), ..problem },
        _ => problem,
    };
    let mut findings = Findings::default();
    let settings = env::Settings { pool_enabled: Some(true), ..env.settings(&mut findings) };
    let file = structure::read(serde_json::json!({ "subscriptions": [member] }), &mut findings);
    let context = Context { env, settings, listen: None, source: Source::DefaultProfile, base: PathBuf::new() };
    let checked = file.map(|file| check::member(&file, &context, &mut findings));
    match (findings.finish(String::new()), checked.flatten()) {
        (Ok(warnings), Some(member)) => Ok((member, warnings.into_iter().map(here).collect())),
        (Err(problems), _) => Err(problems.problems.into_iter().map(here).collect()),
        (Ok(_), None) => Err(unreadable(&Source::DefaultProfile).problems),
    }
}

/// The file that somebody names.
fn asked_for(env: &Env, overrides: &Overrides) -> Option<Location> {
    if let Some(path) = &overrides.config {
        return Some(Location { path: path.clone(), place: Place::Argument("--config".to_owned()) });
    }
    let text = env.var(env::AUTH_POOL_CONFIG)?;
    // A `~` in an env file reaches us as it is.
    let path = config_dir::expand(text, Path::new(""), env.home().as_deref()).unwrap_or_else(|_| text.into());
    Some(Location { path, place: Place::Variable(env::AUTH_POOL_CONFIG.to_owned()) })
}

/// The file at the usual place, if there is one. One that cannot be looked at is not passed over.
fn usual_place(path: &Path) -> Option<Location> {
    path.try_exists().unwrap_or(true).then(|| Location { path: path.to_path_buf(), place: Place::File })
}

/// A file that is to be read.
#[derive(Clone, Debug)]
struct Location {
    path: PathBuf,
    /// What to blame when it is not there.
    place: Place,
}

impl Location {
    /// The directory it stands in, absolute.
    fn base(&self) -> PathBuf {
        let path = std::path::absolute(&self.path).unwrap_or_else(|_| self.path.clone());
        path.parent().map(Path::to_path_buf).unwrap_or_default()
    }
}

fn read(location: &Location, beside: &mut Beside, findings: &mut Findings) -> Option<raw::File> {
    let path = &location.path;
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let message = match location.place {
                Place::File => "does not exist".to_owned(),
                _ => format!("there is no file {}", path.display()),
            };
            findings.problem(location.place.clone(), message);
            return None;
        }
        Err(error) => {
            findings.problem(location.place.clone(), format!("{} cannot be read: {error}", path.display()));
            return None;
        }
    };
    let mut value = json::parse(&bytes, findings)?;
    *beside = Beside::join(path, &mut value, findings);
    structure::read(value, findings)
}

/// Stands in where a file could not be used and yet nothing was reported, which would be a mistake of this program.
fn unreadable(source: &Source) -> Problems {
    let problem = Problem { place: Place::File, message: "cannot be used".to_owned() };
    Problems { heading: source.to_string(), problems: vec![problem] }
}
