//! Server-sent events as they arrive, with a bound on what one of them may take.

use bytes::Bytes;
use reqwest::Response;

use super::{Deadlines, broken};
use crate::backend::{Failure, FailureKind};

/// The longest line or event that is accepted, in bytes. Whole tool calls can come as one event; they stay far below.
const LONGEST: usize = 8 * 1024 * 1024;

/// One event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::backend) struct SseEvent {
    /// Its name; empty where the provider gives none.
    pub(in crate::backend) name: String,
    /// Its data lines, joined by line breaks.
    pub(in crate::backend) data: String,
}

/// The events of a response.
#[derive(Debug)]
pub(in crate::backend) struct Events {
    response: Response,
    parser: Parser,
}

impl Events {
    pub(in crate::backend) fn of(response: Response) -> Self {
        Self { response, parser: Parser::default() }
    }

    /// The next event; `None` at the end of the response. What stands after the last empty line is no event.
    pub(in crate::backend) async fn next(&mut self, deadlines: &Deadlines) -> Result<Option<SseEvent>, Failure> {
        loop {
            if let Some(event) = self.parser.next()? {
                return Ok(Some(event));
            }
            match deadlines.wait(self.response.chunk()).await? {
                Ok(Some(chunk)) => self.parser.push(chunk),
                Ok(None) => return Ok(None),
                Err(error) => return Err(broken(error)),
            }
        }
    }
}

/// Bytes to events. Lines end with LF, CR or both; a line break split over two chunks is one.
#[derive(Debug, Default)]
struct Parser {
    /// What has come and is not parsed.
    chunk: Bytes,
    /// The beginning of a line whose end has not come.
    line: Vec<u8>,
    /// The last line ended with CR: an LF that follows belongs to it.
    after_cr: bool,
    begun: bool,
    event: SseEvent,
    has_data: bool,
}

impl Parser {
    /// Only after [`Self::next`] has found nothing more.
    fn push(&mut self, chunk: Bytes) {
        self.chunk = chunk;
    }

    fn next(&mut self) -> Result<Option<SseEvent>, Failure> {
        while !self.chunk.is_empty() {
            if std::mem::take(&mut self.after_cr) && self.chunk.first() == Some(&b'\n') {
                let _ = self.chunk.split_to(1);
                continue;
            }
            let Some(end) = self.chunk.iter().position(|byte| matches!(byte, b'\n' | b'\r')) else {
                let rest = std::mem::take(&mut self.chunk);
                if self.line.len() + rest.len() > LONGEST {
                    return Err(too_long());
                }
                self.line.extend_from_slice(&rest);
                return Ok(None);
            };
            let head = self.chunk.split_to(end + 1);
            self.after_cr = head.last() == Some(&b'\r');
            let head = head.get(..end).unwrap_or_default();
            let event = if self.line.is_empty() {
                self.line_ends(head)?
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(head);
                self.line_ends(&line)?
            };
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    fn line_ends(&mut self, line: &[u8]) -> Result<Option<SseEvent>, Failure> {
        let line = if std::mem::replace(&mut self.begun, true) {
            line
        } else {
            line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line)
        };
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            return Ok(std::mem::take(&mut self.has_data).then_some(event));
        }
        if line.len() + self.event.data.len() > LONGEST {
            return Err(too_long());
        }
        let line = String::from_utf8_lossy(line);
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "event" => value.clone_into(&mut self.event.name),
            "data" => {
                if std::mem::replace(&mut self.has_data, true) {
                    self.event.data.push('\n');
                }
                self.event.data.push_str(value);
            }
            // Comments (which begin with a colon), ids and retry times.
            _ => {}
        }
        Ok(None)
    }
}

fn too_long() -> Failure {
    Failure::new(FailureKind::Protocol, format!("the provider sent an event of more than {LONGEST} bytes"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events(chunks: &[&[u8]]) -> Vec<(String, String)> {
        let mut parser = Parser::default();
        let mut events = Vec::new();
        for chunk in chunks {
            parser.push(Bytes::copy_from_slice(chunk));
            while let Some(SseEvent { name, data }) = parser.next().expect("short events") {
                events.push((name, data));
            }
        }
        events
    }

    fn owned(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected.iter().map(|(name, data)| ((*name).to_owned(), (*data).to_owned())).collect()
    }

    #[test]
    fn an_event_is_the_same_wherever_the_bytes_are_cut_and_however_lines_end() {
        let expected = owned(&[("a", "1\n2"), ("", "x: é"), ("", "")]);
        for line_break in ["\n", "\r", "\r\n"] {
            let text =
                "\u{feff}event: a\ndata: 1\ndata:2\n\n: comment\nid: 7\n\ndata: x: é\n\ndata\n\ndata: unfinished"
                    .replace('\n', line_break);
            let bytes = text.as_bytes();
            assert_eq!(events(&[bytes]), expected);
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            assert_eq!(events(&single), expected, "{line_break:?}");
            for middle in 0..bytes.len() {
                assert_eq!(events(&[&bytes[..middle], &bytes[middle..]]), expected, "{line_break:?} at {middle}");
            }
        }
    }

    #[test]
    fn what_never_ends_is_refused_before_it_fills_the_memory() {
        let piece = vec![b'x'; 1024 * 1024];
        let mut line = Parser::default();
        line.push(Bytes::from_static(b"data: "));
        assert_eq!(line.next(), Ok(None));
        let refused = (0..20).find_map(|_| {
            line.push(Bytes::copy_from_slice(&piece));
            line.next().err()
        });
        assert_eq!(refused.map(|failure| failure.kind), Some(FailureKind::Protocol));
        assert!(line.line.len() <= LONGEST);

        let mut event = Parser::default();
        let refused = (0..20).find_map(|_| {
            event.push(Bytes::from([b"data: ", &piece[..], b"\n"].concat()));
            event.next().err()
        });
        assert!(refused.is_some() && event.event.data.len() <= LONGEST);
    }
}
