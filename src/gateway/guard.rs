//! Stops a client that has run away: one that sends the very same prompt over and over.
//!
//! A loop in somebody's program spends a week's budget in an hour, and no limit of the pool notices, since each request is a
//! good one. What no person and hardly any program does is to send the same prompt very often within a minute.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::Call;
use crate::conversation::{Block, ImageSource, ToolResultContent};

/// The time in which repetitions are counted.
const WINDOW: Duration = Duration::from_mins(1);

/// So many different prompts are remembered at most; then those are forgotten whose time is over, and, if that is not
/// enough, all.
const MOST: usize = 16_384;

/// What is known of the prompts of the last minute.
#[derive(Debug, Default)]
pub(super) struct Guard(Mutex<HashMap<u64, Repeats>>);

/// How often a prompt came.
#[derive(Clone, Copy, Debug)]
struct Repeats {
    since: Instant,
    count: u32,
}

impl Guard {
    /// Counts the prompt of `call`, and stops it from the one after `most` within a minute on. Then it says how long until
    /// it may come again.
    pub(super) fn admit(&self, call: &Call, most: u32, now: Instant) -> Result<(), Duration> {
        self.count(fingerprint(call), most, now)
    }

    fn count(&self, prompt: u64, most: u32, now: Instant) -> Result<(), Duration> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST && !known.contains_key(&prompt) {
            known.retain(|_, repeats| now.duration_since(repeats.since) < WINDOW);
            if known.len() >= MOST {
                known.clear();
            }
        }
        let repeats = known.entry(prompt).or_insert(Repeats { since: now, count: 0 });
        if now.duration_since(repeats.since) >= WINDOW {
            *repeats = Repeats { since: now, count: 0 };
        }
        repeats.count = repeats.count.saturating_add(1);
        if repeats.count <= most {
            return Ok(());
        }
        Err(WINDOW.saturating_sub(now.duration_since(repeats.since)))
    }
}

/// What makes a prompt the same: its client, its model, its tools, and everything that is said.
fn fingerprint(call: &Call) -> u64 {
    let mut hasher = DefaultHasher::new();
    let request = &call.request;
    (&call.client, &request.model.id, &request.system).hash(&mut hasher);
    for tool in &request.tools {
        (6, tool.definition.to_string()).hash(&mut hasher);
    }
    for turn in &request.turns {
        turn.blocks.len().hash(&mut hasher);
        for block in &turn.blocks {
            match block {
                Block::Text(text) => (0, text).hash(&mut hasher),
                Block::Image(image) => hash_image(image, &mut hasher),
                Block::ToolUse { id, name, input } => (1, id, name, input.to_string()).hash(&mut hasher),
                Block::ToolResult { tool_use_id, content, is_error } => {
                    (2, tool_use_id, is_error, content.len()).hash(&mut hasher);
                    for part in content {
                        match part {
                            ToolResultContent::Text(text) => (3, text).hash(&mut hasher),
                            ToolResultContent::Image(image) => hash_image(image, &mut hasher),
                        }
                    }
                }
            }
        }
    }
    hasher.finish()
}

fn hash_image(image: &ImageSource, hasher: &mut DefaultHasher) {
    match image {
        ImageSource::Base64 { media_type, data } => (4, media_type, data).hash(hasher),
        ImageSource::Url(url) => (5, url).hash(hasher),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_prompt_is_stopped_until_its_minute_is_over() {
        let guard = Guard::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 0..5 {
            assert_eq!(guard.count(1, 5, at(second)), Ok(()));
        }
        assert_eq!(guard.count(1, 5, at(10)), Err(Duration::from_secs(50)));
        assert_eq!(guard.count(1, 5, at(20)), Err(Duration::from_secs(40)));
        assert_eq!(guard.count(2, 5, at(20)), Ok(()), "another prompt is another matter");
        assert_eq!(guard.count(1, 5, at(60)), Ok(()));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let guard = Guard::default();
        let now = Instant::now();
        for prompt in 0..3 * MOST as u64 {
            let _ = guard.count(prompt, 1, now);
        }
        assert!(guard.0.lock().unwrap().len() <= MOST);
    }
}
