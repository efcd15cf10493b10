"""What operators see, and what browsers may do."""

import socket
import time

import httpx
import pytest

from conftest import Start
from harness.chat import ask
from harness.proxy import Proxy
from harness.standin import TOKEN, Standin
from harness.waiting import wait_until


def test_health_tells_of_pool_and_processes_in_no_time(proxy: Proxy) -> None:
    health = proxy.health()
    assert (health["status"], health["pool"]["subscriptions"], health["pool"]["eligible"]) == ("ok", 3, 3)
    assert health["version"] and health["uptimeSeconds"] >= 0
    assert set(health["backend"]) >= {"live", "spares"}
    times = []
    for _ in range(50):
        begun = time.monotonic()
        proxy.http.get("/health")
        times.append(time.monotonic() - begun)
    # The machine may be busy with other things; the server is not.
    assert sorted(times)[5] < 0.01, times
    assert proxy.http.get("/health/live").status_code == proxy.http.get("/health/ready").status_code == 200


def test_the_debug_view_tells_who_served_and_why_and_no_secret(proxy: Proxy) -> None:
    ask(proxy.openai(), "Hello")
    text = proxy.http.get("/debug/auth-pool").text
    assert TOKEN not in text and "sk-ant" not in text
    debug = proxy.wait_idle()
    for member in debug["status"]:
        assert {"id", "weeklyUsed", "weeklyBudget", "currentBlockCost", "healthScore", "assignedClients", "status"} <= set(
            member
        )
    last = debug["decisions"][-1]
    assert last["chosen"] in proxy.names and last["reason"]


def test_no_log_line_holds_a_token_or_a_prompt(proxy: Proxy) -> None:
    ask(proxy.openai(), "what-nobody-else-may-read")
    proxy.wait_idle()
    log = proxy.daemon.log()
    assert "allocated" in log
    assert TOKEN not in log and "what-nobody-else-may-read" not in log


def test_an_answer_names_its_subscription(proxy: Proxy) -> None:
    raw = proxy.openai().chat.completions.with_raw_response.create(
        model="sonnet", messages=[{"role": "user", "content": "Hello"}]
    )
    assert raw.headers["x-auth-pool-subscription"] in proxy.names
    assert raw.headers["x-auth-pool-decision"]


def test_browsers_are_kept_out_unless_their_page_is_configured(start: Start) -> None:
    origin = "https://app.example.com"
    proxy = start(subscriptions=1, server={"corsOrigins": [origin]})
    preflight = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "x-a"}
    allowed = proxy.http.options("/v1/chat/completions", headers=preflight)
    assert allowed.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == origin
    assert "POST" in allowed.headers["access-control-allow-methods"]
    listed = proxy.http.get("/v1/models", headers={"origin": origin})
    assert (listed.status_code, listed.headers["access-control-allow-origin"]) == (200, origin)
    foreign = proxy.http.get("/v1/models", headers={"origin": "https://evil.example.com"})
    assert foreign.status_code == 403 and "access-control-allow-origin" not in foreign.headers


def test_http_2_is_spoken_without_tls(proxy: Proxy) -> None:
    """With prior knowledge, as other proxies do."""
    with socket.create_connection(tuple(proxy.url.removeprefix("http://").split(":")), timeout=10) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        frame = connection.recv(9)
    assert frame[3] == 4, "the first frame of an HTTP/2 server is its SETTINGS"


def test_a_changed_configuration_is_followed(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=2)
    text = proxy.config_path.read_text()
    proxy.config_path.write_text(text.replace('"gpt-4o"', '"gpt-9"').replace('"weeklyBudget": 456', '"weeklyBudget": 99'))
    from harness.waiting import wait_until

    wait_until(lambda: proxy.member("sub1")["weeklyBudget"] == 99, "the new budget")
    assert ask(proxy.openai(), "Hello", model="gpt-9").choices
    assert proxy.http.get("/v1/models/gpt-4o").status_code == 404
    # A broken file changes nothing and is told.
    proxy.config_path.write_text("{")
    wait_until(lambda: proxy.debug().get("configProblems"), "the problem to be told")
    assert proxy.member("sub1")["weeklyBudget"] == 99
    assert ask(proxy.openai(), "Hello", model="gpt-9").choices


@pytest.mark.parametrize("path", ["/debug/auth-pool", "/health"])
def test_who_comes_through_a_proxy_is_no_operator(proxy: Proxy, path: str) -> None:
    answer = httpx.get(f"{proxy.url}{path}", headers={"x-forwarded-for": "203.0.113.9"}, trust_env=False)
    assert answer.status_code == (403 if path.startswith("/debug") else 200)


def test_a_request_is_found_in_the_log_by_its_id(proxy: Proxy) -> None:
    """Also one that was refused; an id that could break a log line is replaced."""
    asked = {"model": "sonnet", "messages": [{"role": "user", "content": "Hello"}]}
    for number, (path, body, status) in enumerate(
        [("/v1/chat/completions", asked, 200), ("/v1/chat/completions", {}, 400), ("/nowhere", asked, 404)]
    ):
        sent = f"mine-{time.time_ns()}-{number}"
        answer = proxy.http.post(path, json=body, headers={"x-request-id": sent})
        assert (answer.status_code, answer.headers["x-request-id"]) == (status, sent)
        (line,) = wait_until(
            lambda: [line for line in proxy.daemon.log().splitlines() if f"id={sent} " in line and "answered" in line],
            "the line of the request",
        )
        assert f"status={status}" in line and f'path="{path}"' in line
    odd = proxy.http.get("/v1/models", headers={"x-request-id": "a b\tc"}).headers["x-request-id"]
    made = proxy.http.get("/v1/models").headers["x-request-id"]
    assert " " not in odd and odd != made and len(made) == 36
