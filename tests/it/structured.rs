//! Answers that have to be JSON, and what all attempts of a request may take together.

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use auth_pool::backend::{Backend, Caller, EventStream, Failure, FailureKind};
use auth_pool::conversation::{Block, Event, OutputCheck, Request, Role, StopReason, Turn, Usage};
use auth_pool::gateway::{Call, Gateway as _, GatewayError};
use auth_pool::units::MicroUsd;
use futures_util::{StreamExt as _, stream};
use serde_json::json;

use crate::gateway::{Bench, Scripted, bench_with, call, gateway_settings, read};

const USAGE: Usage = Usage { input: 100, cache_creation: 7, cache_read: 5, output: 10, reasoning: 1 };

/// A model that says these things, one a request, and remembers what it was asked.
#[derive(Default)]
struct Model {
    says: Mutex<Vec<(&'static [&'static str], StopReason)>>,
    asked: Mutex<Vec<Request>>,
}

impl Backend for Model {
    fn run(&self, request: &Request, _: &Caller) -> EventStream {
        self.asked.lock().unwrap().push(request.clone());
        let (texts, stop) = self.says.lock().unwrap().remove(0);
        let mut events = vec![Ok(Event::Started(USAGE))];
        events.extend(texts.iter().map(|text| Ok(Event::Text((*text).to_owned()))));
        events.push(Ok(Event::Finished { stop, usage: USAGE }));
        events.push(Ok(Event::Settled(MicroUsd::from_usd(0.25))));
        stream::iter(events).boxed()
    }
}

fn model(says: &[(&'static [&'static str], StopReason)]) -> (Arc<Model>, Bench) {
    let model = Arc::new(Model { says: Mutex::new(says.to_vec()), ..Model::default() });
    let bench = bench_with(&[Arc::clone(&model) as Arc<dyn Backend>], gateway_settings(), |_| {});
    (model, bench)
}

fn check() -> OutputCheck {
    let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
    OutputCheck::new(schema).expect("a good schema")
}

fn asking(check: OutputCheck, stream: bool) -> Call {
    let mut call = Call { stream, ..call("s") };
    call.request.options.output_check = Some(check);
    call
}

fn text(events: &[Result<Event, GatewayError>]) -> String {
    let text = |event: &Result<Event, GatewayError>| match event {
        Ok(Event::Text(text)) => Some(text.clone()),
        _ => None,
    };
    events.iter().filter_map(text).collect()
}

fn said(role: Role, text: &str) -> Turn {
    Turn { role, blocks: vec![Block::Text(text.to_owned())] }
}

#[tokio::test]
async fn a_good_answer_is_asked_for_once() {
    for stream in [true, false] {
        let (model, bench) = model(&[(&["{\"n\"", ": 5}"], StopReason::EndTurn)]);
        let events = read(bench.gateway.chat(asking(check(), stream)).await.expect("an answer")).await;
        assert_eq!(text(&events), "{\"n\": 5}");
        assert_eq!(events.last(), Some(&Ok(Event::Finished { stop: StopReason::EndTurn, usage: USAGE })));
        assert_eq!(model.asked.lock().unwrap().len(), 1);
    }
}

#[tokio::test]
async fn a_wrong_answer_is_asked_for_once_more_and_both_count() {
    let (model, bench) = model(&[(&["{\"n\": \"5\"}"], StopReason::EndTurn), (&["{\"n\": 5}"], StopReason::EndTurn)]);
    let events = read(bench.gateway.chat(asking(check(), false)).await.expect("an answer")).await;
    assert_eq!(text(&events), "{\"n\": 5}");
    let both = Usage { input: 200, cache_creation: 14, cache_read: 10, output: 20, reasoning: 2 };
    assert_eq!(events.last(), Some(&Ok(Event::Finished { stop: StopReason::EndTurn, usage: both })));
    let (_, used, in_flight) = bench.status(0);
    assert!((used - 0.5).abs() < 1e-9 && in_flight == 0, "{used}");

    let asked = model.asked.lock().unwrap();
    let [first, second] = asked.as_slice() else { panic!("{} requests", asked.len()) };
    assert_eq!(second.turns[..2], [first.turns[0].clone(), said(Role::Assistant, "{\"n\": \"5\"}")]);
    let Block::Text(note) = &second.turns[2].blocks[0] else { panic!("no text") };
    assert!(note.contains("at '/n': \"5\" is not of type \"integer\""), "{note}");
}

#[tokio::test]
async fn an_empty_answer_is_asked_for_again_in_the_same_turn() {
    let (model, bench) = model(&[(&[], StopReason::EndTurn), (&["{\"n\": 5}"], StopReason::EndTurn)]);
    bench.gateway.chat(asking(check(), false)).await.expect("an answer");
    let asked = model.asked.lock().unwrap();
    assert_eq!((asked[1].turns.len(), asked[1].turns[0].blocks.len()), (1, 2));
}

#[tokio::test]
async fn two_wrong_answers_are_an_error_that_says_why() {
    let (_, bench) = model(&[(&["no"], StopReason::EndTurn), (&["{}"], StopReason::EndTurn)]);
    let error = bench.gateway.chat(asking(check(), false)).await.err().expect("an error");
    assert_eq!(error, GatewayError::InvalidOutput { wrong: "\"n\" is a required property".to_owned() });
    // What the second one cost is heard in the background.
    while bench.in_flight() > 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn a_stream_comes_as_it_is_and_ends_with_an_error_where_it_is_wrong() {
    let (model, bench) = model(&[(&["{\"n\"", ": 1.5}"], StopReason::EndTurn)]);
    let events = read(bench.gateway.chat(asking(check(), true)).await.expect("an answer")).await;
    assert_eq!(text(&events), "{\"n\": 1.5}");
    let last = events.last().expect("an event");
    assert!(matches!(last, Err(GatewayError::InvalidOutput { wrong }) if wrong.contains("integer")), "{last:?}");
    assert!(!events.iter().any(|event| matches!(event, Ok(Event::Finished { .. }))));
    assert_eq!(model.asked.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_is_no_complete_answer_is_not_checked() {
    for stop in [StopReason::MaxTokens, StopReason::StopSequence, StopReason::ToolUse, StopReason::Refusal] {
        for stream in [true, false] {
            let (_, bench) = model(&[(&["{\"n"], stop)]);
            let events = read(bench.gateway.chat(asking(check(), stream)).await.expect("an answer")).await;
            assert_eq!(text(&events), "{\"n");
            assert_eq!(events.last(), Some(&Ok(Event::Finished { stop, usage: USAGE })));
        }
    }
}

#[tokio::test]
async fn a_code_fence_is_taken_off_where_the_model_was_told_in_words() {
    let fenced: &[&str] = &["`", "``json\n{\"n\"", ": 5}\n", "``", "`"];
    for stream in [true, false] {
        let (_, bench) = model(&[(fenced, StopReason::EndTurn)]);
        let events = read(bench.gateway.chat(asking(check().told_in_words(), stream)).await.expect("an answer")).await;
        assert_eq!(text(&events), "{\"n\": 5}");
        assert!(matches!(events.last(), Some(Ok(Event::Finished { .. }))));
    }
}

#[tokio::test]
async fn all_attempts_together_have_one_deadline() {
    // Three subscriptions, each of which hangs for ever: a timer for each attempt would add up.
    let settings = auth_pool::gateway::Settings { deadline: Duration::from_millis(300), ..gateway_settings() };
    let hanging: Vec<Arc<dyn Backend>> = (0..3).map(|_| Scripted::hanging(Vec::new()) as Arc<dyn Backend>).collect();
    let bench = bench_with(&hanging, settings, |_| {});
    let begun = Instant::now();
    for stream in [true, false] {
        let error = bench.gateway.chat(Call { stream, ..call("s") }).await.err().expect("an error");
        let GatewayError::Failed(Failure { kind, .. }) = error else { panic!("{error:?}") };
        assert_eq!(kind, FailureKind::TimedOut { timer: "total" });
    }
    assert!(begun.elapsed() >= Duration::from_millis(600));
    assert_eq!(bench.in_flight(), 0);
}

#[tokio::test]
async fn a_stream_has_the_same_deadline() {
    let settings = auth_pool::gateway::Settings { deadline: Duration::from_millis(500), ..gateway_settings() };
    let backend = Scripted::hanging(vec![Ok(Event::Started(USAGE)), Ok(Event::Text("begun".to_owned()))]);
    let open = Arc::clone(&backend.open);
    let bench = bench_with(&[backend as Arc<dyn Backend>], settings, |_| {});
    let events = read(bench.gateway.chat(call("s")).await.expect("an answer")).await;
    assert_eq!(text(&events), "begun");
    let last = events.last().expect("an event");
    assert!(
        matches!(last, Err(GatewayError::Failed(failure)) if failure.kind == FailureKind::TimedOut { timer: "total" })
    );
    assert_eq!((bench.in_flight(), open.load(std::sync::atomic::Ordering::SeqCst)), (0, 0));
}
