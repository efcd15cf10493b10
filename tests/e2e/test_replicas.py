"""Several replicas on one Redis server: limits and sessions hold, and what happens when one of them, or Redis, is lost."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conftest import Start
from harness.chat import served_by
from harness.proxy import Proxy
from harness.sse import Streaming
from harness.standin import Standin
from harness.waiting import wait_until

PASSWORD = "not-to-be-seen"


class Redis:
    """A server of the test's own, with a password and nothing on disk."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--requirepass", PASSWORD]
        self.process = subprocess.Popen(
            [*command, "--save", "", "--appendonly", "no", "--dir", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers, "redis-server", 30)

    @property
    def url(self) -> str:
        return f"redis://:{PASSWORD}@127.0.0.1:{self.port}/0"

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(f"AUTH {PASSWORD}\r\n".encode())
                return connection.recv(64).startswith(b"+OK")
        except OSError:
            return False

    def freeze(self) -> None:
        """Neither answers nor hangs up, as when the network is cut."""
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    yield server
    server.stop()


def replicas(start: Start, redis: Redis, count: int, **settings: Any) -> list[Proxy]:
    """Replicas that do not give Redis up only because the machine is busy."""
    tracking = settings.pop("capacityTracking", {"redisTimeout": "20s"})
    started = [start(env={"REDIS_URL": redis.url}, capacityTracking=tracking, **settings) for _ in range(count)]
    for proxy in started:
        wait_until(lambda proxy=proxy: state(proxy) == "together", "Redis to be joined", 30)
    return started


def state(proxy: Proxy) -> str:
    return proxy.http.get("/health/redis").json()["state"]


def status(proxy: Proxy, session: str) -> int:
    """Asks one question in a session; the answer's status."""
    return proxy.http.post("/v1/chat/completions", json=body(session)).status_code


def body(session: str) -> dict[str, Any]:
    return {
        "model": "claude-sonnet-4-5",
        "messages": [{"role": "user", "content": f"Hello from {session}"}],
        "session_id": session,
    }


NO_WAIT = {"queue": {"maxWaiting": 0}}


@pytest.mark.parametrize("count", [2, 3])
def test_a_limit_of_requests_holds_for_all_replicas_together(start: Start, redis: Redis, count: int) -> None:
    limits = {"rateLimits": {"small": {"requestsPerMinute": 5}}, "subscription_fields": {"tier": "small"}}
    every = replicas(start, redis, count, subscriptions=1, server=NO_WAIT, **limits)
    answers: list[int] = []

    def client(number: int) -> None:
        answers.append(status(every[number % count], f"s{number}"))

    begun = time.monotonic()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(answers) == {200, 503}
    # A machine on which this takes a minute sees the next window.
    if time.monotonic() - begun < 55:
        assert answers.count(200) == 5, answers
    for proxy in every:
        shown = proxy.daemon.log() + proxy.http.get("/debug/auth-pool").text + proxy.http.get("/health/ready").text
        assert PASSWORD not in shown
        assert proxy.http.get("/health/redis").json()["replicas"] >= 1


def test_a_session_is_served_by_the_same_subscription_whichever_replica_it_reaches(start: Start, redis: Redis) -> None:
    every = replicas(start, redis, 3, subscriptions=4)
    for number in range(4):
        session = {"extra_body": {"session_id": f"s{number}"}}
        served = {served_by(proxy.openai(), "Hello", **session) for proxy in every}
        assert len(served) == 1, served


def test_a_replica_that_is_killed_gives_its_places_back(start: Start, redis: Redis, standin: Standin) -> None:
    one, two = replicas(start, redis, 2, subscriptions=1, server=NO_WAIT, subscription_fields={"maxConcurrent": 1})
    standin.script({"type": "hang", "before": "headers"}, times=1)
    held = Streaming(one.url, body("held"))
    standin.await_request()
    assert status(two, "other") == 503, "the place is taken by the other replica"
    os.kill(one.pid, signal.SIGKILL)
    one.daemon.process.wait()
    held.wait_for_end()
    wait_until(lambda: status(two, "other") == 200, "the place to come back", 60)


def test_without_redis_each_replica_counts_by_itself_and_afterwards_all_together(start: Start, redis: Redis) -> None:
    limits = {"rateLimits": {"small": {"requestsPerMinute": 2}}, "subscription_fields": {"tier": "small"}}
    tracking = {"redisTimeout": "100ms"}
    every = replicas(start, redis, 2, subscriptions=1, server=NO_WAIT, capacityTracking=tracking, **limits)
    redis.freeze()
    begun = time.monotonic()
    for proxy in every:
        answers = [status(proxy, f"{proxy.pid}-{number}") for number in range(4)]
        if time.monotonic() - begun < 55:
            assert answers == [200, 200, 503, 503], "alone, each keeps to the limit"
        health = proxy.http.get("/health/redis")
        assert (health.status_code, health.json()["status"]) == (503, "down")
        ready = proxy.http.get("/health/ready").json()
        assert ready["checks"]["redis"]["status"] == "down", "it goes on without"
        assert "Redis is out of reach" in proxy.daemon.log()
    redis.thaw()
    for proxy in every:
        wait_until(lambda proxy=proxy: state(proxy) == "together", "Redis to be back", 60)
        assert "Redis answers again" in proxy.daemon.log()
    if time.monotonic() - begun < 50:
        assert [status(proxy, "more") for proxy in every] == [503, 503]


def test_services_are_told_one_by_one_and_with_readiness(start: Start) -> None:
    """Without Redis, and with the store that there always is."""
    proxy = start(subscriptions=1)
    alone = proxy.http.get("/health/redis")
    assert (alone.status_code, alone.json()["status"]) == (200, "not_configured")
    store = proxy.http.get("/health/db")
    assert (store.status_code, store.json()["status"], store.json()["kind"]) == (200, "ok", "sqlite")
    assert str(proxy.folder) not in store.text
    checks = proxy.http.get("/health/ready").json()["checks"]
    assert {name: check["status"] for name, check in checks.items()} == {
        "pool": "ok",
        "redis": "not_configured",
        "db": "ok",
    }
