//! What no strategy can beat: an upper bound on what the provider's limits let pass of a trace.
//!
//! It is a relaxation. Everything is known beforehand, requests can be cut into pieces and spread, moving a session
//! costs nothing, and neither 5-hour windows nor slots, throttles, outages or the owner's reserve exist. What stays is:
//! a request can only use a weekly window that is open at its time, and no window gives more than it has. Taking at
//! every moment from the window that closes soonest is optimal for that (Glover's greedy matching in a convex bipartite
//! graph), for the whole time and for every beginning of it, so that the hourly samples are bounds too.
//!
//! The simulated provider lets the request pass that crosses a limit. Each window therefore counts with the dearest
//! request of the trace on top. As many requests as possible are served if the cheapest are; that bounds their number.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use crate::units::{MicroUsd, Timestamp};

use super::fleet::{Fleet, WEEK};
use super::report::{BoundReport, Sample};
use super::trace::Source;

const HOUR: Duration = Duration::from_hours(1);
/// Costs are counted in classes: this many to each doubling.
const CLASSES: f64 = 64.0;

/// What was asked, without the single requests.
struct Demand {
    requests: u64,
    work: MicroUsd,
    /// The dearest request, on a cold cache.
    dearest: MicroUsd,
    /// Work by the stretch of time in which it is asked.
    by_stretch: Vec<MicroUsd>,
    /// Requests by class of cost, and the least cost in the class.
    by_cost: BTreeMap<i32, (u64, MicroUsd)>,
}

/// A window of one subscription that is open.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Open {
    closes: Timestamp,
    member: usize,
}

/// The bound for a trace on a fleet, and the work that the trace asks for.
pub(super) fn bound(source: &Source, fleet: &Fleet) -> (BoundReport, MicroUsd) {
    let (start, end) = (source.start(), source.end());
    let stretches = stretches(fleet, start, end);
    let demand = demand(source, &stretches);
    let mut left: Vec<MicroUsd> = Vec::with_capacity(fleet.members.len());
    let mut open = BinaryHeap::new();
    for (at, member) in fleet.members.iter().enumerate() {
        left.push(member.week_budget - member.used_before + demand.dearest);
        open.push(Reverse(Open { closes: member.first_reset, member: at }));
    }
    let mut served = MicroUsd::ZERO;
    let mut samples = Vec::new();
    // Windows that have nothing left.
    let mut empty: BinaryHeap<Reverse<Open>> = BinaryHeap::new();
    for (&from, asked) in stretches.iter().zip(&demand.by_stretch) {
        if from.since(start).as_millis().is_multiple_of(HOUR.as_millis()) {
            samples.push(Sample { at: from, used: served, refused: 0 });
        }
        while let Some(Open { closes, member }) = closed(&mut open, from).or_else(|| closed(&mut empty, from)) {
            left[member] = fleet.members[member].week_budget + demand.dearest;
            open.push(Reverse(Open { closes: closes + WEEK, member }));
        }
        let mut asked = *asked;
        while asked > MicroUsd::ZERO
            && let Some(Reverse(soonest)) = open.peek()
        {
            let has = &mut left[soonest.member];
            let taken = asked.min(*has);
            *has -= taken;
            asked -= taken;
            served += taken;
            if *has <= MicroUsd::ZERO {
                empty.extend(open.pop());
            }
        }
    }
    samples.push(Sample { at: end, used: served, refused: 0 });
    let requests = most_requests(&demand, served);
    let paid = fleet.paid(end.since(start));
    (BoundReport::new(paid, demand.requests, demand.work, requests, served, samples), demand.work)
}

/// Takes out a window that has closed by `now`.
fn closed(windows: &mut BinaryHeap<Reverse<Open>>, now: Timestamp) -> Option<Open> {
    let is_closed = windows.peek().is_some_and(|Reverse(window)| window.closes <= now);
    if is_closed { windows.pop().map(|Reverse(window)| window) } else { None }
}

/// The beginnings of the stretches of time in which the open windows stay the same, cut at full hours for the samples.
fn stretches(fleet: &Fleet, start: Timestamp, end: Timestamp) -> Vec<Timestamp> {
    let mut cuts: Vec<Timestamp> = Vec::new();
    for member in &fleet.members {
        let resets = std::iter::successors(Some(member.first_reset), |reset| Some(*reset + WEEK));
        cuts.extend(resets.take_while(|reset| *reset < end));
    }
    cuts.extend(std::iter::successors(Some(start), |hour| Some(*hour + HOUR)).take_while(|hour| *hour < end));
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

fn demand(source: &Source, stretches: &[Timestamp]) -> Demand {
    let mut demand = Demand {
        requests: 0,
        work: MicroUsd::ZERO,
        dearest: MicroUsd::ZERO,
        by_stretch: vec![MicroUsd::ZERO; stretches.len()],
        by_cost: BTreeMap::new(),
    };
    let mut stretch = 0;
    for request in source.requests() {
        while stretches.get(stretch + 1).is_some_and(|next| *next <= request.at) {
            stretch += 1;
        }
        demand.requests += 1;
        demand.work += request.cost;
        demand.dearest = demand.dearest.max(request.cost + request.rewrite);
        demand.by_stretch[stretch] += request.cost;
        let (count, least) = demand.by_cost.entry(class(request.cost)).or_insert((0, request.cost));
        *count += 1;
        *least = (*least).min(request.cost);
    }
    demand
}

#[expect(clippy::cast_possible_truncation, reason = "a logarithm is small")]
fn class(cost: MicroUsd) -> i32 {
    (cost.as_usd().max(1e-6).log2() * CLASSES).floor() as i32
}

/// How many requests this much work can be, at most: the cheapest, each as cheap as the cheapest of its class.
fn most_requests(demand: &Demand, work: MicroUsd) -> u64 {
    let mut left = work.as_micros();
    let mut requests = 0;
    for (count, least) in demand.by_cost.values() {
        let affordable = left.checked_div(least.as_micros()).and_then(|fit| u64::try_from(fit).ok());
        let taken = affordable.unwrap_or(u64::MAX).min(*count);
        requests += taken;
        left -= least.as_micros().saturating_mul(i64::try_from(taken).unwrap_or(i64::MAX));
        if taken < *count {
            break;
        }
    }
    requests
}
