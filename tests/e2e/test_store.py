"""What is kept outlives the process: kill -9 at any moment, and a database that goes away under load.

What was kept is compared with what the stand-in has served and with what the clients were told: each request's prompt has
a length of its own, so that its number of tokens names it.
"""

import os
import random
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import openai
import pytest

from conftest import Start
from harness.chat import EXACT, user
from harness.postgres import Postgres, rows
from harness.processes import with_environment
from harness.proxy import Proxy
from harness.standin import Standin
from harness.waiting import wait_until

#: Clients at the same time: enough for the two processors of a small machine.
CLIENTS = 3

#: A record is made when the CLI has told the costs, which can be a moment after the client has its answer. On a machine
#: that is busy with other things that moment is long; what was measured is printed.
SETTLING = 3.0


@dataclass
class Answer:
    """One request as its client saw it."""

    text: str
    sent: float
    done: float
    tokens: int


@dataclass
class Load:
    """Clients that ask one thing after the other until they are told to stop."""

    proxy: Proxy
    first: int
    answers: list[Answer] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    asked: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._over = threading.Event()
        self._next = iter(range(self.first, self.first + 1_000_000))
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask) for _ in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        client = self.proxy.openai()
        while not self._over.is_set():
            with self._lock:
                number = next(self._next)
            # Some tokens more for each: four characters are one.
            text = f"{number:06} " + "word " * (8 * number)
            self.asked.add(text)
            sent = time.time()
            try:
                answer = client.chat.completions.create(model=EXACT, messages=[user(text)])
            except openai.OpenAIError as error:
                if not self._over.is_set():
                    self.failures.append(f"{type(error).__name__}: {error}")
                    # The proxy is gone, or about to be.
                    return
                continue
            assert answer.usage
            self.answers.append(Answer(text, sent, time.time(), answer.usage.prompt_tokens))

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(180)
            assert not thread.is_alive(), "a client hangs"

    @property
    def next_number(self) -> int:
        return next(self._next)


@dataclass(frozen=True)
class Kept:
    """A usage record."""

    tokens: int
    cost: int
    activity: str


def kept(url: str) -> list[Kept]:
    query = "SELECT input_tokens + cache_creation_tokens + cache_read_tokens, cost, activity_id FROM usage_records"
    return [Kept(int(tokens), int(cost), activity) for tokens, cost, activity in rows(url, query)]


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    # Its owner is another user, who must be able to reach it: pytest's own folders are closed to others.
    server = Postgres(Path("/tmp") / f"auth-pool-test-postgres-{os.getpid()}")
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:{tmp_path}/state/pool.db"
    return new_database(request.getfixturevalue("postgres"))


def new_database(postgres: Postgres) -> str:
    name = f"test_{random.getrandbits(48):x}"
    rows(postgres.url, f"CREATE DATABASE {name}")
    return postgres.url.rsplit("/", 1)[0] + f"/{name}"


def used(proxy: Proxy) -> int:
    """Micro-dollars of the week, over all subscriptions."""
    return round(sum(one["weeklyUsed"] for one in proxy.debug()["status"]) * 1e6)


def kill(proxy: Proxy) -> float:
    """SIGKILL, and nothing before it. The moment."""
    at = time.time()
    os.kill(proxy.pid, signal.SIGKILL)
    proxy.daemon.process.wait(30)
    return at


def test_kill_9_loses_what_is_in_the_air_and_counts_nothing_twice(
    start: Start, standin: Standin, database: str, measured: dict[str, str], pytestconfig: pytest.Config
) -> None:
    kills = pytestconfig.getoption("--kills")
    number, answers, in_flight, lost, oldest = 1, [], 0, [], []
    settings: dict[str, Any] = {"env": {"DATABASE_URL": database}, "subscriptions": 3, "spares": 1}
    for _ in range(kills):
        proxy = start(**settings)
        # What the process before this one kept is known again.
        assert used(proxy) == sum(one.cost for one in (kept(database) if answers else []))
        load = Load(proxy, number)
        wait_until(lambda: len(load.answers) >= CLIENTS, "the first answers", 120)
        time.sleep(random.uniform(0, 3))
        killed_at = kill(proxy)
        load.stop()
        proxy.disconnect()
        number = load.next_number
        in_flight += CLIENTS

        tokens = {one.tokens for one in kept(database)}
        ages = [killed_at - answer.done for answer in load.answers if answer.tokens not in tokens]
        lost += ages
        oldest.append(max(ages, default=0.0))
        answers += load.answers
        # The CLI's processes notice by themselves that nobody is there any more.
        wait_until(lambda: not with_environment(f"{proxy.folder}/"), "the CLI to end", 60)

    records = kept(database)
    assert len({answer.tokens for answer in answers}) == len(answers), "each request has a length of its own"
    # Nothing counts twice.
    twice = [tokens for tokens, times in Counter(one.tokens for one in records).items() if times > 1]
    assert not twice
    assert len({one.activity for one in records}) == len(records)
    # Nothing was kept that the stand-in did not serve, and nothing that nobody asked for.
    served = [one for one in standin.requests() if one.outcome == "completed" and one.status == 200]
    asked = {text for one in served for _, text in one.texts()}
    assert all(answer.text in asked for answer in answers)
    told = {answer.tokens for answer in answers}
    unknown = [one for one in records if one.tokens not in told]
    assert len(unknown) <= in_flight, "records of which no client knows belong to answers that the kill cut off"
    assert len(records) <= len(served)
    # What is lost was just over when the process was killed.
    assert all(age < SETTLING for age in lost), lost
    assert len(lost) <= in_flight

    proxy = start(**settings)
    assert used(proxy) == sum(one.cost for one in records)
    running = "SELECT COUNT(*) FROM activities WHERE status = 'running'"
    # A database can have other replicas, so it takes two minutes of silence until one counts as gone.
    wait_until(lambda: rows(database, running) == [("0",)], "what the kill cut off not to run for ever", 180)
    ages = " ".join(f"{age * 1e3:.0f}" for age in sorted(oldest))
    kind = database.partition(":")[0]
    measured[f"kill -9, {kind}"] = (
        f"{kills} kills, {len(answers)} answers, {len(records)} records, {len(lost)} lost; "
        f"age of the oldest of each kill since its client had the answer, in ms: {ages}"
    )


@contextmanager
def gone(url: str, postgres: Postgres, how: str) -> Iterator[None]:
    """The database does not answer, or takes nothing."""
    if how == "halted":
        postgres.halt()
    elif how == "frozen":
        postgres.freeze()
    else:
        # Another program writes, and does not come to an end.
        other = sqlite3.connect(url.removeprefix("sqlite:"), isolation_level=None, timeout=60)
        other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        if how == "halted":
            postgres.again()
        elif how == "frozen":
            postgres.thaw()
        else:
            other.execute("ROLLBACK")
            other.close()


@pytest.mark.parametrize("how", ["halted", "frozen", "locked"])
def test_a_database_that_goes_away_under_load_fails_no_chat(
    start: Start,
    standin: Standin,
    postgres: Postgres,
    tmp_path: Path,
    how: str,
    measured: dict[str, str],
    pytestconfig: pytest.Config,
) -> None:
    seconds = pytestconfig.getoption("--outage")
    url = f"sqlite:{tmp_path}/state/pool.db" if how == "locked" else new_database(postgres)
    proxy = start(env={"DATABASE_URL": url}, subscriptions=3, spares=1)
    load = Load(proxy, 1)
    wait_until(lambda: len(load.answers) >= CLIENTS, "the first answers", 120)
    wait_until(lambda: proxy.debug()["store"]["written"] > 0, "the first records", 30)
    before = len(load.answers)
    with gone(url, postgres, how):
        gone_at = time.monotonic()
        wait_until(lambda: not proxy.debug()["store"]["ok"], "the proxy to notice", 60)
        time.sleep(max(0.0, seconds - (time.monotonic() - gone_at)))
        meanwhile = len(load.answers) - before
        failing = proxy.debug()["store"]
    assert meanwhile > 0, "requests were served meanwhile"
    assert failing["buffered"] > 0 and failing["failingSince"]
    wait_until(lambda: len(load.answers) > before + meanwhile, "an answer afterwards", 120)
    load.stop()
    assert load.failures == []
    proxy.wait_idle(60)

    def caught_up() -> bool:
        store = proxy.debug()["store"]
        return store["ok"] and store["buffered"] == 0

    wait_until(caught_up, "everything to be written", 120)
    store = proxy.debug()["store"]
    assert store["dropped"] == {"usage": 0, "activities": 0, "sessions": 0, "alerts": 0}
    records = kept(url)
    assert Counter(one.tokens for one in records) == Counter(answer.tokens for answer in load.answers)
    assert used(proxy) == sum(one.cost for one in records)
    # The operator was told, and told that it was over.
    alerts = rows(url, "SELECT kind, resolved_at IS NOT NULL FROM quota_alerts")
    assert [kind for kind, resolved in alerts] == ["store_failed"] and alerts[0][1] in ("t", "1")
    done = rows(url, "SELECT status, COUNT(*) FROM activities GROUP BY status")
    assert done == [("completed", str(len(load.answers)))]
    measured[f"store {how} for {seconds} s"] = (
        f"{len(load.answers)} answers, {meanwhile} of them meanwhile, 0 failed, {len(records)} records afterwards"
    )


def test_a_start_without_the_database_serves_and_remembers_later(start: Start, standin: Standin, postgres: Postgres) -> None:
    url, key = new_database(postgres), "a-key-of-the-file-itself"
    # With a key in the file it is known who may come in, whatever the store holds.
    settings: dict[str, Any] = {
        "env": {"DATABASE_URL": url, "FILE_KEY": key},
        "clientKeys": [{"name": "boss", "env": "FILE_KEY", "admin": True}],
        "subscriptions": 1,
        "spares": 1,
    }
    first = start(**settings)
    client = first.openai(api_key=key)
    client.chat.completions.create(model=EXACT, messages=[user("One")])
    wait_until(lambda: len(kept(url)) == 1, "the record", 30)
    first.stop()
    spent = kept(url)[0].cost

    postgres.halt()
    try:
        second = start(**settings)
        second.http.headers["authorization"] = f"Bearer {key}"
        assert second.debug()["store"]["ok"] is False
        second.openai(api_key=key).chat.completions.create(model=EXACT, messages=[user("Two, without a database")])
    finally:
        postgres.again()
    wait_until(lambda: len(kept(url)) == 2, "both records", 60)
    wait_until(lambda: used(second) == sum(one.cost for one in kept(url)), "both to count", 30)
    assert used(second) > spent
    assert "AUTH_POOL" not in second.debug()["store"]["location"]
    password = url.split(":")[2].split("@")[0]
    assert password not in str(second.debug()) and password not in second.daemon.log()


def test_while_it_is_not_known_who_may_come_in_nobody_does(start: Start, standin: Standin, postgres: Postgres) -> None:
    """Keys that were made over HTTP are in the store only: one that is away must not let everybody in."""
    url = new_database(postgres)
    postgres.halt()
    try:
        proxy = start(env={"DATABASE_URL": url}, subscriptions=1)
        assert proxy.http.get("/health").status_code == 200
        for path in ("/v1/models", "/debug/auth-pool", "/api/v1/admin/client-keys"):
            refused = proxy.http.get(path, headers={"authorization": "Bearer whatever"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "store_unavailable"), path
    finally:
        postgres.again()
    wait_until(lambda: proxy.http.get("/v1/models").status_code == 200, "the door to open", 60)
    answer = proxy.openai().chat.completions.create(model=EXACT, messages=[user("One")])
    assert answer.choices[0].finish_reason == "stop"
