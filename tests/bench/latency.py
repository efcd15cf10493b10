#!/usr/bin/env python3
"""How long a client waits for the first token, and how much of that is ours.

    cargo build --release
    tests/bench/latency.py                      # about ten minutes
    tests/bench/latency.py --cli 2.1.197 --rounds 15 --json result.json

Each pinned CLI build is asked the same question in three ways. They are taken in rounds, every round each way once in
random order, so that whatever else the machine does falls on all of them alike:

  proxy    a new conversation through `auth-pool serve`, with a spare process ready; from the client's write to the
           first content chunk
  by hand  the same process driven directly: started ahead with the very arguments, environment and directory of the
           proxy's own spare (read from /proc), warmed up by the same line; from the write of the request's lines to the
           first text delta on stdout
  cold     `claude -p` started for the question: same lean flags and environment, prompt on stdin; from the start to
           the first text delta

The proxy and the by-hand process must cause the same request at the provider (compared in the warm-up rounds), else the
run fails. The provider is the stand-in (`auth-pool standin`); a relay in this program stands before it, so that one
clock sees all ends: when the request arrives at the provider, and when each chunk leaves it.

The CLI takes tens of milliseconds, give or take several, for what the proxy needs a fraction of one. So the proxy's part
is measured once more with clock_cli.py in the CLI's place, which answers at once and says when: how long from the
client's write until the question is on the CLI's stdin, and from the CLI's write until the chunk is with the client.

Everything runs in one thread without other work. Needs Linux, Python 3.11 and nothing else.
"""

import argparse
import gc
import json
import os
import random
import re
import selectors
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MODEL = "claude-sonnet-4-5"
MAX_TOKENS = 1000
PROMPT = "Say something that takes twenty words."
CHUNKS = 20
CHUNK_DELAY_MS = 10
TOKEN = "sk-ant-oat01-fake-bench"
CLOCK = "clock"
PROXY, BY_HAND, COLD = "proxy", "by hand", "cold"
now = time.perf_counter


class Loop:
    """Calls back whoever's descriptor can be read."""

    def __init__(self):
        self.selector = selectors.DefaultSelector()

    def watch(self, file, callback):
        self.selector.register(file, selectors.EVENT_READ, callback)

    def forget(self, file):
        self.selector.unregister(file)

    def step(self, timeout):
        for key, _ in self.selector.select(timeout):
            # A callback may have closed what another one of this round was about.
            if self.selector.get_map().get(key.fd) is key:
                key.data()

    def until(self, done, limit):
        end = now() + limit
        while not done():
            left = end - now()
            if left <= 0:
                raise TimeoutError(f"nothing within {limit} s")
            self.step(left)

    def idle(self, seconds):
        end = now() + seconds
        while (left := end - now()) > 0:
            self.step(left)


class Relay:
    """Stands before the provider and notes when a request comes in and when each text delta goes out."""

    def __init__(self, loop, provider):
        self.loop, self.provider = loop, provider
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = "http://127.0.0.1:%d" % self.listener.getsockname()[1]
        loop.watch(self.listener, self.accept)
        self.reset()

    def reset(self):
        self.requests, self.deltas = [], []

    def accept(self):
        client, _ = self.listener.accept()
        server = socket.create_connection(self.provider)
        for end in (client, server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.loop.watch(client, lambda: self.forward(client, server, self.note_request))
        self.loop.watch(server, lambda: self.forward(server, client, self.note_answer))

    def forward(self, source, target, note):
        try:
            data = source.recv(1 << 18)
            if data:
                note(data)
                target.sendall(data)
                return
        except OSError:
            pass
        for end in (source, target):
            self.loop.forget(end)
            end.close()

    def note_request(self, data):
        if b"POST /v1/messages" in data:
            self.requests.append(now())

    def note_answer(self, data):
        self.deltas += [now()] * data.count(b'"text_delta"')


class Http:
    """One kept connection; a request is one write, an answer a list of (time, bytes)."""

    def __init__(self, loop, host, port):
        self.loop = loop
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop.watch(self.socket, self.read)
        body = json.dumps({"model": MODEL, "stream": True, "max_tokens": MAX_TOKENS,
                           "messages": [{"role": "user", "content": PROMPT}]}).encode()
        self.request = (b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s:%d\r\nContent-Type: application/json\r\n"
                        b"Content-Length: %d\r\n\r\n" % (host.encode(), port, len(body))) + body
        self.pieces, self.ended = [], False

    def read(self):
        data = self.socket.recv(1 << 18)
        self.pieces.append((now(), data))
        self.ended = self.ended or not data or data.endswith(b"0\r\n\r\n")

    def ask(self):
        self.pieces, self.ended = [], False
        begun = now()
        self.socket.sendall(self.request)
        self.loop.until(lambda: self.ended, 60)
        return begun, self.texts()

    def texts(self):
        """The (time, text) of each content chunk."""
        head, _, rest = b"".join(data for _, data in self.pieces).partition(b"\r\n\r\n")
        if b" 200 " not in head[:16] or b"chunked" not in head.lower():
            raise RuntimeError("the proxy answered " + (head + b"\n" + rest).decode(errors="replace")[:2000])
        texts, start = [], len(head) + 4
        for match in re.finditer(rb"data: (\{.*?\})\n\n", rest, re.DOTALL):
            # A chunk border inside a frame would break this; frames are written whole, and the count is checked.
            choices = json.loads(match[1]).get("choices")
            if choices and choices[0]["delta"].get("content"):
                texts.append((arrival(self.pieces, start + match.end()), choices[0]["delta"]["content"]))
        return texts


class Cli:
    """One CLI process; what it prints is a list of (time, bytes)."""

    def __init__(self, loop, argv, env, cwd):
        self.loop, self.pieces, self.ended = loop, [], False
        self.begun = now()
        self.process = subprocess.Popen(argv, env=env, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.DEVNULL, bufsize=0, process_group=0)
        self.loop.watch(self.process.stdout, self.read)

    def read(self):
        data = os.read(self.process.stdout.fileno(), 1 << 18)
        self.pieces.append((now(), data))
        self.ended = self.ended or not data or b'"type":"result"' in data
        if not data:
            self.loop.forget(self.process.stdout)

    def write(self, lines):
        begun = now()
        os.write(self.process.stdin.fileno(), lines)
        return begun

    def warm_up(self):
        self.write(line(control("warm-up", {"subtype": "apply_flag_settings", "settings": {"env": {}}})))
        self.loop.until(lambda: self.pieces, 60)
        self.pieces = []

    def answer(self):
        self.loop.until(lambda: self.ended, 60)
        texts, end = [], 0
        for text in b"".join(data for _, data in self.pieces).splitlines(keepends=True):
            end += len(text)
            event = json.loads(text).get("event", {})
            if event.get("type") == "content_block_delta" and event["delta"].get("type") == "text_delta":
                texts.append((arrival(self.pieces, end), event["delta"]["text"]))
        return texts

    def kill(self):
        if self.process.stdout.fileno() in self.loop.selector.get_map():
            self.loop.forget(self.process.stdout)
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


def arrival(pieces, position):
    """When the byte before `position` came."""
    for at, data in pieces:
        position -= len(data)
        if position <= 0:
            return at
    raise RuntimeError("a frame ends beyond the data")


def line(value):
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"


def control(name, request):
    return {"type": "control_request", "request_id": name, "request": request}


def question_lines():
    """What the backend writes for the question: src/backend/claude_cli/input.rs."""
    return b"".join(map(line, (
        control("initialize", {"subtype": "initialize", "systemPrompt": [""]}),
        control("settings", {"subtype": "apply_flag_settings",
                             "settings": {"env": {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(MAX_TOKENS)}}}),
        control("thinking", {"subtype": "set_max_thinking_tokens", "max_thinking_tokens": 0}),
        {"type": "user", "message": {"role": "user", "content": [{"type": "text", "text": PROMPT},
                                                                 {"type": "text", "text": "\n"}]},
         "parent_tool_use_id": None, "session_id": ""},
    )))


class Server:
    """An `auth-pool` command that prints the address it serves."""

    def __init__(self, argv, env, log):
        self.process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=log, text=True)

    def await_address(self):
        for text in self.process.stdout:
            if match := re.search(r"http://([\d.]+):(\d+)", text):
                self.host, self.port = match[1], int(match[2])
                return
        raise RuntimeError(f"{self.process.args[1]} did not start")

    def get(self, path):
        with urllib.request.urlopen(f"http://{self.host}:{self.port}{path}", timeout=10) as answer:
            return json.load(answer)

    def post(self, path, value):
        request = urllib.request.Request(f"http://{self.host}:{self.port}{path}", json.dumps(value).encode(),
                                         {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            answer.read()

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


class Bench:
    """The stand-in, the proxy before it, and one process by hand beside it, all with the same CLI."""

    def __init__(self, arguments, command, settle):
        self.arguments, self.settle, self.loop, self.hand = arguments, settle, Loop(), None
        self.servers = []
        self.home = Path(tempfile.mkdtemp(prefix="auth-pool-bench-"))
        self.log = open(self.home / "log", "w")
        self.env = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
        self.env |= {"HOME": str(self.home), "BENCH_TOKEN": TOKEN, "LOG_LEVEL": arguments.log_level}
        self.command = command

    def start(self):
        self.standin = self.serve("standin")
        self.standin.post("/standin/script", {"action": {"type": "text", "count": CHUNKS,
                                                         "chunk_delay_ms": CHUNK_DELAY_MS}})
        self.relay = Relay(self.loop, (self.standin.host, self.standin.port))
        profile = self.home / ".claude-bench"
        profile.mkdir(mode=0o700)
        config = self.home / "auth-pool.json"
        config.write_text(json.dumps({
            "subscriptions": [{"id": "bench", "type": "claude-max", "configDir": str(profile), "weeklyBudget": 1e6,
                               "oauthTokenEnv": "BENCH_TOKEN", "env": {"ANTHROPIC_BASE_URL": self.relay.url}}],
            "claude": {"command": str(self.command), "sparesPerSubscription": 1, "selfTest": False},
            "runawayGuard": {"enabled": False},
        }))
        self.proxy = self.serve("serve", "--config", str(config))
        self.http = Http(self.loop, self.proxy.host, self.proxy.port)
        # From here on the model is in demand.
        self.http.ask()
        self.learn()

    def serve(self, *command):
        server = Server([self.arguments.binary, *command, "--listen", "127.0.0.1:0"], self.env, self.log)
        self.servers.append(server)
        server.await_address()
        return server

    def __enter__(self):
        try:
            self.start()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def __exit__(self, kind, *_):
        if self.hand:
            self.hand.kill()
        for server in reversed(self.servers):
            server.stop()
        self.log.close()
        if kind:
            print(f"the log is in {self.home}", file=sys.stderr)
        else:
            shutil.rmtree(self.home)

    def await_spare(self):
        end = now() + 60
        while self.proxy.get("/health")["backend"]["spares"] < 1:
            if now() > end:
                raise TimeoutError("no spare within 60 s")
            self.loop.idle(0.02)

    def learn(self):
        """How the proxy starts its processes, from its youngest one: the spare that the first question has caused."""
        self.await_spare()
        self.loop.idle(max(self.settle, 0.5))
        tasks = Path(f"/proc/{self.proxy.process.pid}/task").glob("*/children")
        processes = [Path("/proc") / pid for task in tasks for pid in task.read_text().split()]
        proc = max(processes, key=lambda proc: int((proc / "stat").read_text().rpartition(")")[2].split()[19]))
        self.hand_argv = (proc / "cmdline").read_bytes().decode().split("\0")[:-1]
        self.hand_env = dict(entry.split("=", 1) for entry in (proc / "environ").read_bytes().decode().split("\0")[:-1])
        self.cwd = os.readlink(proc / "cwd")
        if self.hand_argv[-1] != MODEL:
            raise RuntimeError(f"the spare is for {self.hand_argv[-1]}, not for {MODEL}")
        start = self.hand_argv.index("--input-format")
        self.cold_argv = self.hand_argv[:start] + self.hand_argv[start + 2:] + ["--system-prompt", ""]
        self.spare_pss_mb = int(re.search(r"^Pss:\s+(\d+)", (proc / "smaps_rollup").read_text(), re.M)[1]) / 1024

    def ask(self, way):
        """When the question was asked, and when each text of the answer came."""
        if not self.hand:
            self.hand = Cli(self.loop, self.hand_argv, self.hand_env, self.cwd)
            self.hand.warm_up()
        self.await_spare()
        self.loop.idle(self.settle)
        self.relay.reset()
        gc.disable()
        try:
            if way == PROXY:
                return self.http.ask()
            if way == BY_HAND:
                begun = self.hand.write(question_lines())
                texts = self.hand.answer()
                self.hand.kill()
                self.hand = None
                return begun, texts
            cli = Cli(self.loop, self.cold_argv, self.hand_env, self.cwd)
            cli.write(PROMPT.encode())
            cli.process.stdin.close()
            texts = cli.answer()
            cli.kill()
            return cli.begun, texts
        finally:
            gc.enable()

    def sample(self, way):
        """One question to the real CLI; in milliseconds."""
        begun, texts = self.ask(way)
        requests, deltas = self.relay.requests, self.relay.deltas
        if not len(texts) == len(deltas) == CHUNKS or len(requests) != 1:
            raise RuntimeError(f"{way}: {len(texts)} chunks of {len(deltas)} sent, {len(requests)} requests")
        lags = [(arrived - sent) * 1e3 for (arrived, _), sent in zip(texts[1:], deltas[1:])]
        return {"first": (texts[0][0] - begun) * 1e3, "in": (requests[0] - begun) * 1e3, "out": statistics.median(lags)}

    def clock_sample(self, way):
        """One question to clock_cli.py; in milliseconds."""
        begun, texts = self.ask(way)
        asked = float(texts[0][1].split()[0])
        lags = [(arrived - float(text.split()[-1])) * 1e3 for arrived, text in texts]
        # First without what the script itself takes, so that only the ways differ.
        return {"first": (asked - begun) * 1e3 + lags[0], "in": (asked - begun) * 1e3, "out_first": lags[0],
                "out": statistics.median(lags[1:])}

    def last_body(self):
        body = self.standin.get("/standin/requests")["requests"][-1]["body"]
        # Names the process's own session.
        body.pop("metadata", None)
        return body


def run(bench, ways, sample, rounds, warm_up, compare):
    """The samples of all rounds, by way."""
    samples = []
    for number in range(-warm_up, rounds):
        taken, bodies = {}, {}
        for way in random.sample(ways, len(ways)):
            taken[way] = sample(way)
            if compare and number < 0:
                bodies[way] = bench.last_body()
        if bodies and bodies[PROXY] != bodies[BY_HAND]:
            raise RuntimeError("the proxy and the by-hand process do not ask the same:\n"
                               + "\n".join(json.dumps(bodies[way]) for way in (PROXY, BY_HAND)))
        if number >= 0:
            samples.append(taken)
        if sys.stderr.isatty():
            print(f"\r{number + 1}/{rounds} ", end="", file=sys.stderr, flush=True)
    return samples


def median(samples, way, value):
    return statistics.median(sample[way][value] for sample in samples)


def spread(samples, figure, count=4000):
    """`figure` of the samples, and the 5th and 95th percentile of it over rounds drawn with replacement."""
    drawn = sorted(figure(random.choices(samples, k=len(samples))) for _ in range(count))
    return {"value": figure(samples), "p5": drawn[count * 5 // 100], "p95": drawn[count * 95 // 100]}


def evaluate(samples):
    ways = [way for way in (PROXY, BY_HAND, COLD) if way in samples[0]]
    ratio = lambda other: spread(samples, lambda some: median(some, PROXY, "first") / median(some, other, "first"))
    added = lambda value: spread(samples, lambda some: median(some, PROXY, value) - median(some, BY_HAND, value))
    first = {way: sorted(sample[way]["first"] for sample in samples) for way in ways}
    return {
        "rounds": len(samples),
        "first_token_ms": {way: {"p50": statistics.median(values), "p5": values[len(values) * 5 // 100],
                                 "p95": values[len(values) * 95 // 100]} for way, values in first.items()},
        **{f"proxy_over_{way.replace(' ', '_')}": ratio(way) for way in ways if way != PROXY},
        **{f"added_{value}_ms": added(value) for value in samples[0][PROXY]},
        "samples": samples,
    }


def show(title, result, labels, goals):
    print(f"\n{title}, {result['rounds']} rounds\n")
    print(f"  {'first token, ms':34}{'p50':>9}{'p5':>9}{'p95':>9}")
    for way, value in result["first_token_ms"].items():
        print(f"  {way:34}{value['p50']:9.2f}{value['p5']:9.2f}{value['p95']:9.2f}")
    print(f"\n  {'of the p50s, with its spread':34}{'':9}{'5 %':>9}{'95 %':>9}")
    for name, label in labels.items():
        if value := result.get(name):
            form = "9.3f" if "over" in name else "+9.3f"
            goal = goals.get(name, "")
            print(f"  {label:34}{value['value']:{form}}{value['p5']:{form}}{value['p95']:{form}}   {goal}")
    if pss := result.get("spare_pss_mb"):
        print(f"\n  an idle spare takes {pss:.0f} MB (PSS)")
    sys.stdout.flush()


def versions():
    return sorted(path.name for path in (ROOT / "tests/cli").iterdir() if path.is_dir())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cli", action="append", choices=[*versions(), CLOCK],
                        help=f"a pinned CLI build, or `{CLOCK}` for clock_cli.py; may be repeated [default: all]")
    parser.add_argument("--rounds", type=int, default=30, help="with a real CLI [default: 30]")
    parser.add_argument("--clock-rounds", type=int, default=200, help="with clock_cli.py [default: 200]")
    parser.add_argument("--warm-up", type=int, default=3, help="rounds before those that count [default: 3]")
    parser.add_argument("--settle", type=float, default=1.0, help="seconds of quiet before each sample [default: 1]")
    parser.add_argument("--binary", default=ROOT / "target/release/auth-pool", help="the program to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all samples and figures go")
    parser.add_argument("--log-level", default="info", help="of the proxy [default: info]")
    arguments = parser.parse_args()

    results = {}
    for name in arguments.cli or [*versions(), CLOCK]:
        if name == CLOCK:
            command, settle, rounds = ROOT / "tests/bench/clock_cli.py", 0.1, arguments.clock_rounds
            title, ways = "An instant CLI", [PROXY, BY_HAND]
            labels = {"in": "client's write to CLI's stdin", "out_first": "CLI's write to client, first chunk",
                      "out": "CLI's write to client, later ones"}
        else:
            command, settle, rounds = ROOT / f"tests/cli/{name}/node_modules/.bin/claude", arguments.settle, arguments.rounds
            title, ways = f"Claude CLI {name}", [PROXY, BY_HAND, COLD]
            labels = {"in": "request at the provider", "out": "each later chunk"}
        if not command.exists():
            sys.exit(f"{command.relative_to(ROOT)} is missing: scripts/test e2e installs it")
        with Bench(arguments, command, settle) as bench:
            sample = bench.clock_sample if name == CLOCK else bench.sample
            samples = run(bench, ways, sample, rounds, arguments.warm_up, compare=name != CLOCK)
            results[name] = evaluate(samples) | {"spare_pss_mb": None if name == CLOCK else bench.spare_pss_mb}
        show(title, results[name], {
            "proxy_over_cold": "proxy / cold",
            "added_first_ms": "proxy - by hand, first token",
            **{f"added_{value}_ms": f"  {label}" for value, label in labels.items()},
        }, {"proxy_over_cold": "goal: at most 0.25", "added_first_ms": "goal: at most 1"})
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
