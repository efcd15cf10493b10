#!/usr/bin/env python3
"""What the start of a CLI process takes from those that answer, with and without giving way.

    cargo build --release
    tests/bench/starts.py                       # less than three minutes with both pinned CLI builds
    tests/bench/starts.py --cli 2.1.329 --seconds 300 --busy 4

So many CLI processes answer one question after the other, without a pause, as fast as the stand-in speaks. In each round,
in random order:

  alone      nothing is started
  start      a process starts as any other
  gives way  a process starts with niceness 10 for three seconds at most, as `auth-pool serve` starts one that nobody
             waits for

Answers in a second while the start lasts, and how long it lasts, from the start to the answer to its first request. Ratios
within the same round; their spread is that of rounds drawn with replacement. There are as many rounds as fit into
`--seconds`. Niceness has to be taken back, which root may do; so may others with RLIMIT_NICE.
"""

import argparse
import json
import os
import random
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import latency  # noqa: E402
from latency import ROOT, Bench, Cli, control, line, now, question_lines, spread, versions  # noqa: E402

ALONE, START, GIVES_WAY = WAYS = "alone", "start", "gives way"
#: Steps of niceness, and for how many seconds: src/runtime/priority.rs, src/backend/claude_cli/courtesy.rs.
NICENESS, GIVES_WAY_FOR = 10, 3.0
#: The longest a start may take, in seconds.
START_LIMIT = 30
#: How long a round lasts in which nothing starts, in seconds.
ALONE_FOR = 0.8
MORE = line({"type": "user", "message": {"role": "user", "content": [{"type": "text", "text": "More."},
                                                                     {"type": "text", "text": "\n"}]},
             "parent_tool_use_id": None, "session_id": ""})
#: Questions after which a process is replaced, before its history makes it slow.
MOST_TURNS = 100


RESULT = b'"type":"result"'


class Busy(Cli):
    """A process that is asked again as soon as it has answered."""

    turns, rest = 0, b""

    def read(self):
        data = os.read(self.process.stdout.fileno(), 1 << 18)
        if not data:
            raise RuntimeError("a busy process has ended")
        data = self.rest + data
        # The word may come in two parts.
        self.rest = data[-len(RESULT) + 1:]
        if RESULT in data:
            self.rest = b""
            self.turns += 1
            self.write(MORE)


class Crowd:
    """The busy processes of a bench."""

    def __init__(self, bench, size):
        self.bench, self.size, self.members, self.before = bench, size, [], 0
        self.fill()

    def fill(self):
        """Replaces those that have said much."""
        for member in [member for member in self.members if member.turns >= MOST_TURNS]:
            self.members.remove(member)
            self.before += member.turns
            member.kill()
        while len(self.members) < self.size:
            member = Busy(self.bench.loop, self.bench.hand_argv, self.bench.hand_env, self.bench.cwd)
            member.write(question_lines())
            self.bench.loop.until(lambda member=member: member.turns, 60)
            self.members.append(member)

    @property
    def turns(self):
        return self.before + sum(member.turns for member in self.members)

    def end(self):
        for member in self.members:
            member.kill()


def sample(bench, crowd, way):
    """Answers in a second, and for how long the start lasted."""
    crowd.fill()
    bench.loop.idle(0.3)
    turns, begun = crowd.turns, now()
    if way == ALONE:
        bench.loop.idle(ALONE_FOR)
        return {"rate": (crowd.turns - turns) / (now() - begun), "took": None}
    new = Cli(bench.loop, bench.hand_argv, bench.hand_env, bench.cwd)
    try:
        start(bench, new, way == GIVES_WAY)
        took = now() - begun
        return {"rate": (crowd.turns - turns) / took, "took": took}
    finally:
        new.kill()


def start(bench, new, gives_way):
    """Waits until the process has answered its first request."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    if gives_way:
        os.setpriority(os.PRIO_PGRP, new.process.pid, min(own + NICENESS, 19))
    new.write(line(control("warm-up", {"subtype": "apply_flag_settings", "settings": {"env": {}}})))
    try:
        bench.loop.until(lambda: new.pieces, GIVES_WAY_FOR if gives_way else START_LIMIT)
    except TimeoutError:
        if not gives_way:
            raise
        try:
            os.setpriority(os.PRIO_PGRP, new.process.pid, own)
        except PermissionError:
            sys.exit("niceness may not be taken back here: run this as root, or raise RLIMIT_NICE")
        bench.loop.until(lambda: new.pieces, START_LIMIT)


def run(bench, crowd, seconds):
    """The samples of all rounds that fit into the time, by way; the first round does not count."""
    samples, is_warm, end = [], False, now() + seconds
    while True:
        begun = now()
        taken = {way: sample(bench, crowd, way) for way in random.sample(WAYS, len(WAYS))}
        told = ", ".join(f"{way} {one['rate']:.0f}/s" + (f" in {one['took']:.1f} s" if one["took"] else "")
                         for way, one in taken.items())
        if is_warm:
            samples.append(taken)
            print(f"round {len(samples)}, {max(end - now(), 0):.0f} s left: {told}", file=sys.stderr, flush=True)
        is_warm = True
        # Another one would last as long.
        if samples and now() + (now() - begun) > end:
            return samples


def show(name, busy, samples):
    print(f"\nClaude CLI {name}, {busy} busy processes, {os.cpu_count()} cores, {len(samples)} rounds\n")
    print(f"  {'':10}{'answers/s, p50':>16}{'start, ms, p50':>16}")
    for way in WAYS:
        rate = statistics.median(one[way]["rate"] for one in samples)
        took = "" if way == ALONE else f"{statistics.median(one[way]['took'] for one in samples) * 1e3:.0f}"
        print(f"  {way:10}{rate:16.1f}{took:>16}")
    print(f"\n  {'of paired ratios, the median':34}{'':9}{'5 %':>9}{'95 %':>9}")
    result = {}
    for label, above, below, value in (("answers, start / alone", START, ALONE, "rate"),
                                       ("answers, gives way / alone", GIVES_WAY, ALONE, "rate"),
                                       ("duration, gives way / start", GIVES_WAY, START, "took")):
        figure = lambda drawn: statistics.median(one[above][value] / one[below][value] for one in drawn)  # noqa: B023, E731
        result[label] = spread(samples, figure, 1000)
        print(f"  {label:34}{result[label]['value']:9.3f}{result[label]['p5']:9.3f}{result[label]['p95']:9.3f}")
    sys.stdout.flush()
    return result


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cli", action="append", choices=versions(), help="a pinned CLI build [default: all]")
    parser.add_argument("--seconds", type=int, default=60, help="for each CLI build [default: 60]")
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="busy processes [default: one for each core]")
    parser.add_argument("--delay", type=int, default=1, help="milliseconds between the chunks of an answer [default: 1]")
    parser.add_argument("--binary", default=ROOT / "target/release/auth-pool", help="the program to measure")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where all samples and figures go")
    parser.add_argument("--log-level", default="info", help="of the proxy [default: info]")
    arguments = parser.parse_args()

    latency.CHUNK_DELAY_MS = arguments.delay
    results = {}
    for name in arguments.cli or versions():
        command = ROOT / f"tests/cli/{name}/node_modules/.bin/claude"
        if not command.exists():
            sys.exit(f"{command.relative_to(ROOT)} is missing: scripts/test e2e installs it")
        with Bench(arguments, command, 0.5) as bench:
            # How a process is started is known by now: from here on the proxy is only there.
            print(f"Claude CLI {name}", file=sys.stderr, flush=True)
            crowd = Crowd(bench, arguments.busy)
            try:
                samples = run(bench, crowd, arguments.seconds)
            finally:
                crowd.end()
        results[name] = {"samples": samples, "ratios": show(name, arguments.busy, samples)}
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
