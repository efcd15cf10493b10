//! One CLI process: started in a process group of its own, spoken to in lines, and never left behind.
//!
//! Whoever owns a [`Process`] owns its life: dropping it kills the whole group at once and the process is waited for
//! in the background, so neither an orphan nor a zombie can remain.

use std::collections::VecDeque;
use std::io;
use std::pin::pin;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tracing::{debug, warn};

use super::launch::Launch;
use super::places::Place;
use super::traces::Traces;
use super::workspace;
use crate::runtime::tasks::Tasks;

/// What the buffer for a line may take once the line is read: a process lives long, and most of its lines are short.
const LINE_BYTES: usize = 64 * 1024;

/// How much of what a process writes to stderr is kept for diagnosis.
const STDERR_TAIL_BYTES: usize = 4 * 1024;

/// A running process with its two pipes.
#[derive(Debug)]
pub(super) struct Process {
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    line: Vec<u8>,
    /// Whether `line` has been handed out. A read that was given up goes on where it stopped.
    line_is_read: bool,
    max_line_bytes: usize,
    group: Arc<Group>,
}

/// Why no line could be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReadError {
    /// The process closed its output.
    #[error("the CLI ended before its answer was complete")]
    Ended,
    /// A line is longer than allowed.
    #[error("the CLI wrote a line of more than {0} bytes")]
    LineTooLong(usize),
    /// The pipe broke.
    #[error("reading from the CLI failed: {0}")]
    Io(#[from] io::Error),
}

impl Process {
    /// Starts a process. It has `place` until it is gone.
    pub(super) fn start(launch: &Launch, place: Place, max_line_bytes: usize, tasks: &Tasks) -> io::Result<Self> {
        let traces = Traces::prepare(launch.env())?;
        let mut child = match spawn(launch, &traces) {
            Ok(child) => child,
            Err(error) => {
                traces.never_left();
                return Err(error);
            }
        };
        let (Some(stdin), Some(stdout), Some(stderr)) = (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(io::Error::other("a pipe of the new process is missing"));
        };
        let group = Arc::new(Group {
            leader: child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw),
            ended: AtomicBool::new(false),
            stderr_tail: Mutex::default(),
        });
        if let Some(leader) = group.leader {
            place.taken_by(leader.as_raw_nonzero().get());
        }
        tasks.spawn("claude-cli-watch", watch(child, stderr, Arc::clone(&group), traces, place));
        Ok(Self {
            stdin,
            stdout: BufReader::with_capacity(64 * 1024, stdout),
            line: Vec::with_capacity(4 * 1024),
            line_is_read: false,
            max_line_bytes,
            group,
        })
    }

    /// The process id, which is also the id of its group.
    pub(super) fn id(&self) -> Option<i32> {
        self.group.leader.map(|leader| leader.as_raw_nonzero().get())
    }

    /// Whether the process is known to have ended.
    pub(super) fn has_ended(&self) -> bool {
        self.group.ended.load(Ordering::Acquire)
    }

    /// Writes whole lines at once.
    pub(super) async fn write(&mut self, lines: &[u8]) -> io::Result<()> {
        self.stdin.write_all(lines).await?;
        self.stdin.flush().await
    }

    /// The next line, without its end.
    pub(super) async fn read_line(&mut self) -> Result<&[u8], ReadError> {
        if std::mem::take(&mut self.line_is_read) {
            self.line.clear();
            self.line.shrink_to(LINE_BYTES);
        }
        loop {
            let available = self.stdout.fill_buf().await?;
            if available.is_empty() {
                return Err(ReadError::Ended);
            }
            let newline = available.iter().position(|byte| *byte == b'\n');
            let taken = newline.unwrap_or(available.len());
            if self.line.len() + taken > self.max_line_bytes {
                return Err(ReadError::LineTooLong(self.max_line_bytes));
            }
            self.line.extend_from_slice(&available[..taken]);
            self.stdout.consume(taken + usize::from(newline.is_some()));
            if newline.is_some() {
                self.line_is_read = true;
                return Ok(&self.line);
            }
        }
    }

    /// The end of what the process wrote to stderr so far.
    pub(super) fn stderr_tail(&self) -> String {
        self.group.stderr_tail()
    }
}

fn spawn(launch: &Launch, traces: &Traces) -> io::Result<Child> {
    workspace::ensure(launch.cwd())?;
    #[expect(clippy::disallowed_methods, reason = "the one home of starting processes")]
    Command::new(launch.command())
        .args(launch.args())
        .env_clear()
        .envs(launch.env().iter().map(|(name, value)| (name, value)))
        .envs(traces.env())
        .current_dir(launch.cwd())
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

impl Drop for Process {
    fn drop(&mut self) {
        self.group.kill();
    }
}

/// The process group, shared with the task that waits for its leader.
#[derive(Debug)]
struct Group {
    leader: Option<Pid>,
    ended: AtomicBool,
    stderr_tail: Mutex<VecDeque<u8>>,
}

impl Group {
    /// Kills every process of the group; none of them gets a say.
    fn kill(&self) {
        let Some(leader) = self.leader else { return };
        if self.ended.load(Ordering::Acquire) {
            return;
        }
        match kill_process_group(leader, Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => {}
            Err(error) => warn!(group = leader.as_raw_nonzero().get(), %error, "a process group could not be killed"),
        }
    }

    fn stderr_tail(&self) -> String {
        let tail = self.stderr_tail.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = tail.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }
}

/// Keeps stderr from filling up and waits for the process, so that no zombie remains.
async fn watch(mut child: Child, mut stderr: ChildStderr, group: Arc<Group>, traces: Traces, place: Place) {
    let drain = async {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = stderr.read(&mut chunk).await {
            let mut tail = group.stderr_tail.lock().unwrap_or_else(PoisonError::into_inner);
            tail.extend(&chunk[..count]);
            let surplus = tail.len().saturating_sub(STDERR_TAIL_BYTES);
            tail.drain(..surplus);
        }
    };
    // A grandchild may hold stderr open after the process itself is gone: the wait decides, not the pipe.
    let status = {
        let mut drain = pin!(drain);
        let mut drained = false;
        loop {
            tokio::select! {
                status = child.wait() => break status,
                () = &mut drain, if !drained => drained = true,
            }
        }
    };
    // Whatever the process may have started must not outlive it.
    group.kill();
    group.ended.store(true, Ordering::Release);
    drop(place);
    if let Some(leader) = group.leader {
        traces.remove(leader.as_raw_nonzero().get()).await;
    }
    debug!(pid = ?group.leader, ?status, "a CLI process ended");
}
