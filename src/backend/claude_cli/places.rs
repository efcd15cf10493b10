//! Places for processes: how many there may be, and how much memory all of them together may take.
//!
//! A process has a [`Place`] from before it is started until it is really gone. What it takes is measured now and then;
//! until it has been measured it counts as much as the others do on average, so that many starts at once do not pass a
//! budget that would have been enough for one. One process is always admitted, whatever the budget.

use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use serde::Serialize;
use tokio::sync::futures::Notified;
use tokio::sync::{Mutex as Turnstile, Notify, OwnedSemaphorePermit, Semaphore};

/// What a process is taken to need before any has been measured, in bytes: an idle one has 110 to 160 MB.
const ASSUMED: u64 = 150 * 1024 * 1024;

/// A place among all processes of the pool. Free again when the process that has it is really gone.
#[derive(Debug)]
pub(super) struct Place {
    permit: Option<OwnedSemaphorePermit>,
    seat: Option<Arc<Seat>>,
    places: Arc<Inner>,
}

/// Who has a place, and what it takes.
#[derive(Debug, Default)]
struct Seat {
    /// The process; 0 before it was started.
    pid: AtomicI32,
    /// What it takes, by the last measurement and what has come or gone since; 0 before the first one.
    bytes: AtomicU64,
    /// When it was last measured.
    measured: Mutex<Measured>,
}

/// A measurement, to tell whether another one would say something new.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    /// What was in memory then, in bytes, shared pages in full.
    resident: u64,
    /// What others paid of that.
    shared: u64,
    /// How many processes there were to share with.
    company: usize,
}

impl Measured {
    /// Whether it no longer tells what a process takes, of which so much is in memory now.
    fn is_outdated(self, resident: u64, company: usize) -> bool {
        self.company != company || resident.abs_diff(self.resident) > self.resident / DRIFT
    }
}

/// How far what is in memory may move before it is measured anew what of it is shared: an eighth.
const DRIFT: u64 = 8;

impl Place {
    /// Says which process has it.
    pub(super) fn taken_by(&self, pid: i32) {
        if let Some(seat) = &self.seat {
            seat.pid.store(pid, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // In this order: whoever is woken finds the place free.
        drop(self.permit.take());
        drop(self.seat.take());
        self.places.freed.notify_waiters();
        self.places.wake.notify_one();
    }
}

/// The pool is closed: there are no more places.
#[derive(Debug)]
pub(super) struct Closed;

/// All places. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    permits: Arc<Semaphore>,
    most: usize,
    max_memory: AtomicU64,
    seats: Mutex<Vec<Weak<Seat>>>,
    /// First come, first served, also where memory is what is missing.
    turnstile: Turnstile<()>,
    /// Told when a place is free, or a measurement has shown room.
    freed: Notify,
    /// Told likewise; for who makes spares.
    wake: Arc<Notify>,
}

/// What all processes take, for the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryUse {
    /// Bytes of proportional memory (PSS), as last measured.
    pub used_bytes: u64,
    /// The most they may take together.
    pub max_bytes: u64,
}

impl Places {
    /// `wake` is told of each place that is free again.
    pub(super) fn new(most: usize, max_memory: u64, wake: &Arc<Notify>) -> Self {
        Self(Arc::new(Inner {
            permits: Arc::new(Semaphore::new(most)),
            most,
            max_memory: AtomicU64::new(max_memory),
            seats: Mutex::default(),
            turnstile: Turnstile::new(()),
            freed: Notify::new(),
            wake: Arc::clone(wake),
        }))
    }

    /// A place, if one is free and nobody else waits for it.
    pub(super) fn try_take(&self) -> Option<Place> {
        let _first = self.0.turnstile.try_lock().ok()?;
        self.admit()
    }

    /// A place, as soon as there is one. `give_way` lets a process go that is less important than this wish, if there is
    /// such a process.
    pub(super) async fn take(&self, give_way: impl Fn()) -> Result<Place, Closed> {
        let _first = self.0.turnstile.lock().await;
        loop {
            let freed = self.freed();
            if self.0.permits.is_closed() {
                return Err(Closed);
            }
            if let Some(place) = self.admit() {
                return Ok(place);
            }
            // Its place is free when it is gone.
            give_way();
            freed.await;
        }
    }

    fn admit(&self) -> Option<Place> {
        let permit = Arc::clone(&self.0.permits).try_acquire_owned().ok()?;
        let mut seats = self.seats();
        let (used, count) = sum(&mut seats);
        let is_alone = count == 0;
        if !is_alone && used + average(used, count) > self.0.max_memory.load(Ordering::Relaxed) {
            return None;
        }
        let seat = Arc::<Seat>::default();
        seats.push(Arc::downgrade(&seat));
        drop(seats);
        Some(Place { permit: Some(permit), seat: Some(seat), places: Arc::clone(&self.0) })
    }

    /// How many are taken.
    pub(super) fn taken(&self) -> usize {
        self.0.most - self.0.permits.available_permits()
    }

    /// What all processes take.
    pub(super) fn memory(&self) -> MemoryUse {
        let (used_bytes, _) = sum(&mut self.seats());
        MemoryUse { used_bytes, max_bytes: self.0.max_memory.load(Ordering::Relaxed) }
    }

    /// Whether they take more than they may. One alone may take whatever it needs.
    pub(super) fn is_over(&self) -> bool {
        let (used, count) = sum(&mut self.seats());
        count > 1 && used > self.0.max_memory.load(Ordering::Relaxed)
    }

    /// Changes the budget. Who waits looks again.
    pub(super) fn set_max_memory(&self, bytes: u64) {
        self.0.max_memory.store(bytes, Ordering::Relaxed);
        self.look_again();
    }

    /// Looks what each process takes. `resident` is cheap: what is in memory, shared pages in full. `proportional` walks
    /// all pages of the process, milliseconds for a large one, so it is asked only when much has changed.
    pub(super) fn measure(&self, resident: impl Fn(i32) -> Option<u64>, proportional: impl Fn(i32) -> Option<u64>) {
        let seats: Vec<Arc<Seat>> = self.seats().iter().filter_map(Weak::upgrade).collect();
        for seat in &seats {
            let pid = seat.pid.load(Ordering::Relaxed);
            if pid == 0 {
                continue;
            }
            let Some(resident) = resident(pid) else { continue };
            let mut measured = seat.measured.lock().unwrap_or_else(PoisonError::into_inner);
            if measured.is_outdated(resident, seats.len()) {
                let Some(bytes) = proportional(pid) else { continue };
                *measured = Measured { resident, shared: resident.saturating_sub(bytes), company: seats.len() };
            }
            // What comes and goes is the process's own: the shared pages are those of the program.
            seat.bytes.store(resident.saturating_sub(measured.shared), Ordering::Relaxed);
        }
        self.look_again();
    }

    /// Waits until a place is free again, from now on.
    pub(super) fn freed(&self) -> Notified<'_> {
        self.0.freed.notified()
    }

    /// There are no more places from now on; who waits is told.
    pub(super) fn close(&self) {
        self.0.permits.close();
        self.look_again();
    }

    /// Has everybody who waits look whether there is room.
    pub(super) fn look_again(&self) {
        self.0.freed.notify_waiters();
        self.0.wake.notify_one();
    }

    fn seats(&self) -> MutexGuard<'_, Vec<Weak<Seat>>> {
        self.0.seats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What all together take, and how many they are. Those that are gone are forgotten.
fn sum(seats: &mut Vec<Weak<Seat>>) -> (u64, u64) {
    let (mut measured, mut known, mut count) = (0, 0, 0);
    seats.retain(|seat| {
        let Some(seat) = seat.upgrade() else { return false };
        count += 1;
        let bytes = seat.bytes.load(Ordering::Relaxed);
        known += u64::from(bytes > 0);
        measured += bytes;
        true
    });
    (measured + (count - known) * average(measured, known), count)
}

fn average(bytes: u64, count: u64) -> u64 {
    bytes.checked_div(count).filter(|average| *average > 0).unwrap_or(ASSUMED)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    const MB: u64 = 1_000_000;

    fn places(most: usize, max_memory: u64) -> Places {
        Places::new(most, max_memory, &Arc::default())
    }

    #[test]
    fn the_number_and_the_memory_are_both_bounds() {
        let few = places(2, u64::MAX);
        let kept = (few.try_take().unwrap(), few.try_take().unwrap());
        assert!(few.try_take().is_none());
        drop(kept.0);
        assert!(few.try_take().is_some());

        let small = places(10, 3 * ASSUMED);
        let taken: Vec<Place> = std::iter::from_fn(|| small.try_take()).collect();
        assert_eq!(taken.len(), 3, "what was never measured counts as usual ones do");
        assert_eq!(small.taken(), 3);
    }

    #[test]
    fn what_is_measured_counts() {
        let places = places(10, 100 * MB);
        let first = places.try_take().expect("one is always admitted");
        assert!(places.try_take().is_none());
        first.taken_by(1);
        let measure = |bytes: fn(i32) -> u64| places.measure(|pid| Some(bytes(pid)), |pid| Some(bytes(pid)));
        measure(|_| 30 * MB);
        let second = places.try_take().unwrap();
        let _third = places.try_take().unwrap();
        assert!(places.try_take().is_none(), "the second and third count as much as the first");
        assert_eq!(places.memory().used_bytes, 90 * MB);
        second.taken_by(2);
        measure(|pid| if pid == 1 { 30 * MB } else { 50 * MB });
        assert!(places.is_over());
        drop(second);
        assert!(!places.is_over());
    }

    #[test]
    fn what_is_shared_is_measured_again_only_after_a_change() {
        let places = places(10, u64::MAX);
        let first = places.try_take().unwrap();
        first.taken_by(1);
        let asked = AtomicUsize::new(0);
        let measure = |resident: u64, proportional: u64| {
            places.measure(
                |_| Some(resident * MB),
                |_| {
                    asked.fetch_add(1, Ordering::Relaxed);
                    Some(proportional * MB)
                },
            );
            (asked.load(Ordering::Relaxed), places.memory().used_bytes / MB)
        };
        assert_eq!(measure(280, 160), (1, 160));
        assert_eq!(measure(280, 160), (1, 160), "nothing is new");
        assert_eq!(measure(300, 999), (1, 180), "what has come is its own");
        assert_eq!(measure(320, 170), (2, 170), "much has come");
        let second = places.try_take().unwrap();
        assert_eq!(measure(320, 150), (3, 300), "there is somebody to share with; the other counts alike");
        drop(second);
        assert_eq!(measure(320, 190), (4, 190), "and there is not");
    }

    #[tokio::test]
    async fn who_waits_makes_others_give_way_once_each_and_is_served_in_order() {
        let places = places(1, u64::MAX);
        let held = Mutex::new(places.try_take());
        let asked = AtomicUsize::new(0);
        let place = places
            .take(|| {
                asked.fetch_add(1, Ordering::Relaxed);
                drop(held.lock().unwrap().take());
            })
            .await
            .unwrap();
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        let waiting = places.take(|| {});
        tokio::pin!(waiting);
        assert!(timeout(Duration::from_millis(20), &mut waiting).await.is_err());
        drop(place);
        assert!(places.try_take().is_none(), "it belongs to who has waited");
        assert!(waiting.await.is_ok());
        places.close();
        assert!(places.take(|| {}).await.is_err());
    }

    #[tokio::test]
    async fn a_larger_budget_lets_in_who_waits() {
        let places = places(10, MB);
        let _first = places.try_take().unwrap();
        let waiting = places.take(|| {});
        tokio::pin!(waiting);
        assert!(timeout(Duration::from_millis(20), &mut waiting).await.is_err());
        places.set_max_memory(u64::MAX);
        assert!(waiting.await.is_ok());
    }
}
