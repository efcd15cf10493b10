"""A client that leaves ends the work at once, and leaves nothing behind."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from conftest import Start
from harness.chat import EXACT, ask, user
from harness.processes import group_members, seconds_until_group_is_gone
from harness.proxy import Proxy
from harness.standin import Standin
from harness.waiting import wait_until

#: An answer that would take minutes.
SLOW = {"type": "text", "count": 4000, "chunk_delay_ms": 50}

#: Seconds in which a process has to be gone after its client: far less than its answer takes, and enough for a machine
#: that is busy with other things. How long it really takes is printed.
LIMIT = 5

MANY = 200


def test_the_process_of_a_client_that_left_is_gone_long_before_its_answer(
    start: Start, standin: Standin, measured: dict[str, str]
) -> None:
    proxy = start(subscriptions=1)
    client = proxy.openai()
    standin.script(SLOW)
    times = []
    for number in range(10):
        events = client.chat.completions.create(model=EXACT, messages=[user(f"{number}")], stream=True)
        for chunk in events:
            if chunk.choices[0].delta.content:
                break
        (process,) = proxy.cli_processes()
        assert process in group_members(process), "it leads a process group of its own"
        left = time.monotonic()
        events.close()
        times.append(seconds_until_group_is_gone(process, left, within=LIMIT))
    measured["from disconnect to process group gone"] = (
        f"max {max(times) * 1e3:.0f} ms, median {sorted(times)[5] * 1e3:.0f} ms of {len(times)}"
    )
    proxy.wait_idle()
    wait_until(
        lambda: all(request.outcome == "client_gone" for request in standin.requests()),
        "the provider to see that nobody listens",
    )


@pytest.mark.parametrize("streamed", [True, False], ids=["stream", "whole"])
def test_a_client_that_leaves_before_the_first_word(start: Start, standin: Standin, streamed: bool) -> None:
    proxy = start(subscriptions=1)
    standin.script({"type": "hang", "before": "headers"})
    body = {"model": EXACT, "messages": [user("Hello")], "stream": streamed}
    with httpx.Client(trust_env=False, timeout=60) as leaver:
        request = threading.Thread(target=_post_until_closed, args=(leaver, f"{proxy.url}/v1/chat/completions", body))
        request.start()
        standin.await_request()
        (process,) = proxy.cli_processes()
        left = time.monotonic()
        # Closing a socket does not wake a thread that reads from it; shutting it down does.
        _shut_down(leaver)
        seconds_until_group_is_gone(process, left, within=LIMIT)
        request.join(10)
    proxy.wait_idle()


def _post_until_closed(client: httpx.Client, url: str, body: dict) -> None:
    try:
        client.post(url, json=body)
    except httpx.HTTPError:
        pass


def _shut_down(client: httpx.Client) -> None:
    import socket

    (connection,) = client._transport._pool.connections
    stream = connection._connection._network_stream
    stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def test_two_hundred_disconnects_leave_nothing(start: Start, standin: Standin, measured: dict[str, str]) -> None:
    proxy = start(spares=1)
    standin.script(SLOW)
    client = proxy.openai()
    begun = time.monotonic()

    def leave(number: int) -> None:
        # Half of them name a session of their own: it was never answered, and so must not keep its slot.
        named = {"session_id": f"leaver-{number}"} if number % 2 else {}
        events = client.chat.completions.create(
            model=EXACT, messages=[user(f"{number}")], stream=True, extra_body=named
        )
        for chunk in events:
            if chunk.choices[0].delta.content:
                break
        events.close()

    with ThreadPoolExecutor(6) as threads:
        list(threads.map(leave, range(MANY)))
    elapsed = time.monotonic() - begun
    debug = proxy.wait_idle()
    assert debug["totals"]["inFlight"] == 0
    assert debug["totals"]["sessions"] == 0
    for member in debug["status"]:
        assert (member["inFlight"], member["reserved"], member["status"]) == (0, 0, "available"), member
        assert (member["assignedClients"], member["breaker"]["state"]) == (0, "closed"), member
        assert member["sessionCounts"] == {"explicit": 0, "fingerprint": 0}, member
    assert len(proxy.cli_processes()) == debug["processes"]["spare"] <= 3
    measured[f"{MANY} disconnects"] = f"{elapsed:.0f} s, {debug['processes']['started']} processes started"
    _answers_again(proxy, standin)


def _answers_again(proxy: Proxy, standin: Standin) -> None:
    standin.forget_script()
    answer = proxy.openai().chat.completions.create(model=EXACT, messages=[user("Still there?")])
    assert answer.choices[0].message.content == "You said: Still there?. (turn 1)"


def test_no_file_is_left_for_each_request(start: Start, standin: Standin) -> None:
    """Newer CLI builds register each process in the profile and open a socket for it."""
    proxy = start(subscriptions=1)
    client = proxy.openai()

    def files() -> set[str]:
        places = (proxy.folder / "tmp", *proxy.folder.glob(".claude-*"))
        # What goes while it is looked for is passed over.
        found = {f"{folder}/{name}" for place in places for folder, _, names in os.walk(place) for name in names}
        # A profile's plugins are written down once, some time after the first start: by any of the processes.
        return {path for path in found if "/plugins/store/" not in path}

    def requests() -> None:
        ask(client, "To its end")
        ask(client, "Cut by a limit", max_tokens=2)
        standin.script(SLOW, times=1)
        events = client.chat.completions.create(model=EXACT, messages=[user("Left")], stream=True)
        for chunk in events:
            if chunk.choices[0].delta.content:
                break
        events.close()
        proxy.wait_idle()
        # A process that stays with its conversation has its files as long as it lives.
        for pid in proxy.cli_processes():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not proxy.cli_processes(), "the last process to be gone")

    # The first processes of a profile make files that stay.
    requests()
    before = files()
    requests()
    wait_until(lambda: not files() - before, "the files of the later requests to be gone: " + repr(files() - before), within=LIMIT)
