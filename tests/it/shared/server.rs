//! A Redis server of the test's own: private port, private folder, a password, and gone when the test ends.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use auth_pool::shared::Address;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

pub(super) const PASSWORD: &str = "not-to-be-seen";

pub(super) struct RedisServer {
    process: Child,
    port: u16,
    folder: TempDir,
}

impl RedisServer {
    pub(super) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        // Between the choice of a port and its use somebody else may take it.
        for _ in 0..10 {
            let port = free_port();
            let mut process = spawn(port, &folder);
            if answers(port, &mut process) {
                return Self { process, port, folder };
            }
            process.kill().ok();
            process.wait().ok();
        }
        panic!("redis-server does not start; its folder is {}", folder.path().display())
    }

    pub(super) const fn port(&self) -> u16 {
        self.port
    }

    pub(super) fn address(&self) -> Address {
        Address::parse(&format!("redis://:{PASSWORD}@127.0.0.1:{}", self.port)).unwrap()
    }

    /// Neither answers nor hangs up, as when the network is cut.
    pub(super) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    pub(super) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    /// Ends it, and starts it again at the same place with nothing in it.
    pub(super) fn restart_empty(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        while Instant::now() < deadline {
            self.process = spawn(self.port, &self.folder);
            if answers(self.port, &mut self.process) {
                return;
            }
            self.process.kill().ok();
            self.process.wait().ok();
        }
        panic!("redis-server does not start again");
    }

    /// The names of all keys.
    pub(super) fn keys(&self) -> Vec<String> {
        let reply = command(self.port, "KEYS *").expect("an answer");
        reply.lines().filter(|line| !line.starts_with(['*', '$'])).map(str::to_owned).collect()
    }

    /// How long a key lives on without use, in milliseconds.
    pub(super) fn life(&self, key: &str) -> i64 {
        let reply = command(self.port, &format!("PTTL {key}")).expect("an answer");
        reply.trim_start_matches(':').trim().parse().expect("a number")
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.process.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

/// One that nobody has at this moment.
pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[expect(clippy::disallowed_methods, reason = "a server that belongs to one test")]
fn spawn(port: u16, folder: &TempDir) -> Child {
    Command::new("redis-server")
        .args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--requirepass", PASSWORD])
        .args(["--save", "", "--appendonly", "no", "--daemonize", "no"])
        .arg("--dir")
        .arg(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("redis-server is installed (Debian: apt-get install redis-server)")
}

fn answers(port: u16, process: &mut Child) -> bool {
    let deadline = Instant::now() + Duration::from_secs(20);
    while Instant::now() < deadline && process.try_wait().unwrap().is_none() {
        if command(port, "PING").is_some_and(|reply| reply.starts_with("+PONG")) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// Asks by hand; the whole answer.
fn command(port: u16, command: &str) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(format!("AUTH {PASSWORD}\r\n{command}\r\nQUIT\r\n").as_bytes()).ok()?;
    let lines: Vec<String> = BufReader::new(stream).lines().collect::<Result<_, _>>().ok()?;
    let (first, rest) = lines.split_first()?;
    let (_, body) = rest.split_last()?;
    (first == "+OK").then(|| body.join("\n"))
}
