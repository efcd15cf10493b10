//! A scripted stand-in for the `claude` CLI: plays what the real one cannot be made to do.
//!
//! Speaks the CLI's protocol on stdin and stdout. The variable `FAKE_CLAUDE` says what happens when a question comes:
//! `answer`, `hang`, `garbage`, `half-line`, `long-line`, `exit`, `exit-mid-answer`, `exit-when-idle`, `stall-mid-answer`,
//! `lost-mid-answer`, `garbage-mid-answer`, `half-line-hang`, `stderr-flood-mid-answer`, `big-line:BYTES` for an answer with
//! such a line, `exit-after:LINES` of input, `second-start`, `stderr-flood`, `grandchild`, `until:FILE` for an answer that ends when the file is there,
//! `who` for an answer that tells the process's id and how many questions it has heard, `die-later` for a process that
//! ends when a second question comes, `deaf-later` for one that reads nothing any more when it has answered, `limited:SECONDS` for a refusal until then, or `play:FILE` for a recorded transcript.
//!
//! `FAKE_CLAUDE_READY` is a file without which it is not ready after its start.
//!
//! As `fake-claude auth status` and `auth login` it plays the login of a profile.
//!
//! `FAKE_CLAUDE_USAGE` is what it answers when asked for its usage (JSON), or `hang`, `refuse` or `exit`.

#![expect(clippy::disallowed_methods, reason = "a program of its own, to which the rooms of the library mean nothing")]
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it plays a program that prints")]
#![expect(clippy::expect_used, reason = "a test's helper fails loudly")]

use std::io::{BufRead as _, Write as _};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, fs, io, process, thread};

/// `auth status` tells whether a token is given; `auth login` leaves a login in the profile, as the real one does.
fn auth(words: &[String]) {
    let profile = env::var_os("CLAUDE_CONFIG_DIR").map(std::path::PathBuf::from);
    let login = profile.map(|profile| profile.join(".credentials.json"));
    match words.first().map(String::as_str) {
        Some("status") => {
            let by_token = env::var_os("CLAUDE_CODE_OAUTH_TOKEN").is_some();
            let is_in = by_token || login.is_some_and(|login| login.exists());
            let method = if by_token {
                "oauth_token"
            } else if is_in {
                "claude.ai"
            } else {
                "none"
            };
            say(&format!(r#"{{"loggedIn":{is_in},"authMethod":"{method}"}}"#));
        }
        Some("login") => fs::write(login.expect("a profile"), "{}").expect("a login"),
        _ => process::exit(2),
    }
}

fn main() {
    let behaviour = env::var("FAKE_CLAUDE").unwrap_or_else(|_| "answer".to_owned());
    if behaviour == "exit-at-start" {
        eprintln!("fake-claude: cannot start");
        process::exit(3);
    }
    if env::args().nth(1).as_deref() == Some("auth") {
        return auth(&env::args().skip(2).collect::<Vec<_>>());
    }
    if behaviour == "stderr-flood" {
        flood();
    }
    let mut questions = 0;
    let after = behaviour.strip_prefix("exit-after:").map(|lines| lines.parse().expect("a number"));
    let mut lines_left: u64 = after.unwrap_or(u64::MAX);
    for line in io::stdin().lock().lines() {
        let Ok(line) = line else { return };
        lines_left -= 1;
        if lines_left == 0 {
            process::exit(9);
        }
        let message: serde_json::Value = serde_json::from_str(&line).expect("the proxy writes JSON lines");
        match message["type"].as_str() {
            Some("control_request") if message["request"]["subtype"] == "get_usage" => usage(&message["request_id"]),
            Some("control_request") => {
                if message["request_id"] == "warm-up" {
                    until_ready();
                }
                let id = &message["request_id"];
                say(&format!(r#"{{"type":"control_response","response":{{"subtype":"success","request_id":{id}}}}}"#));
                if behaviour == "exit-when-idle" && id == "warm-up" {
                    process::exit(1);
                }
            }
            Some("user") if message["shouldQuery"] == false => {
                say(
                    r#"{"type":"result","subtype":"success","is_error":false,"num_turns":0,"result":"","total_cost_usd":0}"#,
                );
            }
            Some("user") => {
                questions += 1;
                answer(&behaviour, questions);
            }
            _ => {}
        }
    }
}

fn until_ready() {
    if let Ok(file) = env::var("FAKE_CLAUDE_READY") {
        wait_for(&file);
    }
}

fn wait_for(file: &str) {
    while !fs::exists(file).is_ok_and(|exists| exists) {
        thread::sleep(Duration::from_millis(5));
    }
}

/// Other lines may come before the answer.
fn usage(id: &serde_json::Value) {
    let usage = env::var("FAKE_CLAUDE_USAGE").unwrap_or_else(|_| r#"{"rate_limits_available":false}"#.to_owned());
    say(r#"{"type":"system","subtype":"status"}"#);
    match usage.as_str() {
        "hang" => {}
        "exit" => process::exit(7),
        "refuse" => say(&format!(
            r#"{{"type":"control_response","response":{{"subtype":"error","request_id":{id},"error":"unknown subtype"}}}}"#
        )),
        usage => say(&format!(
            r#"{{"type":"control_response","response":{{"subtype":"success","request_id":{id},"response":{usage}}}}}"#
        )),
    }
}

fn flood() {
    for _ in 0..40_000 {
        eprintln!("a line of noise that nobody reads, many times over");
    }
}

fn answer(behaviour: &str, questions: u32) {
    let hang = || loop {
        thread::sleep(Duration::from_secs(3600));
    };
    match behaviour {
        "hang" => hang(),
        "garbage" => say("this is not JSON"),
        "half-line" => {
            print!(r#"{{"type":"stream_ev"#);
            let _ = io::stdout().flush();
            process::exit(0);
        }
        "long-line" => {
            let mut out = io::stdout().lock();
            let chunk = vec![b'x'; 64 * 1024];
            while out.write_all(&chunk).is_ok() {}
        }
        "exit" => process::exit(7),
        "exit-mid-answer" => {
            begin();
            process::exit(7);
        }
        "stall-mid-answer" => {
            begin();
            hang();
        }
        "second-start" => {
            begin();
            begin();
            end();
        }
        "grandchild" => {
            #[expect(clippy::zombie_processes, reason = "whether somebody else kills it is what the test is about")]
            let child = process::Command::new("sleep").arg("3600").spawn().expect("sleep is on every machine");
            delta(&child.id().to_string());
            hang();
        }
        until if until.starts_with("until:") => {
            begin();
            wait_for(&until["until:".len()..]);
            end();
        }
        limited if limited.starts_with("limited:") => {
            let seconds: u64 = limited["limited:".len()..].parse().expect("a number");
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later than 1970");
            let reset = now.as_secs() + seconds;
            say(&format!(
                r#"{{"type":"rate_limit_event","rate_limit_info":{{"status":"rejected","resetsAt":{reset},"rateLimitType":"five_hour"}}}}"#
            ));
            say(r#"{"type":"assistant","error":"rate_limit"}"#);
            say(
                r#"{"type":"result","subtype":"success","is_error":true,"api_error_status":429,"num_turns":1,"result":"limited"}"#,
            );
        }
        play if play.starts_with("play:") => {
            let text = fs::read_to_string(&play["play:".len()..]).expect("the transcript exists");
            // What was said before the question is said by now.
            let before = |line: &&str| {
                line.contains(r#""type":"control_response""#)
                    || line.contains(r#""num_turns":0"#) && line.contains(r#""result":"","#)
            };
            for line in text.lines().filter(|line| !before(line)) {
                say(line);
            }
        }
        "who" | "die-later" | "deaf-later" => {
            if behaviour == "die-later" && questions == 2 {
                process::exit(7);
            }
            start();
            delta(&format!("{} {questions}", process::id()));
            end_after(questions);
            if behaviour == "deaf-later" {
                hang();
            }
        }
        other => odd(other),
    }
}

/// Answers that are odd in the middle, and plain ones.
fn odd(behaviour: &str) {
    begin();
    match behaviour {
        "garbage-mid-answer" => say("this is not JSON"),
        "half-line-hang" => {
            print!(r#"{{"type":"stream_ev"#);
            let _ = io::stdout().flush();
            thread::sleep(Duration::from_secs(3600));
        }
        "lost-mid-answer" => {
            say(r#"{"type":"assistant","error":"server_error"}"#);
            say(
                r#"{"type":"result","subtype":"success","is_error":true,"api_error_status":null,"num_turns":1,"result":"Connection to the API was lost (ECONNRESET)"}"#,
            );
            return;
        }
        "stderr-flood-mid-answer" => flood(),
        _ => {
            if let Some(bytes) = behaviour.strip_prefix("big-line:") {
                delta(&"x".repeat(bytes.parse().expect("a number")));
            }
        }
    }
    end();
}

fn begin() {
    start();
    delta("Hello");
}

fn start() {
    say(
        r#"{"type":"stream_event","event":{"type":"message_start","message":{"usage":{"input_tokens":10,"cache_read_input_tokens":20,"output_tokens":1}}}}"#,
    );
}

fn delta(text: &str) {
    say(&format!(
        r#"{{"type":"stream_event","event":{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"{text}"}}}}}}"#
    ));
}

fn end() {
    end_after(1);
}

/// The cost in a result is that of all answers of the process so far.
fn end_after(questions: u32) {
    say(
        r#"{"type":"stream_event","event":{"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":2}}}"#,
    );
    say(r#"{"type":"stream_event","event":{"type":"message_stop"}}"#);
    let cost = 0.25 * f64::from(questions);
    say(&format!(
        r#"{{"type":"result","subtype":"success","is_error":false,"num_turns":1,"result":"Hello","total_cost_usd":{cost}}}"#
    ));
}

fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}");
    let _ = out.flush();
}
