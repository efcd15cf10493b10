"""Which subscription serves whom: spreading, staying, leaving and coming back."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from conftest import Start
from harness.chat import EXACT, ask, assistant, served_by, stream, system, user
from harness.proxy import Proxy
from harness.standin import Json, Standin
from harness.waiting import wait_until


def session(name: str) -> dict[str, Any]:
    return {"extra_body": {"session_id": name}}


def test_thirty_new_sessions_spread_evenly_and_stay(start: Start, standin: Standin) -> None:
    proxy = start()
    client = proxy.openai()

    def begin(number: int) -> str:
        return served_by(client, f"I am number {number}.", **session(f"session-{number}"))

    with ThreadPoolExecutor(30) as threads:
        homes = list(threads.map(begin, range(30)))
    assert Counter(homes) == {"sub1": 10, "sub2": 10, "sub3": 10}
    # The provider saw the same: each question came with the token of the one that is said to have served it.
    upstream = {request.texts()[0][1]: request.bearer for request in standin.requests()}
    assert upstream == {f"I am number {number}.": home for number, home in enumerate(homes)}

    debug = proxy.wait_idle()
    assert [one["assignedClients"] for one in debug["status"]] == [10, 10, 10]
    # Two sessions of each subscription come again.
    again = sorted(range(30), key=lambda number: (homes[number], number))[::5]
    with ThreadPoolExecutor(6) as threads:
        assert list(threads.map(begin, again)) == [homes[number] for number in again]
    assert sum(one["assignedClients"] for one in proxy.wait_idle()["status"]) == 30


@pytest.mark.parametrize(
    "name_it",
    [
        lambda name: {"extra_body": {"session_id": name}},
        lambda name: {"extra_headers": {"X-Session-Id": name}},
        lambda name: {"prompt_cache_key": name},
    ],
    ids=["session_id", "header", "prompt_cache_key"],
)
def test_a_named_session_stays(proxy: Proxy, name_it: Any, request: pytest.FixtureRequest) -> None:
    client = proxy.openai()
    name = f"--{request.node.callspec.id}"
    home = served_by(client, "One", **name_it(name))
    # In between others are served, which would draw the next request elsewhere.
    served_by(client, "Elsewhere", **name_it(f"{name}-other"))
    assert served_by(client, "Two", **name_it(name)) == home


def test_a_conversation_without_a_name_is_recognised_by_how_it_begins(proxy: Proxy) -> None:
    client = proxy.openai()
    slots = [one["assignedClients"] for one in proxy.wait_idle()["status"]]
    history = [system("You are a poet."), user("A poem about rain, please")]
    home = served_by(client, history)
    others = {served_by(client, f"Something else {number}") for number in range(2)}
    history += [assistant("Drip, drop."), user("Another one")]
    assert served_by(client, history) == home
    assert others - {home}, "the others went elsewhere, so staying was no accident"
    # Being recognised is a preference: such requests hold no slot, so they can never fill the pool.
    assert [one["assignedClients"] for one in proxy.wait_idle()["status"]] == slots


def test_a_session_id_is_told_back(proxy: Proxy) -> None:
    answer = ask(proxy.openai(), "Hello", **session("my session"))
    assert answer.model_extra["session_id"] == "my session"
    last = [chunk for chunk in stream(proxy.openai(), "Hello", **session("my session")).chunks if chunk.choices][-1]
    assert last.model_extra["session_id"] == "my session"


def test_a_limited_subscription_is_left_at_once_and_returns_after_its_reset(start: Start, standin: Standin) -> None:
    proxy = start()
    client = proxy.openai()
    home = served_by(client, "One", **session("s"))
    limit_ends = time.time() + 6
    standin.script({"type": "limit", "window": "five_hour", "resets_at": int(limit_ends)}, bearer=home)

    refuge = served_by(client, "Two", **session("s"))
    assert refuge != home
    assert [(request.bearer, request.status) for request in standin.requests()] == [
        (home, 200),
        (home, 429),
        (refuge, 200),
    ]
    member = proxy.member(home)
    assert member["status"] == "cooldown"
    assert member["statusCause"]["until"] == int(limit_ends) * 1000
    assert served_by(client, "Three", **session("s")) == refuge, "it was given a new home"
    assert home not in {served_by(client, f"New {number}") for number in range(2)}

    # Nothing but time brings it back.
    wait_until(lambda: proxy.member(home)["status"] != "cooldown", "the limit to end", within=10)
    assert time.time() >= int(limit_ends)
    assert proxy.member(home)["status"] == "available"
    # It has no session and so the best health. The first request finds out whether it can serve.
    assert served_by(client, "Welcome", **session("t")) == home


def test_a_limit_on_opus_concerns_opus_only(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=2)
    client = proxy.openai()
    standin.script({"type": "limit", "window": "seven_day_opus", "resets_in_s": 600})
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client, "Hello", model="claude-opus-4-8")
    assert 580 <= int(caught.value.response.headers["retry-after"]) <= 601
    with standin.untouched(), pytest.raises(openai.RateLimitError):
        ask(client, "Hello", model="claude-opus-4-8")
    assert {served_by(client, f"Hello {number}") for number in range(2)} == {"sub1", "sub2"}
    assert {one["status"] for one in proxy.debug()["status"]} == {"available"}


@pytest.mark.parametrize(
    "action",
    [
        {"type": "status", "code": 401},
        {
            "type": "status",
            "code": 403,
            "body": {"type": "error", "error": {"type": "permission_error", "message": "OAuth token has been revoked."}},
        },
        {
            "type": "status",
            "code": 400,
            "body": {
                "type": "error",
                "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to use this."},
            },
        },
    ],
    ids=["wrong-token", "revoked", "no-credit"],
)
def test_a_subscription_that_cannot_log_in_is_left_alone(start: Start, standin: Standin, action: Json) -> None:
    proxy = start(subscriptions=2)
    client = proxy.openai()
    standin.script(action, bearer="sub1")
    assert [served_by(client, f"Hello {number}") for number in range(3)] == ["sub2"] * 3
    refused = [request for request in standin.requests() if request.bearer == "sub1"]
    assert len(refused) <= 2, "the CLI may ask twice; the pool asks once"
    member = proxy.member("sub1")
    assert member["status"] == "unauthenticated"
    assert member["statusCause"]["since"] and member["statusCause"]["cause"]
    assert proxy.http.get("/health/ready").status_code == 200

    standin.script(action, bearer="sub2")
    for number in range(2):
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, f"Nobody {number}")
        assert (caught.value.status_code, caught.value.code) == (503, "no_healthy_subscription")


def test_an_overloaded_provider_grounds_nobody(start: Start, standin: Standin) -> None:
    proxy = start()
    client = proxy.openai()
    standin.script({"type": "overloaded"}, times=2)
    served_by(client, "Hello")
    assert [request.status for request in standin.requests()] == [529, 529, 200]
    assert len({request.bearer for request in standin.requests()}) == 3
    assert {one["status"] for one in proxy.debug()["status"]} == {"available"}
    assert proxy.debug()["totals"]["eligible"] == 3


def test_a_throttle_without_a_reset_is_a_short_pause(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=2)
    client = proxy.openai()
    standin.script({"type": "throttle"}, bearer="sub1", times=1)
    assert served_by(client, "Hello") == "sub2"
    wait_until(lambda: proxy.member("sub1")["status"] == "available", "the pause to end", within=8)


def test_a_session_serves_its_parallel_requests(proxy: Proxy, standin: Standin) -> None:
    client = proxy.openai()
    standin.script({"type": "text", "text": "done", "first_delay_ms": 500})
    home = served_by(client, "One", **session("busy"))
    with ThreadPoolExecutor(3) as threads:
        homes = set(threads.map(lambda number: served_by(client, f"{number}", **session("busy")), range(3)))
    assert homes == {home}


def test_a_fourth_request_goes_elsewhere_and_a_seventh_is_refused(start: Start, standin: Standin) -> None:
    # Without a queue, where the seventh would wait for its turn.
    proxy = start(subscriptions=2, subscription_fields={"maxConcurrent": 3}, server={"queue": {"maxWaiting": 0}})
    client = proxy.openai()
    standin.script({"type": "hang", "before": "mid"})
    running = []
    try:
        for number in range(6):
            events = client.chat.completions.create(model=EXACT, messages=[user(f"{number}")], stream=True)
            next(iter(events))
            running.append(events)
        assert [one["inFlight"] for one in proxy.debug()["status"]] == [3, 3]
        with pytest.raises(openai.InternalServerError) as caught:
            ask(client, "One too many")
        assert (caught.value.status_code, caught.value.code) == (503, "capacity_exhausted")
        assert int(caught.value.response.headers["retry-after"]) >= 1
    finally:
        for events in running:
            events.close()
    assert [one["inFlight"] for one in proxy.wait_idle()["status"]] == [0, 0]


def test_a_warning_about_a_limit_cuts_no_answer(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=1)
    standin.limits({"bearer": "sub1", "five_hour": {"utilization": 0.95}, "seven_day": {"utilization": 0.6}})
    for number in range(2):
        seen = stream(proxy.openai(), f"question {number}")
        assert (seen.text, seen.finish_reasons) == (f"You said: question {number}. (turn 1)", ["stop"])
    proxy.wait_idle()
    assert proxy.member("sub1")["excluded"] is None
