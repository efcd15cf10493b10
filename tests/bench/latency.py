#!/usr/bin/env python3
"""How long a client waits for the first token, and how much of that is ours.

    cargo build --release
    tests/bench/latency.py                      # both pinned CLI builds, about five minutes each
    tests/bench/latency.py --cli 2.1.197 --rounds 15 --json result.json

One run measures three ways to ask the same question of the same CLI build, in rounds; every round takes each way once,
in random order, so that whatever else the machine does falls on all three alike:

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
KINDS = ("proxy", "by hand", "cold")
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
        for text in self.process.stdout:
            if match := re.search(r"http://([\d.]+):(\d+)", text):
                self.host, self.port = match[1], int(match[2])
                return
        raise RuntimeError(f"{argv[1]} did not start; see {log.name}")

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
    def __init__(self, arguments, command, home, log):
        self.settle, self.home = arguments.settle, home
        self.loop = Loop()
        env = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
        env |= {"HOME": str(home), "BENCH_TOKEN": TOKEN, "LOG_LEVEL": arguments.log_level}
        self.servers = []
        self.standin = self.serve([arguments.binary, "standin", "--listen", "127.0.0.1:0"], env, log)
        self.standin.post("/standin/script", {"action": {"type": "text", "count": CHUNKS,
                                                         "chunk_delay_ms": CHUNK_DELAY_MS}})
        self.relay = Relay(self.loop, (self.standin.host, self.standin.port))
        profile = home / ".claude-bench"
        profile.mkdir(mode=0o700)
        config = home / "auth-pool.json"
        config.write_text(json.dumps({
            "subscriptions": [{"id": "bench", "type": "claude-max", "configDir": str(profile), "weeklyBudget": 1e6,
                               "oauthTokenEnv": "BENCH_TOKEN", "env": {"ANTHROPIC_BASE_URL": self.relay.url}}],
            "claude": {"command": str(command), "sparesPerSubscription": 1},
        }))
        self.proxy = self.serve([arguments.binary, "serve", "--config", str(config), "--listen", "127.0.0.1:0"],
                                env, log)
        self.http = Http(self.loop, self.proxy.host, self.proxy.port)
        self.hand = None

    def serve(self, argv, env, log):
        self.servers.append(Server(argv, env, log))
        return self.servers[-1]

    def close(self):
        if self.hand:
            self.hand.kill()
        for server in reversed(self.servers):
            server.stop()

    def await_spare(self):
        end = now() + 60
        while self.proxy.get("/health")["backend"]["spares"] < 1:
            if now() > end:
                raise TimeoutError("no spare within 60 s")
            self.loop.idle(0.05)

    def spare_pid(self):
        """The proxy's one child between requests."""
        tasks = Path(f"/proc/{self.proxy.process.pid}/task").glob("*/children")
        children = [int(pid) for task in tasks for pid in task.read_text().split()]
        if len(children) != 1:
            raise RuntimeError(f"one spare expected, found {len(children)}")
        return children[0]

    def learn(self):
        """How the proxy starts its processes."""
        self.await_spare()
        proc = Path(f"/proc/{self.spare_pid()}")
        self.argv = (proc / "cmdline").read_bytes().decode().split("\0")[:-1]
        self.env = dict(entry.split("=", 1) for entry in (proc / "environ").read_bytes().decode().split("\0")[:-1])
        self.cwd = os.readlink(proc / "cwd")
        if self.argv[-1] != MODEL:
            raise RuntimeError(f"the spare is for {self.argv[-1]}, not for {MODEL}")
        start = self.argv.index("--input-format")
        self.cold_argv = self.argv[:start] + self.argv[start + 2:] + ["--system-prompt", ""]
        self.spare_pss_mb = int(re.search(r"^Pss:\s+(\d+)", (proc / "smaps_rollup").read_text(), re.M)[1]) / 1024

    def prepare(self):
        """Both warm ways stand ready, and the machine is quiet."""
        if not self.hand:
            self.hand = Cli(self.loop, self.argv, self.env, self.cwd)
            self.hand.warm_up()
        self.await_spare()
        self.loop.idle(self.settle)

    def sample(self, kind):
        self.prepare()
        self.relay.reset()
        gc.disable()
        if kind == "proxy":
            begun, texts = self.http.ask()
        elif kind == "by hand":
            begun = self.hand.write(question_lines())
            texts = self.hand.answer()
            self.hand.kill()
            self.hand = None
        else:
            cli = Cli(self.loop, self.cold_argv, self.env, self.cwd)
            cli.write(PROMPT.encode())
            cli.process.stdin.close()
            begun, texts = cli.begun, cli.answer()
            cli.kill()
        gc.enable()
        if len(texts) != CHUNKS or len(self.relay.deltas) != CHUNKS or len(self.relay.requests) != 1:
            raise RuntimeError(f"{kind}: {len(texts)} chunks of {len(self.relay.deltas)} sent, "
                               f"{len(self.relay.requests)} requests")
        arrivals = [at for at, _ in texts]
        return {
            "first": (arrivals[0] - begun) * 1e3,
            "request": (self.relay.requests[0] - begun) * 1e3,
            "lags": [(arrived - sent) * 1e3 for arrived, sent in zip(arrivals[1:], self.relay.deltas[1:])],
        }

    def run(self, rounds, warm_up, progress):
        self.http.ask()
        # From now on the model is in demand.
        self.learn()
        bodies, samples = {}, []
        for number in range(-warm_up, rounds):
            order = random.sample(KINDS, len(KINDS))
            taken = {}
            for kind in order:
                taken[kind] = self.sample(kind)
                if number < 0:
                    bodies[kind] = self.last_body()
            if number < 0 and bodies["proxy"] != bodies["by hand"]:
                raise RuntimeError("the proxy and the by-hand process do not ask the same:\n"
                                   + "\n".join(json.dumps(bodies[kind]) for kind in KINDS[:2]))
            if number >= 0:
                samples.append(taken)
            progress(number + 1, rounds)
        return samples

    def last_body(self):
        body = self.standin.get("/standin/requests")[-1]["body"]
        # Names the process's own session.
        body.pop("metadata", None)
        return body


def bootstrap(samples, figure, count=4000):
    """The 5th and the 95th percentile of `figure` over rounds drawn with replacement."""
    drawn = sorted(figure(random.choices(samples, k=len(samples))) for _ in range(count))
    return drawn[count * 5 // 100], drawn[count * 95 // 100]


def p50(samples, kind, value):
    return statistics.median(sample[kind][value] for sample in samples)


def evaluate(samples):
    def figure(compute):
        low, high = bootstrap(samples, compute)
        return {"p50": compute(samples), "p5": low, "p95": high}

    def quantiles(kind, value):
        values = sorted(sample[kind][value] for sample in samples)
        return {"p50": statistics.median(values), "min": values[0], "max": values[-1]}

    lag = {kind: sorted(lag for sample in samples for lag in sample[kind]["lags"]) for kind in KINDS[:2]}
    for sample in samples:
        for kind in KINDS:
            sample[kind]["lag"] = statistics.median(sample[kind]["lags"])
    difference = lambda value: figure(lambda some: p50(some, "proxy", value) - p50(some, "by hand", value))
    return {
        "first_token_ms": {kind: quantiles(kind, "first") for kind in KINDS},
        "request_upstream_ms": {kind: quantiles(kind, "request") for kind in KINDS},
        "chunk_lag_ms": {kind: {"p50": statistics.median(values), "p95": values[len(values) * 95 // 100]}
                         for kind, values in lag.items()},
        "proxy_over_cold": figure(lambda some: p50(some, "proxy", "first") / p50(some, "cold", "first")),
        "proxy_over_by_hand": figure(lambda some: p50(some, "proxy", "first") / p50(some, "by hand", "first")),
        "added_first_token_ms": difference("first"),
        "added_request_upstream_ms": difference("request"),
        "added_chunk_lag_ms": difference("lag"),
        "rounds": len(samples),
    }


def show(version, result):
    def spread(name, form):
        value = result[name]
        return f"{value['p50']:{form}}   [{value['p5']:{form}} .. {value['p95']:{form}}]"

    print(f"\nClaude CLI {version}, {result['rounds']} rounds; p50 [5 % .. 95 % of the bootstrap]; ms\n")
    print(f"  {'':26}{'first token':>12}{'(min .. max)':>18}{'request upstream':>19}")
    for kind in KINDS:
        first, request = result["first_token_ms"][kind], result["request_upstream_ms"][kind]
        limits = f"({first['min']:.1f} .. {first['max']:.1f})"
        print(f"  {kind:26}{first['p50']:12.2f}{limits:>18}{request['p50']:19.2f}")
    print(f"\n  proxy / cold              {spread('proxy_over_cold', '.3f')}   goal <= 0.25")
    print(f"  proxy / by hand           {spread('proxy_over_by_hand', '.3f')}")
    print(f"  proxy - by hand           {spread('added_first_token_ms', '+.2f')}   goal <= 1")
    print(f"    until upstream          {spread('added_request_upstream_ms', '+.2f')}")
    print(f"    each later chunk        {spread('added_chunk_lag_ms', '+.3f')}")
    print(f"  idle spare                {result['spare_pss_mb']:.0f} MB PSS", flush=True)


def versions():
    return sorted(path.name for path in (ROOT / "tests/cli").iterdir() if path.is_dir())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cli", action="append", choices=versions(), help="a pinned CLI build [default: all]")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--warm-up", type=int, default=3, help="rounds before those that count")
    parser.add_argument("--settle", type=float, default=1.0, help="seconds of quiet before each sample")
    parser.add_argument("--binary", default=ROOT / "target/release/auth-pool", help="the program to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the samples and figures go")
    parser.add_argument("--log-level", default="info", help="of the proxy")
    arguments = parser.parse_args()

    def progress(done, rounds):
        if sys.stderr.isatty():
            print(f"\r{done}/{rounds}", end="", file=sys.stderr, flush=True)

    results = {}
    for version in arguments.cli or versions():
        command = ROOT / "tests/cli" / version / "node_modules/.bin/claude"
        if not command.exists():
            sys.exit(f"{command.relative_to(ROOT)} is missing: run `npm ci` in tests/cli/{version}")
        home = Path(tempfile.mkdtemp(prefix="auth-pool-bench-"))
        with open(home / "log", "w") as log:
            bench = None
            try:
                bench = Bench(arguments, command, home, log)
                samples = bench.run(arguments.rounds, arguments.warm_up, progress)
            except Exception as error:
                sys.exit(f"{type(error).__name__}: {error}\n(the log is in {home})")
            finally:
                if bench:
                    bench.close()
        shutil.rmtree(home)
        results[version] = evaluate(samples) | {"spare_pss_mb": bench.spare_pss_mb, "samples": samples}
        show(version, results[version])
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
