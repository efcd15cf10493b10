//! Answers that have to be JSON of a certain shape.
//!
//! The provider holds most of them to it, the model is only asked for the others, and neither is certain. So every such
//! answer is checked when it is complete. One that the client has not seen yet is asked for once more, with what was
//! wrong with it; of a stream nothing can be taken back: its end is an error instead.
//!
//! What is no complete answer is not checked: one that was cut at a limit or at a stop text, that calls tools, or that the
//! provider's safety system ended.

use std::collections::VecDeque;

use futures_util::stream::{self, BoxStream, StreamExt as _};
use tokio::time::Instant;
use tracing::{debug, info};

use super::{Answer, Call, GatewayError, PooledGateway};
use crate::conversation::{Block, Event, OutputCheck, Role, StopReason, Turn, Usage};

type Events = BoxStream<'static, Result<Event, GatewayError>>;

impl PooledGateway {
    /// Answers `call`, which has to be over by `deadline`, with an answer that passes the call's check.
    pub(super) async fn answer(&self, mut call: Call, deadline: Instant) -> Result<Answer, GatewayError> {
        let Some(check) = call.request.options.output_check.clone() else { return self.begin(&call, deadline).await };
        let answer = self.begin(&call, deadline).await?;
        let events = without_fence(answer.events, &check);
        if call.stream {
            return Ok(Answer { events: checked(events, check), ..answer });
        }
        let first = Whole::collect(events).await?;
        let Some(wrong) = first.mistake(&check) else { return Ok(Answer { events: first.events(None), ..answer }) };
        info!("the answer does not have the form asked for: asked once more");
        debug!(%wrong, "what is wrong with it");
        let usage = first.usage;
        ask_again(&mut call, first.settled().await, &wrong);
        let answer = self.begin(&call, deadline).await?;
        let second = Whole::collect(without_fence(answer.events, &check)).await?;
        match second.mistake(&check) {
            None => Ok(Answer { events: second.events(Some(usage)), ..answer }),
            Some(wrong) => Err(GatewayError::InvalidOutput { wrong }),
        }
    }
}

/// A whole answer.
struct Whole {
    begun: Vec<Event>,
    text: String,
    stop: Option<StopReason>,
    usage: Usage,
    rest: Events,
}

impl Whole {
    async fn collect(mut events: Events) -> Result<Self, GatewayError> {
        let (mut begun, mut text, mut stop, mut usage) = (Vec::new(), String::new(), None, Usage::default());
        while stop.is_none()
            && let Some(event) = events.next().await
        {
            let event = event?;
            match &event {
                Event::Text(more) => text.push_str(more),
                Event::Finished { stop: why, usage: used } => (stop, usage) = (Some(*why), *used),
                _ => {}
            }
            begun.push(event);
        }
        Ok(Self { begun, text, stop, usage, rest: events })
    }

    fn mistake(&self, check: &OutputCheck) -> Option<String> {
        (self.stop == Some(StopReason::EndTurn)).then(|| check.check(&self.text).err()).flatten()
    }

    /// The answer's text, once the pool knows what it cost: only then is its place free for the next.
    async fn settled(mut self) -> String {
        while self.rest.next().await.is_some() {}
        self.text
    }

    /// The answer again as events; its usage has `earlier` added.
    fn events(mut self, earlier: Option<Usage>) -> Events {
        if let (Some(earlier), Some(Event::Finished { usage, .. })) = (earlier, self.begun.last_mut()) {
            *usage = earlier.plus(usage);
        }
        stream::iter(self.begun.into_iter().map(Ok)).chain(self.rest).boxed()
    }
}

/// Adds to the conversation the answer that is wrong, and what is wrong with it.
fn ask_again(call: &mut Call, answer: String, wrong: &str) {
    let note = Block::Text(format!(
        "This answer does not have the form that was asked for: {wrong}. Send the whole answer again, corrected: the \
         JSON and nothing else."
    ));
    let turns = &mut call.request.turns;
    if answer.trim().is_empty() {
        // Nobody may say nothing: then it is the question that goes on.
        if let Some(last) = turns.last_mut() {
            last.blocks.push(note);
        }
        return;
    }
    turns.push(Turn { role: Role::Assistant, blocks: vec![Block::Text(answer)] });
    turns.push(Turn { role: Role::User, blocks: vec![note] });
}

/// Passes an answer on as it comes, and ends it with an error where it fails its check.
fn checked(events: Events, check: OutputCheck) -> Events {
    let next = |state: Option<(Events, OutputCheck, String)>| async move {
        let (mut events, check, mut text) = state?;
        let event = events.next().await?;
        match &event {
            Ok(Event::Text(more)) => text.push_str(more),
            Ok(Event::Finished { stop: StopReason::EndTurn, .. }) => {
                if let Err(wrong) = check.check(&text) {
                    debug!(%wrong, "a streamed answer does not have the form asked for");
                    return Some((Err(GatewayError::InvalidOutput { wrong }), None));
                }
            }
            _ => {}
        }
        Some((event, Some((events, check, text))))
    };
    stream::unfold(Some((events, check, String::new())), next).boxed()
}

/// Takes the code fence off that models like to put around JSON, where they know by words only what is wanted.
fn without_fence(events: Events, check: &OutputCheck) -> Events {
    if !check.may_be_fenced() {
        return events;
    }
    let next = |(mut events, mut fence, mut ready): (Events, Fence, VecDeque<_>)| async move {
        while ready.is_empty() {
            match events.next().await? {
                Ok(Event::Text(text)) => ready.extend(fence.pass(&text).map(|text| Ok(Event::Text(text)))),
                Ok(event @ Event::Finished { .. }) => {
                    ready.extend(fence.end().map(|text| Ok(Event::Text(text))));
                    ready.push_back(Ok(event));
                }
                other => ready.push_back(other),
            }
        }
        Some((ready.pop_front()?, (events, fence, ready)))
    };
    stream::unfold((events, Fence::Unknown(String::new()), VecDeque::new()), next).boxed()
}

const FENCE: &str = "```";

/// Where in a text, that may stand between fences, we are. Each state holds what cannot be passed on yet.
#[derive(Debug)]
enum Fence {
    /// At the beginning.
    Unknown(String),
    /// There is none.
    None,
    /// Behind the first one; what is held may be the second one.
    Inside(String),
}

impl Fence {
    /// What of the text so far can be passed on.
    fn pass(&mut self, text: &str) -> Option<String> {
        match self {
            Self::None => Some(text.to_owned()),
            Self::Unknown(held) => {
                held.push_str(text);
                let begun = held.trim_start();
                if let Some(line) = begun.strip_prefix(FENCE) {
                    // The rest of its line names the language.
                    let inside = line.split_once('\n').map(|(_, inside)| inside.to_owned())?;
                    *self = Self::Inside(String::new());
                    return self.pass(&inside);
                }
                if FENCE.starts_with(begun) {
                    return None;
                }
                let held = std::mem::take(held);
                *self = Self::None;
                Some(held)
            }
            Self::Inside(held) => {
                held.push_str(text);
                let sure = held.trim_end_matches(|c: char| c == '`' || c.is_whitespace()).len();
                let rest = held.split_off(sure);
                Some(std::mem::replace(held, rest)).filter(|text| !text.is_empty())
            }
        }
    }

    /// What is left when the text is over.
    fn end(&mut self) -> Option<String> {
        match std::mem::replace(self, Self::None) {
            Self::Inside(held) if held.trim() == FENCE => None,
            Self::Unknown(held) | Self::Inside(held) => Some(held).filter(|text| !text.is_empty()),
            Self::None => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unfenced(text: &str, size: usize) -> String {
        let mut fence = Fence::Unknown(String::new());
        let letters: Vec<char> = text.chars().collect();
        let pieces: Vec<String> = letters.chunks(size).map(|piece| piece.iter().collect()).collect();
        let passed: Vec<String> = pieces.iter().filter_map(|piece| fence.pass(piece)).collect();
        passed.concat() + &fence.end().unwrap_or_default()
    }

    #[test]
    fn a_fence_is_taken_off_however_it_is_cut() {
        for size in 1..30 {
            for plain in ["{\"a\": \"```\"}", "[1, 2]\n", "no JSON", "`x`", "", "``"] {
                assert_eq!(unfenced(plain, size), plain);
            }
            assert_eq!(unfenced("```json\n{\"a\": \"`` `\"}\n```", size), "{\"a\": \"`` `\"}");
            assert_eq!(unfenced(" \n```\n{}\n``` \n", size), "{}");
            // Not closed: what is there is shown as it is.
            assert_eq!(unfenced("```json\n{} `", size), "{} `");
            assert_eq!(unfenced("```json", size), "```json");
        }
    }
}
