//! Conversations that their clients do not send again: what was said under a `session_id`.
//!
//! A request that names a session and holds one turn only goes on where the session stands. Any other request says itself
//! what was said before, and replaces what is known here. So a client can do either, at any time:
//!
//! | the request holds | the session is | then |
//! |---|---|---|
//! | several turns | known or not | it is taken as it is, and remembered |
//! | one turn | not known | a conversation begins |
//! | one turn | known | the turn is added to it |
//! | the very turn with which the session began | one question and its answer | the answer is given anew |
//! | one turn | forgotten, because memory is bounded | an error: the client has to send the whole conversation |
//!
//! A system prompt holds for the rest of the conversation; another one is added to it. Tools and options are those of each
//! request. Turns that are added wait for each other, so that each one sees the one before it.

mod recorded;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::stream::{BoxStream, StreamExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use super::{Answer, Call, GatewayError, PooledGateway, RefusalReason, SessionHint};
use crate::conversation::{Block, Event, ImageSource, Request, ToolResultContent, Turn};
use recorded::Recorded;
use state::State;

/// Bytes of one conversation, and of all together. Above that the one, or the one used longest ago, is forgotten. One that is
/// being answered counts once, although what was known of it stays until its answer is complete.
const MOST_BYTES: Bounds = Bounds { each: 16 << 20, all: 256 << 20 };

/// What a conversation takes beside its words, in bytes. It bounds their number.
const OVERHEAD: usize = 1024;

type Events = BoxStream<'static, Result<Event, GatewayError>>;

/// Whose session, and how its client calls it.
type Name = (Arc<str>, Arc<str>);

#[derive(Clone, Copy, Debug)]
struct Bounds {
    each: usize,
    all: usize,
}

/// Why a session cannot go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SessionError {
    /// It was forgotten.
    #[error("the conversation of this session is no longer known: send all of its messages")]
    Lost,
    /// The turn does not fit the session's last one.
    #[error("{0}")]
    Misfit(String),
}

impl PooledGateway {
    /// Answers `call`, after what was said before in its session.
    pub(super) async fn in_session(&self, mut call: Call, deadline: Instant) -> Result<Answer, GatewayError> {
        let SessionHint::Session(id) = &call.session else {
            self.guard(&call)?;
            return self.answer(call, deadline).await;
        };
        let name = (Arc::clone(&call.client), Arc::clone(id));
        let visit = timeout_at(deadline, self.transcripts().enter(name, &mut call.request)).await;
        let visit = visit.unwrap_or_else(|_| {
            Err(GatewayError::Refused {
                reason: RefusalReason::Busy,
                retry_after: None,
                message: "an earlier request of this session has not been answered yet".to_owned(),
            })
        })?;
        self.guard(&call)?;
        let asked = self.transcripts().asked(&call.request, &visit);
        let answer = self.answer(call, deadline).await?;
        let events = Recorded::new(answer.events, asked, visit);
        Ok(Answer { events: events.boxed(), ..answer })
    }
}

/// What was said in the sessions. A cheap handle.
#[derive(Clone, Debug)]
pub(super) struct Transcripts(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    bounds: Bounds,
    state: Mutex<State>,
}

#[derive(Debug, Default, PartialEq)]
struct Transcript {
    system: Vec<String>,
    turns: Vec<Turn>,
}

/// What a request says, until its answer is there. It counts among all conversations while it lives.
#[derive(Debug)]
struct Asked {
    transcripts: Transcripts,
    name: Name,
    transcript: Transcript,
    bytes: usize,
    /// See [`State::copy`].
    copy: u64,
}

impl Asked {
    /// What was copied, which counts no longer.
    fn into_transcript(mut self) -> Transcript {
        std::mem::take(&mut self.transcript)
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.transcripts.state().end_copy(&self.name, self.copy, self.bytes);
    }
}

/// A request's stay in its session, which is not forgotten meanwhile. Dropping it lets the next one in.
#[derive(Debug)]
struct Visit {
    transcripts: Transcripts,
    name: Name,
    /// `None` for a request that depends on nobody. It has no permit while it waits.
    turn: Option<(Arc<Semaphore>, Option<OwnedSemaphorePermit>)>,
}

impl Default for Transcripts {
    fn default() -> Self {
        Self::bounded(MOST_BYTES)
    }
}

impl Transcripts {
    fn bounded(bounds: Bounds) -> Self {
        Self(Arc::new(Shared { bounds, state: Mutex::default() }))
    }

    /// Completes `request` by what was said before in the session.
    async fn enter(&self, name: Name, request: &mut Request) -> Result<Visit, GatewayError> {
        self.state().arrive(&name);
        let mut visit = Visit { transcripts: self.clone(), name, turn: None };
        let [turn] = request.turns.as_slice() else { return Ok(visit) };
        let lock =
            Arc::clone(self.state().locks.entry(visit.name.clone()).or_insert_with(|| Arc::new(Semaphore::new(1))));
        // Also whoever leaves while it waits tidies up.
        let (_, permit) = visit.turn.insert((Arc::clone(&lock), None));
        // It is never closed.
        *permit = lock.acquire_owned().await.ok();
        let known = self.recall(&visit.name)?;
        let before = known.as_ref().map(|known| known.turns.as_slice()).unwrap_or_default();
        if matches!(before, [first, _] if first == turn) {
            return Ok(visit);
        }
        check_fit(before, turn)?;
        if let Some(known) = known {
            request.turns.splice(0..0, known.turns.iter().cloned());
            let own = std::mem::replace(&mut request.system, known.system.clone());
            request.system.extend(own.into_iter().filter(|text| !known.system.contains(text)));
        }
        Ok(visit)
    }

    fn recall(&self, name: &Name) -> Result<Option<Arc<Transcript>>, SessionError> {
        let state = self.state();
        if state.is_lost(name) { Err(SessionError::Lost) } else { Ok(state.get(name)) }
    }

    /// A copy of what `request` says, for the time when it is answered. `None` if it is too long to be remembered, or too
    /// many others are on their way: it is looked at before it is copied. Conversations used longest ago make room.
    fn asked(&self, request: &Request, visit: &Visit) -> Option<Asked> {
        let mut system = request.system.as_slice();
        let options = &request.options;
        if options.output_check.is_some() && options.output_schema.is_none() {
            // The form of the answer is asked for in words, the last of the system prompt. They are for this answer only.
            system = system.split_last().map_or(system, |(_, others)| others);
        }
        let bytes = OVERHEAD + bytes(system, &request.turns);
        let Bounds { each, all } = self.0.bounds;
        if bytes > each {
            return None;
        }
        let copy = self.state().copy(&visit.name, bytes, all)?;
        let transcript = Transcript { system: system.to_vec(), turns: request.turns.clone() };
        Some(Asked { transcripts: self.clone(), name: visit.name.clone(), transcript, bytes, copy })
    }

    /// Remembers what was said; `None` if nobody knows it any more.
    fn record(&self, name: &Name, transcript: Option<Transcript>) {
        let Bounds { each, all } = self.0.bounds;
        let transcript = transcript.map(|transcript| (OVERHEAD + transcript.bytes(), transcript));
        let mut state = self.state();
        let Some((bytes, transcript)) = transcript.filter(|(bytes, _)| *bytes <= each) else {
            state.lose(name);
            return;
        };
        state.remember(name, transcript, bytes);
        state.shrink_to(all);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        let lock = self.turn.take().map(|(lock, _permit)| lock);
        let mut state = self.transcripts.state();
        // The map's and ours: nobody waits.
        if lock.is_some_and(|lock| Arc::strong_count(&lock) == 2) {
            state.locks.remove(&self.name);
        }
        state.leave(&self.name);
        state.shrink_to(self.transcripts.0.bounds.all);
    }
}

/// Whether `turn` may follow: it holds the results of exactly the calls that the last turn made.
fn check_fit(before: &[Turn], turn: &Turn) -> Result<(), SessionError> {
    let mut open: Vec<&str> =
        before.last().map(|turn| turn.blocks.iter().filter_map(call).collect()).unwrap_or_default();
    for id in turn.blocks.iter().filter_map(result) {
        let Some(position) = open.iter().position(|open| *open == id) else {
            return Err(SessionError::Misfit(format!("'{id}' is no unanswered call of this session's last answer")));
        };
        open.remove(position);
    }
    match open.first() {
        None => Ok(()),
        Some(id) => Err(SessionError::Misfit(format!(
            "this session's last answer calls tools, and there is no tool message for '{id}'"
        ))),
    }
}

fn call(block: &Block) -> Option<&str> {
    if let Block::ToolUse { id, .. } = block { Some(id) } else { None }
}

fn result(block: &Block) -> Option<&str> {
    if let Block::ToolResult { tool_use_id, .. } = block { Some(tool_use_id) } else { None }
}

impl Transcript {
    fn bytes(&self) -> usize {
        bytes(&self.system, &self.turns)
    }
}

/// What these take.
fn bytes(system: &[String], turns: &[Turn]) -> usize {
    let block = |block: &Block| match block {
        Block::Text(text) => text.len(),
        Block::Image(source) => image_bytes(source),
        Block::ToolUse { id, name, input } => id.len() + name.len() + input.to_string().len(),
        Block::ToolResult { tool_use_id, content, .. } => {
            let part = |part: &ToolResultContent| match part {
                ToolResultContent::Text(text) => text.len(),
                ToolResultContent::Image(source) => image_bytes(source),
            };
            tool_use_id.len() + content.iter().map(part).sum::<usize>()
        }
    };
    let blocks = turns.iter().flat_map(|turn| &turn.blocks);
    system.iter().map(String::len).sum::<usize>() + blocks.map(|one| size_of::<Block>() + block(one)).sum::<usize>()
}

fn image_bytes(source: &ImageSource) -> usize {
    match source {
        ImageSource::Base64 { data, .. } => data.len(),
        ImageSource::Url(url) => url.len(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures_util::stream;
    use serde_json::Value;

    use super::*;
    use crate::conversation::{Model, Options, Role, StopReason, Usage};

    fn turn(role: Role, text: &str) -> Turn {
        Turn { role, blocks: vec![Block::Text(text.to_owned())] }
    }

    fn request(texts: &[&str]) -> Request {
        let role = |index: usize| if index.is_multiple_of(2) { Role::User } else { Role::Assistant };
        Request {
            model: Arc::new(Model::named("claude-sonnet-4-5")),
            system: Vec::new(),
            turns: texts.iter().enumerate().map(|(index, text)| turn(role(index), text)).collect(),
            tools: Vec::new(),
            tool_choice: None,
            options: Options::default(),
        }
    }

    fn name(client: &str, id: &str) -> Name {
        (client.into(), id.into())
    }

    /// Asks, and has it answered.
    async fn say(transcripts: &Transcripts, name: &Name, texts: &[&str], answer: &str) -> Result<usize, GatewayError> {
        let mut request = request(texts);
        let visit = transcripts.enter(name.clone(), &mut request).await?;
        let turns = request.turns.len();
        request.turns.push(turn(Role::Assistant, answer));
        transcripts.record(&visit.name, Some(Transcript { system: request.system, turns: request.turns }));
        Ok(turns)
    }

    #[tokio::test]
    async fn whoever_leaves_while_it_waits_leaves_nothing() {
        let transcripts = Transcripts::default();
        let name = name("alice", "s");
        let (mut first, mut second) = (request(&["q1"]), request(&["q2"]));
        let visit = transcripts.enter(name.clone(), &mut first).await.unwrap();
        let mut waiting = Box::pin(transcripts.enter(name.clone(), &mut second));
        assert!(futures_util::poll!(waiting.as_mut()).is_pending());
        // It could go on, but is gone before it does.
        drop(visit);
        drop(waiting);
        assert!(transcripts.state().locks.is_empty() && transcripts.state().visits.is_empty());
        assert_eq!(say(&transcripts, &name, &["q3"], "a3").await, Ok(1));
    }

    #[tokio::test]
    async fn one_turn_goes_on_and_several_replace() {
        let transcripts = Transcripts::default();
        let (alice, bob) = (name("alice", "s"), name("bob", "s"));
        assert_eq!(say(&transcripts, &alice, &["q1"], "a1").await, Ok(1));
        assert_eq!(say(&transcripts, &bob, &["q2"], "a2").await, Ok(1), "another client's session");
        assert_eq!(say(&transcripts, &alice, &["q1"], "a1 anew").await, Ok(1), "the answer is given anew");
        assert_eq!(say(&transcripts, &alice, &["q2"], "a2").await, Ok(3));
        assert_eq!(say(&transcripts, &alice, &["q1"], "a3").await, Ok(5));
        assert_eq!(say(&transcripts, &alice, &["x", "y", "z"], "a").await, Ok(3));
        let mut next = request(&["next"]);
        transcripts.enter(alice, &mut next).await.unwrap();
        assert_eq!(next.turns[2], turn(Role::User, "z"));
        assert!(transcripts.state().locks.is_empty());
    }

    #[tokio::test]
    async fn what_is_forgotten_is_an_error_until_it_is_told_again() {
        let bounds = Bounds { each: OVERHEAD + 1_000, all: 2 * OVERHEAD + 1_500 };
        let transcripts = Transcripts::bounded(bounds);
        let (first, second, third) = (name("a", "1"), name("a", "2"), name("a", "3"));
        say(&transcripts, &first, &["q"], "a").await.unwrap();
        say(&transcripts, &second, &["q"], "a").await.unwrap();
        say(&transcripts, &first, &["q2"], "a").await.unwrap();
        say(&transcripts, &third, &["q"], "a").await.unwrap();
        let lost = Err(GatewayError::Session(SessionError::Lost));
        assert_eq!(say(&transcripts, &second, &["more"], "a").await, lost, "it was used longest ago");
        assert_eq!(say(&transcripts, &first, &["more"], "a").await, Ok(5));
        assert_eq!(say(&transcripts, &second, &["q", "a", "more"], "a").await, Ok(3));
        assert_eq!(say(&transcripts, &second, &["more"], "a").await, Ok(5));
        say(&transcripts, &second, &[&"long".repeat(500)], "a").await.unwrap();
        assert_eq!(say(&transcripts, &second, &["more"], "a").await, lost, "it has become too long");
        let state = transcripts.state();
        assert_eq!(state.bytes, state.known.values().map(|known| known.bytes).sum::<usize>());
        assert_eq!(state.by_use.len(), state.known.len());
    }

    /// An answer on its way to `request` that says `words`.
    async fn answering(transcripts: &Transcripts, name: &Name, request: &mut Request, words: &[&str]) -> Recorded {
        let visit = transcripts.enter(name.clone(), request).await.unwrap();
        let end = Event::Finished { stop: StopReason::EndTurn, usage: Usage::default() };
        let said: Vec<_> = words.iter().map(|word| Event::Text((*word).to_owned())).chain([end]).map(Ok).collect();
        let events = stream::iter(said).boxed();
        let asked = transcripts.asked(request, &visit);
        Recorded::new(events, asked, visit)
    }

    #[tokio::test]
    async fn what_is_on_its_way_is_bounded_too() {
        let block = size_of::<Block>();
        let bounds = Bounds { each: OVERHEAD + 2 * block + 1_000, all: 2 * OVERHEAD + 4 * block + 1_500 };
        let transcripts = Transcripts::bounded(bounds);
        let held = || {
            let state = transcripts.state();
            (state.bytes, state.copied)
        };
        let lost = Err(GatewayError::Session(SessionError::Lost));

        // What is too long to be remembered is not even copied.
        let (long, name_of_long) = ("long".repeat(500), name("a", "long"));
        let mut answer = answering(&transcripts, &name_of_long, &mut request(&[&long]), &["a"]).await;
        assert_eq!(held(), (0, 0));
        while answer.next().await.is_some() {}
        drop(answer);
        assert_eq!(say(&transcripts, &name_of_long, &["more"], "a").await, lost, "and its client is told");

        // Of several at once only as many are copied as all together may take; what is known makes room.
        let (known, first, second, third) = (name("a", "known"), name("a", "1"), name("a", "2"), name("a", "3"));
        say(&transcripts, &known, &["q"], "a").await.unwrap();
        let half = "x".repeat(500);
        let mut one = answering(&transcripts, &first, &mut request(&[&half]), &["a"]).await;
        let mut two = answering(&transcripts, &second, &mut request(&[&half]), &["a"]).await;
        let mut three = answering(&transcripts, &third, &mut request(&[&half]), &["a"]).await;
        let (bytes, copied) = held();
        assert!(bytes == 0 && (1..=bounds.all).contains(&copied), "{bytes} {copied}");
        for answer in [&mut one, &mut two, &mut three] {
            while answer.next().await.is_some() {}
        }
        drop((one, two, three));
        assert_eq!(held().1, 0);
        assert_eq!(say(&transcripts, &known, &["more"], "a").await, lost);
        assert_eq!(say(&transcripts, &third, &["more"], "a").await, lost, "there was no room for it");
        assert_eq!(say(&transcripts, &second, &["more"], "a").await, Ok(3));

        // An answer that makes a conversation too long is not gathered to its end, and one that is given up leaves nothing.
        let mut answer = answering(&transcripts, &first, &mut request(&["x", "y", "z"]), &[&long, "more"]).await;
        assert!(answer.next().await.is_some());
        assert_eq!((answer.is_gathered(), held().1), (false, 0));
        while answer.next().await.is_some() {}
        drop(answer);
        assert_eq!(say(&transcripts, &first, &["more"], "a").await, lost);
        drop(answering(&transcripts, &first, &mut request(&["x", "y", "z"]), &["a"]).await);
        assert_eq!(held().1, 0);
    }

    /// Neither its own copy nor those of others drive it out: an answer that breaks off changes nothing.
    #[tokio::test]
    async fn a_session_that_is_being_answered_stays_known() {
        let long = "x".repeat(500);
        let each = OVERHEAD + 5 * size_of::<Block>() + 600;
        let transcripts = Transcripts::bounded(Bounds { each, all: 2 * each });
        let names = ["1", "2", "3"].map(|id| name("a", id));
        for name in &names[..2] {
            say(&transcripts, name, &[&long], "a").await.unwrap();
        }
        // Two that go on have room, a third one has none.
        let mut answers = Vec::new();
        for (name, text) in names.iter().zip(["more", "more", &long]) {
            answers.push(answering(&transcripts, name, &mut request(&[text]), &["a"]).await);
        }
        assert_eq!(answers.iter().map(Recorded::is_gathered).collect::<Vec<_>>(), [true, true, false]);
        assert!(answers[0].next().await.is_some());
        drop(answers);
        for name in &names[..2] {
            assert_eq!(say(&transcripts, name, &["more"], "a").await, Ok(3));
        }

        // What is said anew meanwhile takes the place of what was known, and the copy counts in full.
        let answer = answering(&transcripts, &names[0], &mut request(&["again"]), &["a"]).await;
        let counted = || {
            let state = transcripts.state();
            (state.held(), state.bytes + state.copied)
        };
        assert!(counted().0 < counted().1);
        say(&transcripts, &names[0], &["x", "y", "z"], "a").await.unwrap();
        assert_eq!(counted().0, counted().1);
        drop(answer);
        let state = transcripts.state();
        assert_eq!((state.held(), state.idle, state.copied, state.visits.len()), (state.bytes, state.bytes, 0, 0));
        assert_eq!(state.by_use.len(), state.known.len());
    }

    #[tokio::test]
    async fn turns_of_one_session_wait_for_each_other() {
        let transcripts = Transcripts::default();
        let session = name("a", "s");
        let mut first = request(&["q1"]);
        let visit = transcripts.enter(session.clone(), &mut first).await.unwrap();
        let mut second = request(&["q2"]);
        let waiting = {
            let (transcripts, session) = (transcripts.clone(), session.clone());
            async move { transcripts.enter(session, &mut second).await.map(|visit| (visit, second.turns.len())) }
        };
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        // Whoever says all that was said before waits for nobody.
        transcripts.enter(session, &mut request(&["x", "y", "z"])).await.unwrap();
        first.turns.push(turn(Role::Assistant, "a1"));
        transcripts.record(&visit.name, Some(Transcript { system: Vec::new(), turns: first.turns }));
        drop(visit);
        assert_eq!(waiting.await.unwrap().1, 3);
        assert!(transcripts.state().locks.is_empty());
    }

    #[test]
    fn results_have_to_fit_the_calls() {
        let call = |id: &str| Block::ToolUse { id: id.to_owned(), name: "f".to_owned(), input: Value::Null };
        let result = |id: &str| Block::ToolResult { tool_use_id: id.to_owned(), content: Vec::new(), is_error: false };
        let asked = Turn { role: Role::Assistant, blocks: vec![call("a"), call("b")] };
        let fits = |before: &[Turn], blocks| check_fit(before, &Turn { role: Role::User, blocks }).is_ok();
        let asked = [asked];
        assert!(fits(&asked, vec![result("b"), result("a")]));
        assert!(!fits(&asked, vec![result("a")]) && !fits(&asked, vec![Block::Text("x".to_owned())]));
        assert!(!fits(&asked, vec![result("a"), result("b"), result("b")]) && !fits(&[], vec![result("a")]));
        assert!(fits(&[], vec![Block::Text("x".to_owned())]));
    }
}
