//! The store without its measurer, and mostly without its maker: what happens does so because the test says so.

use std::ffi::OsString;
use std::pin::pin;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::time::sleep;

use super::lent::Lent;
use super::maker::ToMake;
use super::*;
use crate::backend::Caller;
use crate::backend::claude_cli::key::{Key, Rolling};
use crate::backend::claude_cli::launch::Recipe;
use crate::backend::claude_cli::live::{Held, Kept};

/// Nothing takes this long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Long enough to see that somebody waits.
const A_MOMENT: Duration = Duration::from_millis(100);

/// Answers every line as if it were the warm-up.
const CLI: &str = r#"while read -r line; do
echo '{"type":"control_response","response":{"subtype":"success","request_id":"warm-up"}}'; done"#;

struct Bench {
    home: tempfile::TempDir,
    live: Live,
    spares: Spares,
}

impl Bench {
    fn new(max_processes: usize, max_spares: usize) -> Self {
        Self::of_each_kind(1, max_processes, max_spares)
    }

    fn of_each_kind(spares_per_kind: usize, max_processes: usize, max_spares: usize) -> Self {
        let settings = SpareSettings {
            max_processes,
            max_memory: u64::MAX,
            max_spares,
            spares_per_kind,
            idle_timeout: PATIENCE,
            max_line_bytes: 1024 * 1024,
        };
        let tasks = Tasks::default();
        let live = Live::new(PATIENCE, &tasks);
        Self { home: tempfile::tempdir().unwrap(), spares: Spares::unattended(settings, &live, &tasks), live }
    }

    fn kind(&self, model: &str) -> Arc<Launch> {
        let home = self.home.path();
        let args = ["-c", CLI].map(OsString::from).to_vec();
        let env = vec![("TMPDIR".into(), home.into()), ("HOME".into(), home.into())];
        Arc::new(Recipe::of("/bin/sh".as_ref(), args, env, &home.join("workspace")).launch(model))
    }

    /// A spare that is ready; its kind is in demand.
    async fn spare(&self, model: &str) -> Option<i32> {
        let launch = self.kind(model);
        let process = self.spares.start(&launch).await.unwrap();
        let id = process.id();
        let mut state = self.spares.state();
        state.note_demand(&launch);
        state.ready.push_back(Spare { launch, process });
        id
    }

    /// A live process that has ended its turn.
    async fn idle(&self, model: &str) -> Option<i32> {
        let launch = self.kind(model);
        let process = self.spares.start(&launch).await.unwrap();
        let id = process.id();
        self.live.reserve(&launch, key()).unwrap().keep(Kept { process, state: Held::default() });
        id
    }

    /// Does what the maker does, until nothing is to be made. How many it has made.
    fn make(&self) -> usize {
        for made in 0..100 {
            let Some(ToMake { launch, place, generation }) = self.spares.next_to_make() else { return made };
            let process = self.spares.start_in(&launch, place).unwrap();
            self.spares.put(launch, process, generation);
        }
        panic!("it has no end: {:?}", self.ready());
    }

    fn ready(&self) -> Vec<String> {
        let last = |spare: &Spare| spare.launch.args().last().unwrap().to_string_lossy().into_owned();
        self.spares.state().ready.iter().map(last).collect()
    }
}

fn key() -> Key {
    Rolling::begin(&Caller::anonymous(), &[]).key()
}

async fn until<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(begun.elapsed() < PATIENCE, "it did not happen");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Without the measurer, which has everybody look again every few seconds, only the end of the turn tells the one who waits.
#[tokio::test]
async fn who_waits_is_told_when_a_process_has_ended_its_turn() {
    let bench = Bench::new(1, 0);
    bench.spares.attend();
    let (first, second) = (bench.kind("first"), bench.kind("second"));
    let process = bench.spares.start(&first).await.unwrap();
    let reservation = bench.live.reserve(&first, key()).unwrap();
    let mut waiting = pin!(bench.spares.start(&second));
    assert!(timeout(A_MOMENT, &mut waiting).await.is_err(), "there is one place");
    reservation.keep(Kept { process, state: Held::default() });
    timeout(PATIENCE, waiting).await.expect("the idle process gives way").unwrap();
    assert_eq!(bench.live.counts().idle, 0);
    bench.spares.close();
}

/// Their places are taken by others already: nobody is told when they go.
#[tokio::test]
async fn one_that_has_ended_by_itself_gives_no_place() {
    for is_spare in [true, false] {
        let bench = Bench::new(1, 1);
        let id = if is_spare { bench.spare("ended").await } else { bench.idle("ended").await };
        kill_process_group(id.and_then(Pid::from_raw).unwrap(), Signal::KILL).unwrap();
        until(|| (bench.spares.places().taken() == 0).then_some(())).await;
        bench.idle("idle").await;
        let next = bench.kind("next");
        timeout(PATIENCE, bench.spares.start(&next)).await.expect("the one that runs gives way").unwrap();
    }
}

#[tokio::test]
async fn a_spare_that_comes_back_serves_who_waits() {
    for (wanted, gets_it) in [("lent", true), ("other", false)] {
        let bench = Bench::new(1, 1);
        let id = bench.spare("lent").await;
        let mut lent = bench.spares.lend(bench.kind("any").kind()).unwrap();
        assert_eq!((lent.process().unwrap().id(), bench.spares.counts().spare), (id, 1));
        let kind = bench.kind(wanted);
        let mut waiting = pin!(bench.spares.obtain(&kind, false));
        assert!(timeout(A_MOMENT, &mut waiting).await.is_err(), "the one that is out has the place");
        lent.is_clean();
        drop(lent);
        let Obtained { process, start } = timeout(PATIENCE, waiting).await.expect("there is a process").unwrap();
        assert_eq!((process.id() == id, start.is_none()), (gets_it, gets_it), "{wanted}");
        assert!(bench.ready().is_empty());
    }
}

#[tokio::test]
async fn a_spare_that_comes_back_is_kept_but_for_a_reason() {
    let bench = Bench::new(4, 2);
    let take_out = || bench.spares.lend(bench.kind("any").kind()).unwrap();
    let give_back = |mut lent: Lent| lent.is_clean();
    bench.spare("a").await;
    bench.spare("b").await;
    // Both places for spares are taken, one of them by the very one that comes back.
    give_back(take_out());
    assert_eq!(bench.ready(), ["a", "b"]);
    // There may be fewer meanwhile.
    let lent = take_out();
    bench.spares.retain(1, &Kinds::default());
    assert!(bench.ready().is_empty(), "the one that is out counts");
    give_back(lent);
    assert_eq!(bench.ready(), ["b"]);
    // It was not left clean, or the CLI is another one.
    let lent = take_out();
    bench.spares.renew();
    give_back(lent);
    assert!(bench.ready().is_empty());
    bench.spare("b").await;
    drop(take_out());
    assert_eq!((bench.ready().len(), bench.spares.counts().spare), (0, 0));
}

#[tokio::test]
async fn fewer_spares_are_those_used_last() {
    let bench = Bench::new(4, 3);
    for model in ["a", "b", "c"] {
        bench.spare(model).await;
    }
    bench.spares.state().note_demand(&bench.kind("a"));
    bench.spares.retain(2, &Kinds::default());
    assert_eq!(bench.ready(), ["a", "c"]);
}

#[tokio::test]
async fn no_spare_goes_before_there_is_a_place_for_the_next() {
    let bench = Bench::new(3, 2);
    let busy = bench.spares.start(&bench.kind("busy")).await.unwrap();
    bench.spare("old").await;
    bench.spares.state().note_demand(&bench.kind("wanted"));
    bench.spare("new").await;
    assert!(bench.spares.next_to_make().is_none());
    assert_eq!(bench.ready(), ["old", "new"], "all places are taken");
    drop(busy);
    let to_make = until(|| bench.spares.next_to_make()).await;
    assert_eq!((to_make.launch, bench.ready()), (bench.kind("wanted"), vec!["new".to_owned()]));
}

/// The kind that was used last gets the place of one that is not wanted any more, and of no other.
#[tokio::test]
async fn one_goes_for_the_kind_used_last_and_not_two() {
    let bench = Bench::new(2, 1);
    bench.spare("old").await;
    bench.idle("conversation").await;
    bench.spares.state().note_demand(&bench.kind("new"));
    assert!(bench.spares.next_to_make().is_none(), "it has to be gone first");
    assert!(bench.ready().is_empty());
    // However long that takes.
    until(|| (bench.spares.places().taken() == 1).then_some(())).await;
    let to_make = bench.spares.next_to_make().unwrap();
    assert_eq!((to_make.launch, bench.live.counts().idle), (bench.kind("new"), 1));
}

/// Neither one of its own kind nor one of a kind that is wanted more goes for a spare.
#[tokio::test]
async fn the_maker_comes_to_rest() {
    for (of_each_kind, max_spares, kinds) in [(2, 1, 1), (2, 1, 3), (2, 3, 2), (3, 16, 6), (1, 2, 3)] {
        let bench = Bench::of_each_kind(of_each_kind, 64, max_spares);
        let note = |number: usize| bench.spares.state().note_demand(&bench.kind(&number.to_string()));
        (0..kinds).for_each(note);
        assert_eq!(bench.make(), max_spares, "{of_each_kind} of each of {kinds}");
        // Those used last have all of theirs.
        let wanted: Vec<_> =
            (0..kinds).rev().flat_map(|number| vec![number.to_string(); of_each_kind]).take(max_spares).collect();
        assert_eq!(bench.ready(), wanted);
        // The one used longest ago is now the one used last: it gets what it lacks, and then there is peace again.
        note(0);
        let lacked = of_each_kind.min(max_spares) - wanted.iter().filter(|kind| *kind == "0").count();
        assert_eq!((bench.make(), bench.ready().len()), (lacked, max_spares));
    }
}

#[tokio::test]
async fn the_maker_comes_to_rest_while_a_spare_is_out() {
    let bench = Bench::new(64, 2);
    bench.spare("a").await;
    bench.spare("c").await;
    let mut lent = bench.spares.lend(bench.kind("any").kind()).unwrap();
    assert_eq!(bench.ready(), ["a"], "the youngest is lent");
    for model in ["a", "b"] {
        bench.spares.state().note_demand(&bench.kind(model));
    }
    // The one that is out cannot give way, and the one for which it should does not take turns with the other.
    assert_eq!((bench.make(), bench.ready()), (1, vec!["b".to_owned()]));
    lent.is_clean();
    drop(lent);
    assert_eq!((bench.make(), bench.ready()), (1, vec!["b".to_owned(), "a".to_owned()]));
}
