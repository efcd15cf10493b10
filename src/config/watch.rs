//! Notices that the file changed, and reads it again.
//!
//! What is watched is the *directory* of the file, and of everything that a symbolic link on the way to it names:
//! editors and configuration maps do not write into a file, they put another in its place. An event only says that it
//! is time to look; whether the file is another one is decided by what the file system says of it. A slow poll covers
//! what sends no events: network drives, and a directory that does not exist yet.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Config, Env, Location, Overrides, Place, Problems, Source, beside, path, read_and_check, read_location};
use crate::config::DEFAULT_PATH;
use crate::runtime::tasks::Tasks;

/// A file counts as written when nothing has happened for this long.
const QUIET: Duration = Duration::from_millis(100);
/// A directory in which something always happens does not put off a look for longer than this.
const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// Time between two looks without an event.
const POLL: Duration = Duration::from_secs(5);

/// Reads the configuration again whenever it changes, until it is dropped.
#[derive(Debug)]
pub struct Watcher {
    forced: Arc<Notify>,
    _stop: DropGuard,
}

impl Watcher {
    /// Begins to watch the file that `current` came from. What is received is each new configuration, or why the file
    /// as it is now cannot be used; then the one before stays in force. A change that means the same is not told.
    ///
    /// Without a file, one that appears at the usual place is noticed. A file that disappears is a problem, not a
    /// return to the default: it may be on its way.
    pub fn start(
        tasks: &Tasks,
        env: Env,
        overrides: Overrides,
        current: &Config,
    ) -> (Self, mpsc::Receiver<Result<Config, Problems>>) {
        Self::start_polling(tasks, Inputs { env, overrides, default_path: PathBuf::from(DEFAULT_PATH) }, current, POLL)
    }

    fn start_polling(
        tasks: &Tasks,
        inputs: Inputs,
        current: &Config,
        poll: Duration,
    ) -> (Self, mpsc::Receiver<Result<Config, Problems>>) {
        let (changes, receiver) = mpsc::channel(1);
        let (forced, stop) = (Arc::new(Notify::new()), CancellationToken::new());
        let path = match &current.source {
            Source::File(path) => path.clone(),
            Source::DefaultProfile => inputs.path(),
        };
        let has_file = matches!(current.source, Source::File(_));
        let mut watch = Watch {
            inputs: Arc::new(inputs),
            path,
            has_file,
            events: Arc::new(Notify::new()),
            forced: Arc::clone(&forced),
            seen: Vec::new(),
            last: Ok(current.clone()),
            armed: None,
        };
        // Armed before the first look: what changes between the two is an event.
        watch.arm();
        let stopped = stop.clone();
        tasks.spawn("config-watch", async move {
            tokio::select! {
                () = stopped.cancelled() => {}
                () = changes.closed() => {}
                () = watch.run(&changes, poll) => {}
            }
        });
        (Self { forced, _stop: stop.drop_guard() }, receiver)
    }

    /// Reads the file now and tells the outcome even if nothing changed: for `SIGHUP`.
    pub fn reload(&self) {
        self.forced.notify_one();
    }
}

/// What a configuration is made from besides its file.
struct Inputs {
    env: Env,
    overrides: Overrides,
    default_path: PathBuf,
}

impl Inputs {
    fn path(&self) -> PathBuf {
        let asked = path(&self.env, &self.overrides);
        if asked == Path::new(DEFAULT_PATH) { self.default_path.clone() } else { asked }
    }
}

/// Why it is time to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Event,
    Poll,
    Forced,
}

struct Watch {
    inputs: Arc<Inputs>,
    path: PathBuf,
    /// Whether a file was in use; from then on there has to be one.
    has_file: bool,
    events: Arc<Notify>,
    forced: Arc<Notify>,
    /// The file and those beside it as they were when they were last read.
    seen: Vec<Option<Stamp>>,
    /// What was last told.
    last: Result<Config, Problems>,
    /// Sends events while it lives.
    armed: Option<RecommendedWatcher>,
}

impl Watch {
    async fn run(&mut self, changes: &mpsc::Sender<Result<Config, Problems>>, poll: Duration) {
        let mut ticks = tokio::time::interval(poll);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            // The first tick comes at once: it catches what changed before this task began.
            let cause = tokio::select! {
                () = self.forced.notified() => Cause::Forced,
                () = self.quiet_after_event() => Cause::Event,
                _ = ticks.tick() => Cause::Poll,
            };
            if let Some(outcome) = self.look(cause).await
                && changes.send(outcome).await.is_err()
            {
                return;
            }
        }
    }

    /// Waits for an event, and then until no more come.
    async fn quiet_after_event(&self) {
        self.events.notified().await;
        let latest = Instant::now() + LONGEST_WAIT;
        while Instant::now() < latest {
            if tokio::time::timeout(QUIET, self.events.notified()).await.is_err() {
                return;
            }
        }
    }

    /// Reads the file if there is reason to; `Some` if the outcome is to be told.
    async fn look(&mut self, cause: Cause) -> Option<Result<Config, Problems>> {
        // Taken before the file is read, so that a change in between is another stamp the next time.
        let stamps: Vec<_> = self.files().map(|path| Stamp::of(&path)).collect();
        let changed = stamps != self.seen;
        // What was wrong can be mended elsewhere, for example by creating a directory.
        let may_be_mended = cause == Cause::Poll && self.last.is_err();
        if !changed && !may_be_mended && cause != Cause::Forced {
            return None;
        }
        if changed {
            // Other directories may be on the way now, or others by the same names.
            self.arm();
        }
        let outcome = self.read().await?;
        self.seen = stamps;
        if let Ok(config) = &outcome {
            self.has_file = matches!(config.source, Source::File(_));
        }
        if outcome == self.last && cause != Cause::Forced {
            return None;
        }
        self.last.clone_from(&outcome);
        Some(outcome)
    }

    /// The file and those beside it.
    fn files(&self) -> impl Iterator<Item = PathBuf> {
        std::iter::once(self.path.clone()).chain(beside::paths(&self.path))
    }

    async fn read(&self) -> Option<Result<Config, Problems>> {
        let inputs = Arc::clone(&self.inputs);
        let location = self.has_file.then(|| Location { path: self.path.clone(), place: Place::File });
        let read = move || match location {
            Some(location) => read_location(&inputs.env, &inputs.overrides, Some(location)),
            None => read_and_check(&inputs.env, &inputs.overrides, &inputs.default_path),
        };
        tokio::task::spawn_blocking(read)
            .await
            .inspect_err(|error| tracing::error!(%error, "reading the configuration failed"))
            .ok()
    }

    /// Watches every directory that now matters, and no other.
    fn arm(&mut self) {
        let events = Arc::clone(&self.events);
        let watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
            if event.map_or(true, |event| is_change(event.kind)) {
                events.notify_one();
            }
        });
        let watcher = watcher.map(|mut watcher| {
            let all: BTreeSet<PathBuf> = self.files().flat_map(|path| directories(&path)).collect();
            for directory in all {
                if let Err(error) = watcher.watch(&directory, RecursiveMode::NonRecursive) {
                    tracing::debug!(directory = %directory.display(), %error, "not watched, only polled");
                }
            }
            watcher
        });
        match watcher {
            Ok(watcher) => self.armed = Some(watcher),
            Err(error) => tracing::warn!(%error, "the configuration is not watched, only polled"),
        }
    }
}

/// Reading the file, which this program does itself, is no change; the end of writing it is.
fn is_change(kind: EventKind) -> bool {
    !matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write))
}

/// The directories in which something happens when another file comes to stand at `path`: its own, and those of
/// whatever symbolic links lead to.
fn directories(path: &Path) -> BTreeSet<PathBuf> {
    /// As many links as the kernel follows; a circle ends here.
    const MOST_LINKS: usize = 40;
    let mut directories = BTreeSet::new();
    let mut path = std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
    for _ in 0..MOST_LINKS {
        let Some(directory) = path.parent().map(Path::to_path_buf) else { break };
        let target = fs::read_link(&path);
        // The directory can itself be a link, as in a mounted configuration map.
        if let Some(above) = directory.parent()
            && directory.is_symlink()
        {
            directories.insert(above.to_path_buf());
        }
        directories.insert(directory.clone());
        let Ok(target) = target else { break };
        path = directory.join(target);
    }
    directories
}

/// What the file system says of a file; another stamp is another file, or other content.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None` when there is no file.
    fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok()?;
        Some(Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// Less than [`POLL`], so that what is noticed was noticed by an event.
    const SOON: Duration = Duration::from_secs(3);

    struct Setting {
        home: tempfile::TempDir,
        env: Env,
        tasks: Tasks,
    }

    type Changes = mpsc::Receiver<Result<Config, Problems>>;

    impl Setting {
        fn new() -> Self {
            let home = tempfile::tempdir().unwrap();
            fs::create_dir(home.path().join(".claude")).unwrap();
            fs::create_dir(home.path().join("etc")).unwrap();
            let env = [("HOME".to_owned(), home.path().to_string_lossy().into_owned())].into_iter().collect();
            Self { home, env, tasks: Tasks::default() }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.home.path().join(name)
        }

        fn watch(&self, file: &str) -> (Watcher, Changes) {
            let overrides = Overrides { config: Some(self.path(file)), listen: None };
            let current = crate::config::load(&self.env, &overrides).unwrap();
            Watcher::start(&self.tasks, self.env.clone(), overrides, &current)
        }
    }

    fn with_clients(count: u32) -> String {
        format!("{{\"maxClientsPerSubscription\": {count}}}")
    }

    async fn next(changes: &mut Changes) -> Result<Config, Problems> {
        tokio::time::timeout(SOON, changes.recv()).await.unwrap().unwrap()
    }

    async fn next_clients(changes: &mut Changes) -> u32 {
        next(changes).await.unwrap().max_clients_per_subscription
    }

    async fn nothing(changes: &mut Changes) {
        assert!(tokio::time::timeout(Duration::from_millis(500), changes.recv()).await.is_err());
    }

    #[tokio::test]
    async fn written_in_place_replaced_broken_mended_and_removed() {
        let setting = Setting::new();
        let file = setting.path("etc/auth-pool.json");
        fs::write(&file, with_clients(1)).unwrap();
        let (watcher, mut changes) = setting.watch("etc/auth-pool.json");
        nothing(&mut changes).await;

        let written = Instant::now();
        fs::write(&file, with_clients(2)).unwrap();
        assert_eq!(next_clients(&mut changes).await, 2);
        assert!(written.elapsed() < Duration::from_secs(1), "{:?}", written.elapsed());

        // As editors save: another file is put in its place, twice, because the first leaves another inode to watch.
        for count in [3, 4] {
            fs::write(setting.path("etc/.auth-pool.json.swp"), with_clients(count)).unwrap();
            fs::rename(setting.path("etc/.auth-pool.json.swp"), &file).unwrap();
            assert_eq!(next_clients(&mut changes).await, count);
        }

        fs::write(&file, "{\"maxClientsPerSubscription\": }").unwrap();
        let problems = next(&mut changes).await.unwrap_err();
        assert!(problems.to_string().contains("line 1, column 31"), "{problems}");
        fs::write(&file, with_clients(4)).unwrap();
        assert_eq!(next_clients(&mut changes).await, 4);

        // The same meaning in other words is not told, unless somebody asks.
        fs::write(&file, with_clients(4) + "\n\n").unwrap();
        nothing(&mut changes).await;
        watcher.reload();
        assert_eq!(next_clients(&mut changes).await, 4);

        fs::remove_file(&file).unwrap();
        let problems = next(&mut changes).await.unwrap_err();
        assert!(problems.to_string().ends_with("the file: does not exist"), "{problems}");
        fs::write(&file, with_clients(5)).unwrap();
        assert_eq!(next_clients(&mut changes).await, 5);

        drop(watcher);
        tokio::time::timeout(SOON, setting.tasks.finished()).await.unwrap();
        assert!(changes.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_configuration_map_is_swapped_by_its_link() {
        let setting = Setting::new();
        for (version, count) in [("etc/..v1", 1), ("etc/..v2", 2), ("etc/..v3", 3)] {
            fs::create_dir(setting.path(version)).unwrap();
            fs::write(setting.path(version).join("auth-pool.json"), with_clients(count)).unwrap();
        }
        symlink("..v1", setting.path("etc/..data")).unwrap();
        symlink("..data/auth-pool.json", setting.path("etc/auth-pool.json")).unwrap();
        let (_watcher, mut changes) = setting.watch("etc/auth-pool.json");
        for (old, version, count) in [("etc/..v1", "..v2", 2), ("etc/..v2", "..v3", 3)] {
            symlink(version, setting.path("etc/..data_tmp")).unwrap();
            fs::rename(setting.path("etc/..data_tmp"), setting.path("etc/..data")).unwrap();
            fs::remove_dir_all(setting.path(old)).unwrap();
            assert_eq!(next_clients(&mut changes).await, count);
        }
        // Also what is written behind the link.
        fs::write(setting.path("etc/..v3/auth-pool.json"), with_clients(4)).unwrap();
        assert_eq!(next_clients(&mut changes).await, 4);
    }

    #[tokio::test]
    async fn a_file_beside_it_is_followed_too() {
        let setting = Setting::new();
        fs::write(setting.path("etc/auth-pool.json"), with_clients(1)).unwrap();
        let (_watcher, mut changes) = setting.watch("etc/auth-pool.json");
        let beside = setting.path("etc/multi-account.json");
        let retries = |count: u32| format!("{{\"accountSelection\": {{\"maxRetries\": {count}}}}}");
        for count in [7, 8] {
            fs::write(&beside, retries(count)).unwrap();
            assert_eq!(next(&mut changes).await.unwrap().account_selection.max_retries, count);
        }
        fs::write(&beside, retries(0)).unwrap();
        let problems = next(&mut changes).await.unwrap_err().to_string();
        assert!(problems.contains("multi-account.json: accountSelection.maxRetries: must be at least 1"), "{problems}");
        fs::remove_file(&beside).unwrap();
        assert_eq!(next(&mut changes).await.unwrap().account_selection.max_retries, 3);
    }

    #[tokio::test]
    async fn a_link_to_a_file_elsewhere_is_followed() {
        let setting = Setting::new();
        fs::create_dir(setting.path("real")).unwrap();
        fs::write(setting.path("real/pool.json"), with_clients(1)).unwrap();
        symlink("../real/pool.json", setting.path("etc/auth-pool.json")).unwrap();
        let (_watcher, mut changes) = setting.watch("etc/auth-pool.json");
        fs::write(setting.path("real/pool.json"), with_clients(2)).unwrap();
        assert_eq!(next_clients(&mut changes).await, 2);
    }

    #[tokio::test]
    async fn a_burst_of_writes_is_one_change() {
        let setting = Setting::new();
        let file = setting.path("etc/auth-pool.json");
        fs::write(&file, with_clients(1)).unwrap();
        let (_watcher, mut changes) = setting.watch("etc/auth-pool.json");
        nothing(&mut changes).await;
        for count in 2..20 {
            fs::write(&file, with_clients(count)).unwrap();
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(next_clients(&mut changes).await, 19);
        nothing(&mut changes).await;
    }

    #[tokio::test]
    async fn a_busy_directory_does_not_put_off_a_change_for_ever() {
        let setting = Setting::new();
        let file = setting.path("etc/auth-pool.json");
        fs::write(&file, with_clients(1)).unwrap();
        let (_watcher, mut changes) = setting.watch("etc/auth-pool.json");
        let log = setting.path("etc/busy.log");
        let busy = setting.tasks.spawn("busy", async move {
            loop {
                fs::write(&log, "line").unwrap();
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        });
        fs::write(&file, with_clients(2)).unwrap();
        assert_eq!(next_clients(&mut changes).await, 2);
        busy.abort();
    }

    #[tokio::test]
    async fn polling_notices_a_first_file_and_what_is_mended_elsewhere() {
        let setting = Setting::new();
        let default_path = setting.path("later/auth-pool.json");
        let inputs = Inputs { env: setting.env.clone(), overrides: Overrides::default(), default_path };
        let current = read_and_check(&inputs.env, &inputs.overrides, &inputs.default_path).unwrap();
        assert_eq!(current.source, Source::DefaultProfile);
        let poll = Duration::from_millis(50);
        let (_watcher, mut changes) = Watcher::start_polling(&setting.tasks, inputs, &current, poll);
        fs::create_dir(setting.path("later")).unwrap();
        let member = r#"{"id": "a", "type": "claude-max", "configDir": "~/.claude-a", "weeklyBudget": 1}"#;
        fs::write(setting.path("new.json"), format!("{{\"subscriptions\": [{member}]}}")).unwrap();
        fs::rename(setting.path("new.json"), setting.path("later/auth-pool.json")).unwrap();
        let problems = next(&mut changes).await.unwrap_err();
        assert!(problems.to_string().contains("subscriptions[0].configDir"), "{problems}");
        fs::create_dir(setting.path(".claude-a")).unwrap();
        let config = next(&mut changes).await.unwrap();
        assert_eq!(config.source, Source::File(setting.path("later/auth-pool.json")));
    }
}
