#!/usr/bin/env python3
"""Many conversations, much trouble, and not one wrong answer.

    cargo build
    tests/soak/soak.py                                    # a minute and a half
    tests/soak/soak.py --minutes 30 --workers 8           # the long one
    tests/soak/soak.py --conversations 10000 --processes 50   # more conversations than there is memory for

The real CLI before the stand-in, through `auth-pool serve` with two clients' keys. Clients talk, stream, call tools,
edit what they have said and leave at any moment; meanwhile processes are killed with -9, limits are spent, answers break,
and the configuration changes. See talk.py, chaos.py and watch.py.

It fails on: a wrong answer, a turn without an answer, a request upstream that mixes conversations or loses turns, a
process or a file left behind, more processes than allowed, memory or descriptors that grow. The curves are written to
`--out` as CSV and SVG. Run it with the Python of the end-to-end tests (.local/venv/bin/python).
"""

import argparse
import asyncio
import hashlib
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/e2e"))

from chaos import Chaos  # noqa: E402
from talk import Conversation, Habits, Tally, Wrong  # noqa: E402
from watch import Watch  # noqa: E402

from harness.proxy import Build, Proxy, base_env  # noqa: E402
from harness.standin import Standin  # noqa: E402

KEYS = {"alice": "sk-alice-of-the-soak-test", "bob": "sk-bob-of-the-soak-test"}
OPERATOR = "sk-operator-of-the-soak-test"
#: Descriptors that a CLI process takes in the proxy (its three pipes, what waits for it, and what the runtime adds).
PER_PROCESS = 5
#: Descriptors and megabytes that come and go by themselves.
SLACK_DESCRIPTORS, SLACK_MB = 8, 24


def settings(arguments: argparse.Namespace, build: Build) -> dict:
    claude = {"maxProcesses": arguments.processes}
    schema = json.loads(subprocess.check_output([build.program, "config", "schema"]))
    known = json.dumps(schema)
    if arguments.max_memory:
        if '"maxMemory"' not in known:
            sys.exit("this build has no claude.maxMemory")
        claude["maxMemory"] = arguments.max_memory
    keys = [{"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in KEYS.items()]
    admin = {"name": "operator", "sha256": hashlib.sha256(OPERATOR.encode()).hexdigest(), "admin": True}
    return {
        "claude": claude,
        "clientKeys": [*keys, admin],
        # A breaker that opens is part of the game; one that stays open for minutes would end it.
        "circuitBreaker": {"resetTimeoutSeconds": 2},
        "subscription_fields": {"maxConcurrent": 50, "weeklyBudget": 10_000},
        "maxClientsPerSubscription": 100_000,
        "server": {"queue": {"maxWaiting": 200, "timeout": "60s"}},
    }


async def worker(numbers, end: float, proxy: Proxy, tally: Tally, habits: Habits) -> None:
    """One conversation after the other, until the time is over or one is wrong."""
    while time.monotonic() < end and not tally.wrong:
        key = random.choice(list(KEYS.values()))
        talk = Conversation(next(numbers), proxy.url, key, tally, habits, with_tools=random.random() < 0.6)
        tally.add("conversations")
        try:
            for _ in range(random.randint(1, 8)):
                if time.monotonic() >= end:
                    break
                await talk.turn()
                await asyncio.sleep(random.expovariate(1 / habits.pause))
        except Wrong as wrong:
            tally.wrong.append(str(wrong))


async def trouble(arguments: argparse.Namespace, proxy: Proxy, standin: Standin, watch: Watch, tally: Tally) -> None:
    """Conversations and chaos for the time given."""
    end, numbers = time.monotonic() + arguments.minutes * 60, iter(range(1, 1_000_000))
    background = [asyncio.create_task(watch.run()), asyncio.create_task(Chaos(proxy, standin, tally).run(end))]
    await asyncio.gather(*(worker(numbers, end, proxy, tally, Habits()) for _ in range(arguments.workers)))
    await stop(background)


async def crowd(arguments: argparse.Namespace, proxy: Proxy, watch: Watch, tally: Tally) -> None:
    """So many conversations, none of which is over: each has a turn, and some go on when the others have had theirs."""
    habits = Habits(leaves=0, regenerates=0, pause=0)
    keys = list(KEYS.values())
    talks = [
        Conversation(number, proxy.url, keys[number % 2], tally, habits, with_tools=number % 3 == 0)
        for number in range(1, arguments.conversations + 1)
    ]
    tally.counts["conversations"] = len(talks)
    background = [asyncio.create_task(watch.run())]
    for round_ in (talks, random.sample(talks, max(1, len(talks) // 10))):
        waiting = iter(round_)

        async def turns(waiting=waiting) -> None:
            for talk in waiting:
                if tally.wrong:
                    return
                try:
                    await talk.turn()
                except Wrong as wrong:
                    tally.wrong.append(str(wrong))

        await asyncio.gather(*(turns() for _ in range(arguments.workers)))
    await stop(background)


async def stop(tasks: list[asyncio.Task]) -> None:
    for task in tasks:
        task.cancel()
    for ended in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(ended, Exception):
            raise ended


def settled(proxy: Proxy, within: float = 30.0) -> dict:
    """The operator's view once nothing runs any more."""
    end = time.monotonic() + within
    while True:
        debug = proxy.debug()
        if debug["totals"]["inFlight"] == 0 or time.monotonic() > end:
            return debug
        time.sleep(0.1)


def growth(watch: Watch, arguments: argparse.Namespace) -> list[str]:
    """What has grown that must not."""
    found = []
    before, after = watch.samples[0], watch.samples[-1]
    # What each process that is there now more than at the beginning takes is its own.
    allowed = before.descriptors + PER_PROCESS * max(0, after.processes - before.processes) + SLACK_DESCRIPTORS
    if after.descriptors > allowed:
        found.append(f"descriptors: {before.descriptors} before, {after.descriptors} afterwards")
    # One that is being killed is seen for a moment beside the one that takes its place, but not twice.
    most = max(min(one.processes, next_.processes) for one, next_ in zip(watch.samples, watch.samples[1:]))
    if most > arguments.processes:
        found.append(f"{most} processes, {arguments.processes} allowed")
    # The first third is the warm-up.
    third = len(watch.samples) // 3
    early = max(sample.rss_mb for sample in watch.samples[: 2 * third] or watch.samples)
    late = max(sample.rss_mb for sample in watch.samples[2 * third :])
    if late > early * 1.15 + SLACK_MB:
        found.append(f"memory of the proxy: up to {early} MB early, up to {late} MB late")
    return found


def observe(arguments: argparse.Namespace, proxy: Proxy, standin: Standin, watch: Watch, tally: Tally) -> list[str]:
    """The whole of it; what went wrong apart from the answers."""
    problems = []
    proxy.wait_spares(min(len(proxy.names), arguments.processes // 2))
    watch.look()
    asyncio.run(
        crowd(arguments, proxy, watch, tally) if arguments.conversations else trouble(arguments, proxy, standin, watch, tally)
    )
    debug = settled(proxy)
    watch.look()
    if debug["totals"]["inFlight"]:
        problems.append(f"leases that never ended: {debug['totals']['inFlight']}")
    if debug["configProblems"]:
        problems.append(f"a reload was refused: {debug['configProblems']}")
    problems += growth(watch, arguments)
    try:
        proxy.stop(40)
    except AssertionError as problem:
        problems.append(str(problem))
    return problems


def run(arguments: argparse.Namespace, version: str) -> bool:
    build = Build(arguments.program.resolve(), ROOT / f"tests/cli/{version}/node_modules/.bin/claude", version)
    tally, problems = Tally(), []
    with tempfile.TemporaryDirectory(prefix="auth-pool-soak-") as name:
        folder = Path(name)
        (folder / "standin").mkdir()
        standin = Standin(build.program, folder / "standin", base_env(folder / "standin"))
        (folder / "proxy").mkdir()
        proxy = None
        try:
            proxy = Proxy(build, folder / "proxy", standin.url, env={"LOG_LEVEL": arguments.log_level}, spares=1,
                          **settings(arguments, build))
            proxy.http.headers["Authorization"] = f"Bearer {OPERATOR}"
            watch = Watch(proxy, standin, tally, 1.0 if arguments.minutes < 5 else 5.0)
            problems += observe(arguments, proxy, standin, watch, tally)
        finally:
            for server in (proxy and proxy.daemon, standin.daemon):
                if server and server.process.poll() is None:
                    server.stop(60)
        kind = "crowd" if arguments.conversations else "soak"
        watch.write(arguments.out, f"{kind}-{version}")
        (arguments.out / f"{kind}-{version}.log").write_bytes(proxy.daemon.log_path.read_bytes())
    return report(arguments, version, tally, watch, problems)


def report(arguments, version: str, tally: Tally, watch: Watch, problems: list[str]) -> bool:
    print(f"\nClaude CLI {version}, {watch.samples[-1].seconds:.0f} s, {arguments.workers} clients at a time")
    for what, count in sorted(tally.counts.items()):
        print(f"  {what:44}{count:8}")
    for label, name in (("RSS of the proxy, MB", "rss_mb"), ("descriptors of the proxy", "descriptors"),
                        ("CLI processes", "processes"), ("their PSS, MB", "processes_pss_mb")):
        values = [getattr(sample, name) for sample in watch.samples]
        print(f"  {label:44}{values[0]:8} at first, {max(values)} at most, {values[-1]} at the end")
    problems = tally.wrong[:20] + problems
    for problem in problems:
        print(f"  WRONG: {problem}")
    if not tally.counts["turns"] or not tally.counts["requests upstream"]:
        problems.append("nothing was asked")
    print("  no wrong answer, nothing left behind" if not problems else f"  {len(problems)} problems", flush=True)
    return not problems


def main() -> None:
    versions = sorted(path.name for path in (ROOT / "tests/cli").iterdir() if path.is_dir())
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.5)
    parser.add_argument("--workers", type=int, default=4, help="clients at the same time [default: 4]")
    parser.add_argument("--processes", type=int, default=8, help="claude.maxProcesses [default: 8]")
    parser.add_argument("--max-memory", help="claude.maxMemory, for example 2GB")
    parser.add_argument("--conversations", type=int, default=0, metavar="N",
                        help="instead: N conversations that all stay open, without chaos")
    parser.add_argument("--cli", action="append", choices=versions, help="a pinned CLI build [default: all]")
    parser.add_argument("--program", type=Path, default=ROOT / "target/debug/auth-pool")
    parser.add_argument("--out", type=Path, default=ROOT / ".local/soak", help="where the curves go [default: .local/soak]")
    parser.add_argument("--seed", type=int, help="for the same choices again")
    parser.add_argument("--log-level", default="info")
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    results = [run(arguments, version) for version in arguments.cli or versions]
    sys.exit(0 if all(results) else 1)


if __name__ == "__main__":
    main()
