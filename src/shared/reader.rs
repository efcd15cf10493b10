//! Listens to what other replicas tell, on a connection of its own.

use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::{FromRedisValue as _, Value};
use serde::{Deserialize, Serialize};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::address::Address;
use super::link::{Broken, Link, connect};
use super::news::{Heard, News};

/// How long one question for news waits for some.
const WAIT: Duration = Duration::from_secs(2);
/// How long an answer may take: longer than the wait.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// Between two tries to connect.
const PAUSE: Duration = Duration::from_secs(1);
/// News that one answer brings at most.
const AT_ONCE: usize = 512;

/// What is kept for those who come later.
#[derive(Deserialize)]
struct Conditions {
    news: Option<Vec<String>>,
    newest: String,
}

#[derive(Serialize)]
struct Nothing {}

pub(super) async fn run(link: Arc<Link>, address: Address, stop: CancellationToken) {
    let listening = async {
        // Where to go on: after a break nothing is missed that the server still has.
        let mut last: Option<String> = None;
        loop {
            let Err(Broken(cause)) = listen(&link, &address, &mut last).await;
            debug!(cause, "news of other replicas cannot be heard");
            sleep(PAUSE).await;
        }
    };
    stop.run_until_cancelled(listening).await;
}

async fn listen(link: &Link, address: &Address, last: &mut Option<String>) -> Result<std::convert::Infallible, Broken> {
    let mut connection = connect(address, ANSWER_LIMIT).await?;
    let () = link.scripts.load().query_async(&mut connection).await?;
    let conditions = link.frame.call(&link.scripts.conditions, &Nothing {});
    let conditions: String = conditions.query_async(&mut connection).await?;
    let Ok(Conditions { news, newest }) = serde_json::from_str(&conditions) else {
        return Err(Broken("the server answered nonsense".to_owned()));
    };
    for news in news.into_iter().flatten() {
        deliver(link, None, &news);
    }
    let last = last.get_or_insert(newest);
    link.note_listening();
    loop {
        let told = ask(link, &mut connection, last).await?;
        for Entry { id, replica, news } in told {
            *last = id;
            if replica != link.replica {
                deliver(link, Some(replica), &news);
            }
        }
    }
}

fn deliver(link: &Link, from: Option<String>, news: &str) {
    if let Some(news) = News::decode(news) {
        link.hear(Heard::News { from, news });
    }
}

/// One piece of news as the server keeps it.
struct Entry {
    id: String,
    replica: String,
    news: String,
}

async fn ask(link: &Link, connection: &mut MultiplexedConnection, last: &str) -> Result<Vec<Entry>, Broken> {
    let mut question = redis::cmd("XREAD");
    question.arg("BLOCK").arg(super::scripts::millis(WAIT)).arg("COUNT").arg(AT_ONCE);
    question.arg("STREAMS").arg(link.frame.key("news")).arg(last);
    let answer: Value = question.query_async(connection).await?;
    Ok(entries(answer).unwrap_or_default())
}

/// Takes an answer of XREAD apart: streams, each with its entries, each with an id and names beside values.
fn entries(answer: Value) -> Option<Vec<Entry>> {
    type Raw = Vec<(String, Vec<(String, Vec<String>)>)>;
    if answer == Value::Nil {
        return None;
    }
    let streams = Raw::from_redis_value(answer).ok()?;
    let entries = streams.into_iter().flat_map(|(_, entries)| entries).map(|(id, fields)| {
        let field = |name: &str| {
            let pair = fields.chunks_exact(2).find(|pair| pair[0] == name);
            pair.map(|pair| pair[1].clone()).unwrap_or_default()
        };
        Entry { replica: field("replica"), news: field("news"), id }
    });
    Some(entries.collect())
}
