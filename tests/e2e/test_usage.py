"""What a request costs is what the CLI says it costs, counted once and for the right subscription."""

import json
from pathlib import Path

from conftest import Start
from harness.chat import EXACT, ask, stream, system, user
from harness.proxy import Build
from harness.standin import Standin


def listening_cli(build: Build, folder: Path) -> tuple[Path, Path]:
    """The CLI behind a script that keeps a copy of what it says, and the folder of the copies."""
    copies = folder / "said"
    copies.mkdir()
    script = folder / "claude"
    # The copy is written first: the proxy may end the process as soon as it has read the last line.
    script.write_text(f'#!/bin/sh\nexec 3>&1\n"{build.cli}" "$@" | tee /dev/fd/3 > "{copies}/$$.jsonl"\n')
    script.chmod(0o755)
    return script, copies


def costs_said(copies: Path) -> list[float]:
    """The cost of every request, as the CLI put it into its results."""
    lines = [line for copy in copies.iterdir() for line in copy.read_text().splitlines()]
    results = [said for said in map(json.loads, lines) if said.get("type") == "result"]
    return [said["total_cost_usd"] for said in results if said["num_turns"] > 0]


def test_the_cost_recorded_is_the_clis_own(build: Build, start: Start, standin: Standin, tmp_path: Path) -> None:
    cli, copies = listening_cli(build, tmp_path)
    proxy = start(subscriptions=1, claude={"command": str(cli)})
    client = proxy.openai()
    # The last two are charged otherwise than any list says: 2.1.197 does not know the one, 2.1.329 replaces the other.
    for model in (EXACT, "claude-opus-4-8", "sonnet", "claude-haiku-5-5", "claude-opus-4-1"):
        ask(client, [system("Long. " * 500), user("Hello")], model=model)
    stream(client, [system("Long. " * 500), user("Hello, streamed")])
    member = proxy.wait_idle()["status"][0]
    said = costs_said(copies)
    assert len(said) == 6 and all(cost > 0 for cost in said)
    recorded = round(member["weeklyUsed"] * 1e6)
    # Each is rounded to a millionth of a dollar.
    assert abs(recorded - sum(said) * 1e6) <= len(said), (recorded, said)
    assert member["currentBlockCost"] == member["weeklyUsed"]
    assert member["lastUsageUpdate"]


def test_an_answer_that_was_cut_short_costs_what_was_seen_of_it(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=1)
    client = proxy.openai()
    standin.script({"type": "text", "count": 400, "chunk_delay_ms": 20})
    events = client.chat.completions.create(model=EXACT, messages=[user("word " * 4000)], stream=True)
    for chunk in events:
        if chunk.choices[0].delta.content:
            break
    assert proxy.debug()["status"][0]["reserved"] > 0
    events.close()
    member = proxy.wait_idle()["status"][0]
    # 5000 tokens at 3 to 6 dollars a million went up.
    assert 0.01 < member["weeklyUsed"] < 0.05
    assert member["reserved"] == 0


def test_the_providers_own_figures_are_shown(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=1)
    levels = {"bearer": "sub1", "five_hour": {"utilization": 0.95}, "seven_day": {"utilization": 0.5}}
    standin.limits(levels)
    ask(proxy.openai(), "Hello")
    member = proxy.wait_idle()["status"][0]
    assert member["blockPercent"] == 95
    windows = {limit["window"]: limit["utilization"] for limit in member["limits"]}
    assert windows["five_hour"] == 0.95
