#!/usr/bin/env python3
"""What a conversation costs after its first question: time to the first token, processor, agent loops with tools.

    cargo build --release
    tests/bench/live.py                                   # about ten minutes with both pinned CLI builds
    tests/bench/live.py --cli 2.1.329 --conversations 3 --turns 10 --loops 2
    tests/bench/live.py --peer                            # beside the PyPI package claude-code-openai as well

Follow-up turns. In each round every way has a conversation of its own, and takes its next turn in random order:

  proxy    the next request through `auth-pool serve`, with the whole history, as OpenAI's clients send it
  by hand  the next user line on the stdin of one kept CLI process, started as the proxy starts its own
  peer     the same requests through claude-code-openai (peer-requirements.txt, into .local/peer), with the same CLI

The first turn is not measured. From the client's write to the first text; each later chunk against the moment at which it
left the provider; processor time of the server and of its CLI processes, started for the conversation or ended with it,
between the first turn's end and the last one's.

Agent loops. Twenty requests, each answered with two calls of tools but for the last; the client sends the results with
the next request:

  proxy    one client
  apart    the same loop through the same proxy, but no two requests by the same client key: a process for each request
  peer     as above

Wall and processor time of the whole loop without its first request, and how long a result takes from the client's write
until the next request is at the provider.

The provider is the stand-in, with a relay before it whose clock sees all ends (latency.py). Everything runs in one thread
without other work. Needs Linux and Python 3.11; the peer is installed with pip.
"""

import argparse
import gc
import hashlib
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from latency import (  # noqa: E402
    BY_HAND, CHUNK_DELAY_MS, CHUNKS, MAX_TOKENS, MODEL, PROXY, ROOT, TOKEN, Cli, Http, Loop, Relay, Server, control, line,
    now, spread, versions,
)

PEER, APART = "peer", "apart"
STEPS = 20
# Processor seconds: a process that spent less while a question was answered did not answer it, but belongs to another
# conversation or to none.
IDLE = 0.02
TICKS = os.sysconf("SC_CLK_TCK")
TOOLS = [{"type": "function", "function": {"name": name, "description": f"To {name}", "parameters": {
    "type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]}}} for name in ("look", "search")]


class Talk(Http):
    """A client: its history, and requests on a kept connection."""

    def __init__(self, loop, host, port, tools=None):
        super().__init__(loop, host, port)
        self.address, self.history = f"{host}:{port}", []
        self.options = {"model": MODEL, "stream": True, "max_tokens": MAX_TOKENS} | ({"tools": tools} if tools else {})

    def send(self, key):
        body = json.dumps(self.options | {"messages": self.history}).encode()
        head = (f"POST /v1/chat/completions HTTP/1.1\r\nHost: {self.address}\r\nAuthorization: Bearer {key}\r\n"
                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n")
        self.request = head.encode() + body
        return self.ask()

    def turn(self, text, key):
        """When the question was asked, and when each text of the answer came."""
        self.history.append({"role": "user", "content": text})
        begun, texts = self.send(key)
        self.history.append({"role": "assistant", "content": "".join(text for _, text in texts)})
        return begun, texts

    def calls(self):
        """How many calls the last answer made; they and their results go into the history."""
        calls = {}
        for frame in b"".join(data for _, data in self.pieces).split(b"data: ")[1:]:
            frame = frame.split(b"\n\n")[0]
            for choice in json.loads(frame).get("choices", []) if frame.startswith(b"{") else []:
                for piece in choice["delta"].get("tool_calls") or []:
                    call = calls.setdefault(piece["index"], {"id": "", "type": "function",
                                                             "function": {"name": "", "arguments": ""}})
                    call["id"] += piece.get("id") or ""
                    for name in ("name", "arguments"):
                        call["function"][name] += piece["function"].get(name) or ""
        if not calls:
            return 0
        self.history.append({"role": "assistant", "content": None, "tool_calls": list(calls.values())})
        for call in calls.values():
            self.history.append({"role": "tool", "tool_call_id": call["id"], "content": f"found {call['function']['arguments']}"})
        return len(calls)

    def close(self):
        self.loop.forget(self.socket)
        self.socket.close()


class Hand:
    """One kept CLI process, as the proxy would start and address it."""

    def __init__(self, bench):
        self.cli = Cli(bench.loop, bench.hand_argv, bench.hand_env, bench.cwd)
        self.cli.warm_up()
        self.first = b"".join(map(line, (
            control("initialize", {"subtype": "initialize", "systemPrompt": [""]}),
            control("settings", {"subtype": "apply_flag_settings",
                                 "settings": {"env": {"CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(MAX_TOKENS)}}}),
            control("thinking", {"subtype": "set_max_thinking_tokens", "max_thinking_tokens": 0}))))

    def turn(self, text, _):
        content = [{"type": "text", "text": text}, {"type": "text", "text": "\n"}]
        question = line({"type": "user", "message": {"role": "user", "content": content}, "parent_tool_use_id": None,
                         "session_id": ""})
        self.cli.pieces, self.cli.ended = [], False
        begun = self.cli.write(self.first + question)
        self.first = b""
        return begun, self.cli.answer()

    def close(self):
        self.cli.kill()


class Peer:
    """claude-code-openai, installed beside us."""

    def __init__(self, bench, command):
        folder = ROOT / ".local/peer"
        wanted, stamp = Path(__file__).parent / "peer-requirements.txt", folder / "installed"
        if not stamp.exists() or stamp.read_text() != wanted.read_text():
            subprocess.check_call([sys.executable, "-m", "venv", "--clear", folder])
            subprocess.check_call([folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                                   "-r", wanted])
            stamp.write_text(wanted.read_text())
        claude = {"ANTHROPIC_BASE_URL": bench.relay.url, "CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-fake-peer",
                  "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1", "MAX_THINKING_TOKENS": "0"}
        home = bench.home / "peer"
        home.mkdir()
        self.host, self.port = "127.0.0.1", free_port()
        env = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
        env |= {"HOME": str(home), "CLAUDEGATE_CLI_PATH": str(command), "CLAUDEGATE_CLAUDE_ENV": json.dumps(claude)}
        self.process = subprocess.Popen([folder / "bin/claudegate", "serve", "--host", self.host, "--port", str(self.port)],
                                        env=env, cwd=home, stdout=bench.log, stderr=bench.log)
        end = now() + 60
        while now() < end:
            try:
                urllib.request.urlopen(f"http://{self.host}:{self.port}/health", timeout=5).read()
                return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError("the peer did not start")

    def stop(self):
        self.process.terminate()
        self.process.wait(60)


def free_port():
    import socket
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def own_cpu(pid):
    """Processor seconds of a process alone."""
    return sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / TICKS


def children(pid):
    return [child for task in Path(f"/proc/{pid}/task").glob("*/children") for child in task.read_text().split()]


def cpu(pid):
    """Processor seconds of a process, of all it has waited for, and of those of its children that run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        running = children(pid)
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS + sum(map(cpu, running))


def split(pid):
    """Processor seconds of a server, and of each of its running children."""
    each = {child: cpu(child) for child in children(pid)}
    return cpu(pid) - sum(each.values()), each


def between(before, after):
    """What was spent on a turn."""
    (own, those), (own_after, those_after) = before, after
    spent = [seconds - those.get(child, 0.0) for child, seconds in those_after.items()]
    return own_after - own + sum(seconds for seconds in spent if seconds >= IDLE)


class Bench:
    """The stand-in behind the relay, and the servers before it."""

    def __init__(self, arguments, command):
        self.arguments, self.command, self.loop, self.servers = arguments, command, Loop(), []
        self.home = Path(tempfile.mkdtemp(prefix="auth-pool-bench-"))
        self.log = open(self.home / "log", "w")
        self.env = {name: os.environ[name] for name in ("PATH", "LANG", "TZ") if name in os.environ}
        self.env |= {"HOME": str(self.home), "BENCH_TOKEN": TOKEN, "LOG_LEVEL": arguments.log_level}
        self.keys = [f"sk-bench-key-number-{number:04}" for number in range(STEPS * (arguments.loops + 1))]
        self.number = 0

    def __enter__(self):
        self.standin = self.serve("standin")
        self.relay = Relay(self.loop, (self.standin.host, self.standin.port))
        self.base_url = self.relay.url
        profile = self.home / ".claude-bench"
        profile.mkdir(mode=0o700)
        keys = [{"name": f"client{number}", "sha256": hashlib.sha256(key.encode()).hexdigest(), "admin": number == 0}
                for number, key in enumerate(self.keys)]
        config = self.home / "auth-pool.json"
        config.write_text(json.dumps({
            "subscriptions": [{"id": "bench", "type": "claude-max", "configDir": str(profile), "weeklyBudget": 1e6,
                               "oauthTokenEnv": "BENCH_TOKEN", "env": {"ANTHROPIC_BASE_URL": self.relay.url}}],
            "clientKeys": keys, "maxClientsPerSubscription": 100,
            # No spares: they are started for the next conversation, and would be counted for this one.
            "claude": {"command": str(self.command), "sparesPerSubscription": 1, "maxProcesses": 12,
                       # The trial of a new CLI build has processes of its own.
                       "selfTest": False},
        }))
        self.proxy = self.serve("serve", "--config", str(config))
        self.learn()
        settings = json.loads(config.read_text())
        settings["claude"]["sparesPerSubscription"] = 0
        config.write_text(json.dumps(settings))
        if self.arguments.peer:
            self.peer = Peer(self, self.command)
            self.servers.append(self.peer)
        self.loop.idle(3)
        return self

    def __exit__(self, kind, *_):
        for server in reversed(self.servers):
            server.stop()
        self.log.close()
        if kind:
            print(f"the log is in {self.home}", file=sys.stderr)
        else:
            shutil.rmtree(self.home)

    def serve(self, *command):
        server = Server([self.arguments.binary, *command, "--listen", "127.0.0.1:0"], self.env, self.log)
        self.servers.append(server)
        server.await_address()
        return server

    def learn(self):
        """How the proxy starts a process, from the spare that it makes when a model is in demand."""
        talk = Talk(self.loop, self.proxy.host, self.proxy.port)
        talk.turn("Hello", self.keys[0])
        talk.close()
        end = now() + 60
        while now() < end:
            self.loop.idle(0.3)
            for task in Path(f"/proc/{self.proxy.process.pid}/task").glob("*/children"):
                for pid in task.read_text().split():
                    argv = (Path("/proc") / pid / "cmdline").read_bytes().decode().split("\0")[:-1]
                    if MODEL in argv:
                        environ = (Path("/proc") / pid / "environ").read_bytes().decode().split("\0")[:-1]
                        self.hand_argv, self.cwd = argv, os.readlink(Path("/proc") / pid / "cwd")
                        self.hand_env = dict(entry.split("=", 1) for entry in environ)
                        return
        raise TimeoutError("no process of the proxy within 60 s")

    def answers(self, *rules):
        urllib.request.urlopen(urllib.request.Request(
            f"http://{self.standin.host}:{self.standin.port}/standin/script", method="DELETE"), timeout=10).read()
        for rule in rules:
            self.standin.post("/standin/script", rule)

    def key(self):
        self.number += 1
        return self.keys[self.number % len(self.keys)]

    def open(self, way, tools=None):
        """A new conversation, the process whose time counts for it, and its client's key."""
        if way == BY_HAND:
            talk = Hand(self)
            return talk, talk.cli.process.pid
        server = self.peer if way == PEER else self.proxy
        return Talk(self.loop, server.host, server.port, tools), server.process.pid


def conversation(bench, ways, turns):
    """One conversation each way, turn by turn; the samples of each, in milliseconds."""
    talks = {way: bench.open(way) for way in ways}
    key = bench.keys[0]
    for talk, _ in talks.values():
        talk.turn("How do you do?", key)
    bench.loop.idle(bench.arguments.settle + 0.5)
    spent, own = dict.fromkeys(ways, 0.0), dict.fromkeys(ways, 0.0)
    samples = []
    for number in range(turns):
        taken = {}
        for way in random.sample(ways, len(ways)):
            talk, pid = talks[way]
            bench.relay.reset()
            before, own_before = split(pid), own_cpu(pid)
            gc.disable()
            begun, texts = talk.turn(f"And what is number {number}?", key)
            gc.enable()
            deltas, requests = bench.relay.deltas, bench.relay.requests
            if not len(texts) == len(deltas) == CHUNKS or len(requests) != 1:
                raise RuntimeError(f"{way}: {len(texts)} chunks of {len(deltas)} sent, {len(requests)} requests")
            bench.loop.idle(bench.arguments.settle)
            spent[way] += between(before, split(pid))
            # By hand there is no server.
            own[way] += 0 if way == BY_HAND else own_cpu(pid) - own_before
            lags = [(arrived - sent) * 1e3 for (arrived, _), sent in zip(texts[1:], deltas[1:])]
            taken[way] = {"first": (texts[0][0] - begun) * 1e3, "in": (requests[0] - begun) * 1e3,
                          "lag": statistics.median(lags)}
        samples.append(taken)
    for talk, _ in talks.values():
        talk.close()
    for way in ways:
        for taken in samples:
            taken[way] |= {"cpu": spent[way] / turns * 1e3, "own": own[way] / turns * 1e3}
    return samples


def agent(bench, way):
    """One loop of twenty steps; without its first request."""
    prefix = "mcp__client__" if way == PEER else ""
    calls = [{"name": prefix + tool["function"]["name"], "input": {"q": "x"}} for tool in TOOLS]
    bench.answers({"times": STEPS - 1, "action": {"type": "tool_use", "calls": calls}},
                  {"action": {"type": "text", "text": "Here it is."}})
    talk, pid = bench.open(way, TOOLS)
    keys = [bench.key() for _ in range(STEPS)]
    talk.history.append({"role": "user", "content": "Find it"})
    results, asked, upstream, made, before, begun = [], 0, 0, 2, 0.0, 0.0
    while made:
        bench.relay.reset()
        sent, _ = talk.send(keys[min(asked, STEPS - 1)] if way == APART else keys[0])
        upstream += len(bench.relay.requests)
        if asked > 0 and len(bench.relay.requests) == 1:
            results.append((bench.relay.requests[0] - sent) * 1e3)
        asked += 1
        made = talk.calls()
        if asked == 1:
            bench.loop.idle(0.5)
            before, begun = cpu(pid), now()
    wall = now() - begun
    bench.loop.idle(0.3)
    # The peer hands over parallel calls one by one at times, or asks the provider once more: its numbers are shown.
    if way != PEER and (asked, upstream) != (STEPS, STEPS):
        raise RuntimeError(f"{way}: {asked} requests, {upstream} upstream, for a loop of {STEPS}")
    talk.close()
    return {"wall": wall * 1e3, "cpu": (cpu(pid) - before) * 1e3, "result": statistics.median(results), "asked": asked,
            "upstream": upstream}


def median(samples, way, value):
    return statistics.median(sample[way][value] for sample in samples)


def show(title, samples, ways, values, comparisons):
    """A table of medians, and how the proxy compares; returns the figures."""
    figures = {}
    print(f"\n{title}\n\n  {'p50':10}" + "".join(f"{label:>26}" for label in values.values()))
    for way in ways:
        print(f"  {way:10}" + "".join(f"{median(samples, way, value):26.2f}" for value in values))
    print(f"\n  {'proxy against':34}{'':9}{'5 %':>9}{'95 %':>9}")
    for label, value, other, form, goal in comparisons:
        if other not in ways:
            continue
        figure = (lambda some: median(some, PROXY, value) / median(some, other, value)) if form == "/" else (
            lambda some: median(some, PROXY, value) - median(some, other, value))
        result = figures[label] = spread(samples, figure)
        shape = "9.3f" if form == "/" else "+9.3f"
        print(f"  {label:34}{result['value']:{shape}}{result['p5']:{shape}}{result['p95']:{shape}}   {goal}")
    sys.stdout.flush()
    return figures


def measure(bench, name):
    arguments = bench.arguments
    ways = [PROXY, BY_HAND] + ([PEER] if arguments.peer else [])
    bench.answers({"action": {"type": "text", "count": CHUNKS, "chunk_delay_ms": CHUNK_DELAY_MS}})
    conversation(bench, ways, 2)
    turns = [sample for _ in range(arguments.conversations) for sample in conversation(bench, ways, arguments.turns)]
    figures = {"turns": show(
        f"Claude CLI {name}: {len(turns)} follow-up turns, each way in turn", turns, ways,
        {"first": "first token, ms", "in": "request at provider, ms", "lag": "each later chunk, ms", "cpu": "CPU a turn, ms",
         "own": "the server's part, ms"},
        [("by hand, first token, ms more", "first", BY_HAND, "-", "goal: at most 1"),
         ("by hand, each chunk, ms more", "lag", BY_HAND, "-", "goal: at most 0.2"),
         ("by hand, CPU a turn, ratio", "cpu", BY_HAND, "/", "goal: at most 1.05"),
         ("peer, first token, ratio", "first", PEER, "/", "goal: below 1"),
         ("peer, CPU a turn, ratio", "cpu", PEER, "/", "goal: below 1")])}
    ways = [PROXY, APART] + ([PEER] if arguments.peer else [])
    loops = [{way: agent(bench, way) for way in random.sample(ways, len(ways))} for _ in range(arguments.loops)]
    figures["loops"] = show(
        f"Claude CLI {name}: {len(loops)} agent loops of {STEPS} requests, two calls each", loops, ways,
        {"wall": "wall, ms", "cpu": "CPU, ms", "result": "result to provider, ms", "asked": "requests of the client",
         "upstream": "at the provider"},
        [("a process a request, CPU, ratio", "cpu", APART, "/", "goal: at most 0.125"),
         ("a process a request, wall, ratio", "wall", APART, "/", ""),
         ("peer, CPU, ratio", "cpu", PEER, "/", "goal: below 1"),
         ("peer, wall, ratio", "wall", PEER, "/", "goal: below 1"),
         ("peer, result to provider, ratio", "result", PEER, "/", "")])
    result = median(loops, PROXY, "result")
    print(f"\n  a tool's result is at the provider after {result:.1f} ms (p50)   goal: at most 25")
    return figures | {"samples": {"turns": turns, "loops": loops}}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cli", action="append", choices=versions(), help="a pinned CLI build [default: all]")
    parser.add_argument("--conversations", type=int, default=5, help="[default: 5]")
    parser.add_argument("--turns", type=int, default=20, help="follow-up turns of each [default: 20]")
    parser.add_argument("--loops", type=int, default=5, help="agent loops each way [default: 5]")
    parser.add_argument("--peer", action="store_true", help="compare with claude-code-openai too")
    parser.add_argument("--settle", type=float, default=0.2, help="seconds of quiet after each turn [default: 0.2]")
    parser.add_argument("--binary", default=ROOT / "target/release/auth-pool", help="the program to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all samples and figures go")
    parser.add_argument("--log-level", default="info", help="of the proxy [default: info]")
    arguments = parser.parse_args()
    results = {}
    for name in arguments.cli or versions():
        with Bench(arguments, ROOT / f"tests/cli/{name}/node_modules/.bin/claude") as bench:
            results[name] = measure(bench, name)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
