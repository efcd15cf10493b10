"""Stopping in an orderly way, and processes that die under us."""

import json
import os
import signal
import time
from pathlib import Path

import httpx
import openai
import pytest

from conftest import Start
from harness.chat import EXACT, ask, user
from harness.processes import seconds_until_group_is_gone
from harness.proxy import Proxy
from harness.sse import Streaming
from harness.standin import Standin
from harness.waiting import wait_until

#: Three seconds of answer.
WORDS = 60
STEADY = {"type": "text", "count": WORDS, "chunk_delay_ms": 50}

#: An answer that would take minutes.
ENDLESS = {"type": "text", "count": 4000, "chunk_delay_ms": 50}

HELLO = {"model": EXACT, "messages": [user("Hello")]}


def readiness(proxy: Proxy, connection: httpx.Client) -> int | None:
    """The status of the readiness check, over a connection that is open already; `None` when it was closed."""
    try:
        return connection.get("/health/ready").status_code
    except httpx.HTTPError:
        return None


def begun(proxy: Proxy) -> Streaming:
    answer = Streaming(proxy.url, HELLO)
    answer.wait_for_text()
    return answer


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_an_idle_server_stops_at_once(start: Start, name: str) -> None:
    proxy = start(spares=1)
    proxy.wait_spares(3)
    proxy.disconnect()
    begun_at = time.monotonic()
    os.kill(proxy.pid, getattr(signal, name))
    assert proxy.daemon.wait(10) == 0
    assert time.monotonic() - begun_at < 3
    proxy.assert_nothing_left()


def test_a_running_answer_ends_whole_and_nobody_new_is_let_in(start: Start, standin: Standin) -> None:
    proxy = start(spares=1, server={"drainTimeout": "30s"})
    standin.script(STEADY)
    answer = begun(proxy)
    assert readiness(proxy, proxy.http) == 200
    os.kill(proxy.pid, signal.SIGTERM)
    # Who is connected learns that it is not ready; who is not cannot connect any more.
    wait_until(lambda: readiness(proxy, proxy.http) in (503, None), "readiness to go off", within=2)
    wait_until(lambda: _refuses(proxy), "the listener to close", within=2)
    assert proxy.daemon.process.poll() is None
    answer.wait_for_end()
    assert answer.error is None
    assert answer.text == "".join(f"tok{number} " for number in range(WORDS))
    assert answer.frames[-1] == "[DONE]"
    assert answer.chunks[-1]["choices"][0]["finish_reason"] == "stop"
    proxy.disconnect()
    assert proxy.daemon.wait(10) == 0
    proxy.assert_nothing_left()
    assert [request.outcome for request in standin.requests()] == ["completed"]


def _refuses(proxy: Proxy) -> bool:
    try:
        httpx.get(f"{proxy.url}/health", trust_env=False)
    except httpx.ConnectError:
        return True
    return False


def test_an_answer_that_outlasts_the_drain_is_cut_with_an_error(start: Start, standin: Standin) -> None:
    proxy = start(spares=1, server={"drainTimeout": "1s"})
    standin.script(ENDLESS)
    answer = begun(proxy)
    proxy.disconnect()
    begun_at = time.monotonic()
    os.kill(proxy.pid, signal.SIGTERM)
    assert proxy.daemon.wait(15) == 0
    assert 1 <= time.monotonic() - begun_at < 6
    answer.wait_for_end(5)
    assert answer.error is None, "the stream ends properly, with an error in it"
    error = answer.chunks[-1]["error"]
    assert (error["type"], error["code"]) == ("server_error", "shutting_down")
    assert "[DONE]" not in answer.frames
    proxy.assert_nothing_left()
    wait_until(
        lambda: [request.outcome for request in standin.requests()] == ["client_gone"], "the provider to be hung up on"
    )


def test_a_waiting_client_is_told_when_the_drain_ends(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=1, server={"drainTimeout": "1s"})
    standin.script({"type": "hang", "before": "headers"})
    answer = Streaming(proxy.url, HELLO)
    standin.await_request()
    proxy.disconnect()
    os.kill(proxy.pid, signal.SIGTERM)
    assert proxy.daemon.wait(15) == 0
    answer.wait_for_end(5)
    # Nothing was sent yet, so it is an error with a status of its own.
    assert answer.error is None and answer.frames == []
    assert answer.status == 503
    assert json.loads(answer.refusal)["error"]["code"] == "shutting_down"
    proxy.assert_nothing_left()


def test_a_second_signal_does_not_leave_anything_behind(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=1, server={"drainTimeout": "2s"})
    standin.script(ENDLESS)
    answer = begun(proxy)
    proxy.disconnect()
    os.kill(proxy.pid, signal.SIGTERM)
    wait_until(lambda: "asked to stop" in proxy.daemon.log(), "the first signal to be noticed")
    os.kill(proxy.pid, signal.SIGTERM)
    assert proxy.daemon.wait(15) == 0
    answer.wait_for_end(5)
    proxy.assert_nothing_left()


def test_a_process_killed_in_mid_answer_is_an_error_for_its_client_only(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=2)
    standin.script(ENDLESS, times=1)
    answer = begun(proxy)
    (process,) = proxy.cli_processes()
    os.kill(process, signal.SIGKILL)
    answer.wait_for_end(5)
    assert answer.error is None
    assert answer.chunks[-1]["error"]["code"] == "upstream_error"
    assert "[DONE]" not in answer.frames
    seconds_until_group_is_gone(process, time.monotonic(), within=2)
    proxy.wait_idle()
    # It was not given elsewhere: the client has seen a part of it.
    standin.only()
    assert ask(proxy.openai(), "Hello").choices[0].finish_reason == "stop"
    assert {one["status"] for one in proxy.debug()["status"]} == {"available"}


def test_a_process_killed_before_the_first_word_is_replaced_elsewhere(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=2)
    standin.script({"type": "hang", "before": "headers"}, times=1)
    answer = Streaming(proxy.url, HELLO)
    first = standin.await_request()
    (process,) = proxy.cli_processes()
    os.kill(process, signal.SIGKILL)
    answer.wait_for_end()
    assert answer.text == "You said: Hello. (turn 1)"
    assert answer.frames[-1] == "[DONE]"
    second = standin.last()
    assert {first.bearer, second.bearer} == {"sub1", "sub2"}


def test_a_spare_that_died_is_not_handed_out(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=1, spares=1)
    proxy.wait_spares(1)
    (spare,) = proxy.cli_processes()
    os.kill(spare, signal.SIGKILL)
    assert ask(proxy.openai(), "Hello", model="sonnet").choices[0].message.content == "You said: Hello. (turn 1)"
    standin.only()


def test_a_cli_that_cannot_be_started(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=1, claude={"command": "/nonexistent/claude"})
    with pytest.raises(openai.InternalServerError) as caught:
        ask(proxy.openai(), "Hello")
    assert (caught.value.status_code, caught.value.code) == (502, "upstream_error")
    assert "/nonexistent" not in str(caught.value.body), "where things are is the operator's business"
    assert "/nonexistent/claude" in proxy.daemon.log()


def test_what_a_killed_server_leaves_is_removed_by_the_next(start: Start, standin: Standin, tmp_path: Path) -> None:
    killed = start(subscriptions=1, spares=1, env={"TMPDIR": str(tmp_path)})
    ask(killed.openai(), "Hello", model="sonnet")
    wait_until(lambda: killed.debug()["processes"]["spare"] == 1, "a spare", 60)
    processes = killed.cli_processes()
    left = {path.name for path in tmp_path.iterdir()}
    assert left, "a folder to run in, and one for each process"
    killed.disconnect()
    killed.daemon.process.kill()
    killed.daemon.process.wait(10)
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in processes), "its processes to be gone")
    assert {path.name for path in tmp_path.iterdir()} >= left, "nobody was there to tidy up"
    unrelated = tmp_path / "cli-something-else"
    unrelated.mkdir()
    following = start(subscriptions=1, env={"TMPDIR": str(tmp_path)})
    assert not left & {path.name for path in tmp_path.iterdir()}
    assert unrelated.is_dir()
    assert ask(following.openai(), "Hello", model="sonnet").choices
    following.stop()
    assert list(tmp_path.iterdir()) == [unrelated]
