//! Answers that came though a limit was passed: the pool hears of it, and the operator sees it.

use std::fmt::Write as _;

use auth_pool::conversation::{Event, LimitStatus, Overage, StopReason, Usage, Window};
use auth_pool::gateway::Gateway as _;
use serde_json::json;

use super::claude_cli::{bench, collect, request};
use super::gateway::{Scripted, bench_with, gateway_settings, read};

const RESET: i64 = 4_000_000_000;

#[tokio::test]
async fn a_rejection_that_is_answered_all_the_same_fills_its_window_and_locks_nothing() {
    let stream = |event: serde_json::Value| json!({ "type": "stream_event", "event": event });
    let answer = [
        stream(json!({ "type": "message_start", "message": { "usage": { "input_tokens": 3 } } })),
        stream(json!({ "type": "content_block_delta", "index": 0, "delta": { "type": "text_delta", "text": "hi" } })),
        stream(
            json!({ "type": "message_delta", "delta": { "stop_reason": "end_turn" }, "usage": { "output_tokens": 1 } }),
        ),
        stream(json!({ "type": "message_stop" })),
    ];
    let limits = json!({ "type": "rate_limit_event", "rate_limit_info": {
        "status": "rejected", "resetsAt": RESET, "rateLimitType": "five_hour", "overageStatus": "allowed_warning",
        "overageResetsAt": RESET, "isUsingOverage": true,
    } });
    let result = json!({
        "type": "result", "subtype": "success", "is_error": false, "num_turns": 1, "result": "hi", "total_cost_usd": 0.25,
    });
    let dir = tempfile::tempdir().expect("a folder");
    // The report can come before the answer, or between its end and the result.
    for place in [0, answer.len()] {
        let mut lines = answer.to_vec();
        lines.insert(place, limits.clone());
        lines.push(result.clone());
        let text = lines.iter().fold(String::new(), |mut text, line| {
            let _ = writeln!(text, "{line}");
            text
        });
        let path = dir.path().join(format!("{place}.jsonl"));
        std::fs::write(&path, text).expect("a file");
        let bench = bench(&format!("play:{}", path.display()));
        let (events, failure) = collect(&bench, &request(&["hi"])).await;
        assert!(failure.is_none(), "{failure:?}");
        let reports =
            events.iter().filter_map(|event| if let Event::Limits(report) = event { Some(report) } else { None });
        let told: Vec<_> =
            reports.map(|report| (report.status, report.windows[0].window, report.windows[0].utilization)).collect();
        assert_eq!(told, [(LimitStatus::Warning, Window::FiveHour, 1.0)], "{place}");
        let overage = |event: &Event| matches!(event, Event::Overage(Overage { is_used: true, .. }));
        assert_eq!(events.iter().filter(|event| overage(event)).count(), 1, "{events:?}");
    }
}

#[tokio::test]
async fn the_operator_sees_who_is_served_beyond_its_limits() {
    let overage = |end: i64| Overage {
        is_used: true,
        status: Some("allowed".to_owned()),
        resets_at: None,
        window_resets_at: Some(auth_pool::units::Timestamp::from_secs(end)),
    };
    for (end, is_used) in [(RESET, true), (1_000_000_000, false)] {
        let usage = Usage { input: 10, output: 1, ..Usage::default() };
        let answer = vec![
            Ok(Event::Started(usage)),
            Ok(Event::Overage(overage(end))),
            Ok(Event::Text("hi".to_owned())),
            Ok(Event::Finished { stop: StopReason::EndTurn, usage }),
        ];
        let bench = bench_with(&[Scripted::new(vec![answer])], gateway_settings(), |_| {});
        let events = read(bench.chat("s").await.expect("an answer")).await;
        assert!(
            !events.iter().any(|event| matches!(event, Ok(Event::Overage(_)))),
            "it is none of the client's business"
        );
        let seen = bench.gateway.debug()["status"][0]["overage"].clone();
        assert_eq!((&seen["isUsed"], &seen["status"]), (&json!(is_used), &json!("allowed")), "{seen}");
    }
}
