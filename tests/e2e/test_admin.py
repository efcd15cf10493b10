"""Accounts, keys, books and events while the server runs, over SQLite and over a real PostgreSQL.

The lines of curl are those that the setup guides of the system print; host, port and key are put in, and nothing else.
"""

import json
import os
import random
import re
import secrets
import shlex
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from conftest import Start
from harness.chat import EXACT, ask, stream
from harness.daemon import Daemon
from harness.postgres import Postgres, rows
from harness.proxy import CLIENT_TIMEOUT, Proxy, account
from harness.standin import Json, Standin
from harness.waiting import wait_until

ADMIN = "/api/v1/admin"
#: Budgets are looked at every second; a busy machine may take longer.
WATCHED = 30.0
HOUSE = {"KEY_house": "sk-ant-api03-fake-house"}

REGISTER = """
curl -X POST http://localhost:3000/api/v1/admin/claude-accounts \\
  -H "Authorization: Bearer YOUR_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{
    "organizationId": "org-uuid-here",
    "name": "Production Account",
    "apiKey": "sk-ant-...",
    "tier": "pro"
  }'
"""
REGISTER_TEST = """
curl -X POST http://localhost:3000/api/v1/admin/claude-accounts \\
  -H "Authorization: Bearer YOUR_API_KEY" \\
  -H "Content-Type: application/json" \\
  -d '{
    "organizationId": "your-org-id",
    "name": "Test Account",
    "apiKey": "sk-ant-test-key",
    "tier": "pro"
  }'
"""
FOLLOW = """
curl -N http://localhost:3000/api/events/stream \\
  -H "Authorization: Bearer YOUR_SESSION_TOKEN"
"""
HEALTH = {what: f"curl https://app.nubabel.com/health/{what}" for what in ("live", "db", "redis", "ready")}
DEBUG = "curl http://localhost:3000/debug/auth-pool"
DELEGATE = """
curl -X POST http://localhost:3000/api/orchestrator/execute \\
  -H "Content-Type: application/json" \\
  -d '{
    "message": "test delegation",
    "organizationId": "your-org-id",
    "userId": "your-user-id"
  }'
"""

PLACE = re.compile(r"https?://(?:localhost:3000|app\.nubabel\.com)")
KEY = re.compile(r"YOUR_(?:API_KEY|SESSION_TOKEN)")


def command(line: str, proxy: Proxy, key: str) -> list[str]:
    """The line as a shell would read it, for this server and with this key."""
    line, places = PLACE.subn(proxy.url, line)
    assert places == 1, line
    return shlex.split(KEY.sub(key, line).replace("\\\n", " "))


def curl(line: str, proxy: Proxy, key: str = "unused") -> tuple[int, Json]:
    """Runs a line of curl; the status and the answer."""
    words = [*command(line, proxy, key), "--silent", "--show-error", "--write-out", "\n%{http_code}"]
    done = subprocess.run(words, env=proxy.env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    body, _, status = done.stdout.rpartition("\n")
    return int(status), json.loads(body)


@pytest.fixture(scope="module")
def postgres_url() -> Iterator[str]:
    """The server that runs for all tests, else one of our own."""
    if url := os.environ.get("AUTH_POOL_TEST_POSTGRES"):
        yield url
        return
    # Its owner is another user, who must be able to reach it: pytest's own folders are closed to others.
    server = Postgres(Path("/tmp") / f"auth-pool-test-admin-{os.getpid()}")
    yield server.url
    server.stop()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:{tmp_path}/state/pool.db"
        return
    url, name = request.getfixturevalue("postgres_url"), f"test_{random.getrandbits(48):x}"
    rows(url, f"CREATE DATABASE {name}")
    yield url.rsplit("/", 1)[0] + f"/{name}"
    rows(url, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def proxy(start: Start, standin: Standin, database: str) -> Proxy:
    """A pool of one API key of the house, whose breaker opens at the first failure."""
    return start(
        subscriptions=0,
        accounts=[account("house", standin.url)],
        env=HOUSE | {"DATABASE_URL": database, "ENCRYPTION_KEY": secrets.token_hex(32)},
        circuitBreaker={"failureThreshold": 1},
    )


class Admin:
    """Somebody who manages the server with a key, or from the machine itself."""

    def __init__(self, proxy: Proxy, key: str | None = None) -> None:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.Client(base_url=proxy.url, headers=headers, trust_env=False, timeout=CLIENT_TIMEOUT)

    def ask(self, method: str, path: str, **fields: Any) -> tuple[int, Json]:
        answer = self._http.request(method, f"{ADMIN}/{path}", json=fields or None)
        return answer.status_code, answer.json()

    def get(self, path: str) -> Json:
        status, answer = self.ask("GET", path)
        assert status == 200, answer
        return answer

    def post(self, path: str, **fields: Any) -> Json:
        status, answer = self.ask("POST", path, **fields)
        assert status in (200, 201), answer
        return answer

    def account(self, name: str, standin: Standin, **fields: Any) -> Json:
        """Registers an API key that the stand-in knows by that name."""
        secret = f"sk-ant-api03-fake-{name}"
        return self.post("claude-accounts", name=name, apiKey=secret, baseUrl=standin.url, **fields)

    def key(self, name: str, **fields: Any) -> str:
        return self.post("client-keys", name=name, **fields)["key"]

    def close(self) -> None:
        self._http.close()


def long_question() -> str:
    """Some 5000 tokens that are in nobody's cache: at 3 dollars a million, more than a cent."""
    return secrets.token_hex(16) + " word" * 4000


def client(proxy: Proxy, key: str) -> OpenAI:
    return proxy.openai(api_key=key)


def refusal(caught: pytest.ExceptionInfo[openai.APIStatusError]) -> tuple[int, str | None]:
    return caught.value.status_code, caught.value.code


def test_the_printed_lines_of_curl_work_as_they_stand(proxy: Proxy) -> None:
    for line, name in ((REGISTER, "production-account"), (REGISTER_TEST, "test-account")):
        status, made = curl(line, proxy)
        assert status == 201, made
        assert (made["subscription"], made["type"], made["status"], made["hasSecret"]) == (name, "api", "active", True)
        assert made["tier"] == "pro" and made["organizationId"] in ("org-uuid-here", "your-org-id")
        assert "sk-ant" not in json.dumps(made)
    for what, line in HEALTH.items():
        status, told = curl(line, proxy)
        assert (status, told["status"]) == (200, {"ready": "ready", "redis": "not_configured"}.get(what, "ok")), told
    _, live = curl(HEALTH["live"], proxy)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", live["timestamp"])
    _, ready = curl(HEALTH["ready"], proxy)
    assert set(ready["checks"]) == {"pool", "db", "redis"}
    status, debug = curl(DEBUG, proxy)
    assert status == 200 and {one["id"] for one in debug["status"]} == {"house", "production-account", "test-account"}
    # It belongs to another program, and is refused as such.
    status, refused = curl(DELEGATE, proxy)
    assert (status, refused["error"]["code"]) == (404, "unknown_url")

    # From the first key on, the same lines work with a key, and not without.
    key = Admin(proxy).key("boss", scopes=["chat", "admin"])
    assert curl(REGISTER, proxy)[0] == 401
    status, made = curl(REGISTER, proxy, key)
    assert (status, made["subscription"]) == (201, "production-account-2")
    with Following(proxy, key) as events:
        Admin(proxy, key).key("later")
        assert json.loads(events.next("change")[1])["action"] == "client_key.create"


class Following:
    """The printed line that follows the events, and what it prints."""

    def __init__(self, proxy: Proxy, key: str, *more: str) -> None:
        words = [*command(FOLLOW, proxy, key), "--silent", *more]
        self._curl = subprocess.Popen(words, env=proxy.env, stdout=subprocess.PIPE, text=True)
        self._watch = threading.Timer(60, self._curl.kill)
        self._watch.start()
        self.begun = self.next("open")

    def next(self, topic: str | None = None) -> tuple[str, str]:
        """Id and data of the next event, or of the next one about `topic`."""
        assert self._curl.stdout
        fields: dict[str, str] = {}
        for line in self._curl.stdout:
            name, _, value = line.rstrip("\n").partition(": ")
            if name and value:
                fields[name] = value
            elif fields.get("event") and topic in (None, fields["event"]):
                return fields.get("id", ""), fields["data"]
            else:
                fields = {}
        raise AssertionError(f"no event about {topic}")

    def __enter__(self) -> "Following":
        return self

    def __exit__(self, *_: object) -> None:
        self._watch.cancel()
        self._curl.kill()
        self._curl.wait()
        assert self._curl.stdout
        self._curl.stdout.close()


def test_an_account_is_registered_asked_tested_reset_disabled_and_deleted(proxy: Proxy, standin: Standin) -> None:
    admin = Admin(proxy)
    boss = admin.key("boss", scopes=["chat", "admin"])
    admin = Admin(proxy, boss)
    made = admin.account("first", standin, weeklyBudget=100, metadata={"owner": "ops"})
    own = f"claude-accounts/{made['id']}"
    user = client(proxy, admin.key("user", subscriptions=["first"]))
    assert ask(user, "hello").choices[0].message.content == "You said: hello. (turn 1)"
    assert stream(user, "hello").text == "You said: hello. (turn 1)"
    assert {request.bearer for request in standin.requests()} == {"first"}

    with standin.untouched():
        tested = admin.post(f"{own}/test")
    assert tested["ok"] is True and tested["seen"] == "the API takes the key", tested

    # A key that is withdrawn: the test says so, requests open the breaker, and a reset closes it again.
    standin.script({"type": "status", "code": 500}, bearer="first", times=4)
    for _ in range(2):
        with pytest.raises(openai.APIStatusError):
            ask(user, "anybody there?")
    assert admin.get(own)["live"]["breaker"]["state"] == "open"
    standin.forget_script()
    with pytest.raises(openai.APIStatusError) as caught:
        ask(user, "still open")
    assert refusal(caught) == (503, "no_healthy_subscription")
    assert admin.post(f"{own}/reset")["live"]["breaker"]["state"] == "closed"
    assert ask(user, "again").choices[0].finish_reason == "stop"
    standin.script({"type": "status", "code": 401}, bearer="first")
    failed = admin.post(f"{own}/test")
    assert failed["ok"] is False and failed["error"], failed
    standin.forget_script()

    assert admin.post(f"{own}/disable")["live"]["status"] == "disabled"
    with pytest.raises(openai.APIStatusError) as caught:
        ask(user, "nobody")
    assert caught.value.status_code == 503
    assert admin.post(f"{own}/enable")["live"]["status"] == "available"
    status, changed = admin.ask("PATCH", own, weeklyBudget=50, name="Renamed")
    assert (status, changed["live"]["weeklyBudget"], changed["name"]) == (200, 50, "Renamed")
    assert admin.ask("DELETE", own)[0] == 200
    assert admin.ask("GET", own)[0] == 404
    gone = lambda: "first" not in {one["id"] for one in debug(proxy, boss)["status"]}  # noqa: E731
    assert wait_until(gone, "it to have left the pool")
    assert "fake-first" not in proxy.daemon.log()


def debug(proxy: Proxy, key: str) -> Json:
    answer = proxy.http.get("/debug/auth-pool", headers={"authorization": f"Bearer {key}"})
    return answer.raise_for_status().json()


def test_a_client_key_opens_what_it_says_and_no_more(proxy: Proxy, standin: Standin) -> None:
    admin = Admin(proxy)
    status, refused = admin.ask("POST", "client-keys", name="user")
    assert status == 409, "the first key has to be the operator's"
    admin = Admin(proxy, admin.key("boss", scopes=["chat", "admin"]))
    for name in ("first", "second"):
        admin.account(name, standin)

    slow = client(proxy, admin.key("slow", requestsPerMinute=2))
    assert [ask(slow, "hello").choices[0].finish_reason for _ in range(2)] == ["stop", "stop"]
    with pytest.raises(openai.RateLimitError) as caught:
        ask(slow, "one too many")
    assert refusal(caught) == (429, "rate_limit_exceeded")
    assert 0 < int(caught.value.response.headers["retry-after"]) <= 60
    assert caught.value.response.headers["x-ratelimit-limit-requests"] == "2"

    poor = client(proxy, admin.key("poor", weeklyBudget=0.0001))
    ask(poor, long_question())
    with pytest.raises(openai.RateLimitError) as caught:
        ask(poor, "hello")
    assert "budget" in str(caught.value)

    narrow = client(proxy, admin.key("narrow", models=[EXACT], subscriptions=["second"]))
    standin_before = len(standin.requests())
    ask(narrow, "hello")
    assert [request.bearer for request in standin.requests()[standin_before:]] == ["second"]
    assert [model.id for model in narrow.models.list()] == [EXACT]
    with pytest.raises(openai.PermissionDeniedError):
        ask(narrow, "hello", model="opus")
    reader = Admin(proxy, admin.key("reader"))
    assert reader.ask("GET", "client-keys")[0] == 403
    watcher = admin.key("watcher", scopes=["admin"])
    with pytest.raises(openai.PermissionDeniedError):
        ask(client(proxy, watcher), "hello")

    keys = {key["name"]: key for key in admin.get("client-keys")["items"]}
    assert set(keys) == {"boss", "slow", "poor", "narrow", "reader", "watcher"}
    assert "digest" not in json.dumps(keys) and watcher not in json.dumps(keys)
    assert keys["poor"]["weeklyUsed"] > 0.0001
    first = admin.get("client-keys?limit=4")
    second = admin.get(f"client-keys?limit=4&after={first['next']}")
    assert len(first["items"]) == 4 and len(second["items"]) == 2 and second["next"] is None
    for name in ("slow", "watcher"):
        assert admin.ask("DELETE", f"client-keys/{keys[name]['id']}")[0] == 200
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(slow, "hello")
    assert refusal(caught) == (401, "invalid_api_key")
    assert admin.ask("DELETE", f"client-keys/{keys['boss']['id']}")[0] == 409, "nobody could manage the server"


def test_the_books_are_read_in_pages_and_by_filters(proxy: Proxy, standin: Standin) -> None:
    admin = Admin(proxy)
    admin = Admin(proxy, admin.key("boss", scopes=["chat", "admin"]))
    admin.account("first", standin, weeklyBudget=0.01)
    ann = client(proxy, admin.key("ann", subscriptions=["first"]))
    bob = client(proxy, admin.key("bob", subscriptions=["house"]))
    for number in range(3):
        ask(bob, f"question {number}")
    standin.script({"type": "status", "code": 400}, times=1)
    with pytest.raises(openai.BadRequestError):
        ask(bob, "a wrong one")
    # That is more than the account's whole week.
    ask(ann, long_question())

    def written() -> Json | None:
        found = admin.get("activities?limit=1000")
        over = [one for one in found["items"] if one["status"] != "running"]
        return found if len(over) == 5 else None

    activities = wait_until(written, "the activities")
    assert [one["client"] for one in activities["items"]] == ["ann", "bob", "bob", "bob", "bob"], "the newest first"
    newest = activities["items"][0]
    assert {"status": "completed", "subscription": "first", "model": EXACT, "attempts": 1}.items() <= newest.items()
    assert newest["inputTokens"] > 4000 and newest["cost"] > 0 and newest["durationMs"] >= 0
    assert admin.get(f"activities/{newest['id']}") == newest
    assert [one["status"] for one in admin.get("activities?client=bob&status=failed")["items"]] == ["failed"]
    assert len(admin.get("activities?subscription=house")["items"]) == 4
    pages, after = [], ""
    while True:
        page = admin.get(f"activities?limit=2{after}")
        pages.append([one["id"] for one in page["items"]])
        if page["next"] is None:
            break
        after = f"&after={page['next']}"
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [one for page in pages for one in page] == [one["id"] for one in activities["items"]]

    usage = wait_until(lambda: len((it := admin.get("usage"))["items"]) == 4 and it, "the usage")
    assert {one["client"] for one in usage["items"]} == {"ann", "bob"}
    by_client = {one["key"]: one for one in admin.get("usage?groupBy=client")["items"]}
    assert by_client["bob"]["requests"] == 3 and by_client["ann"]["cost"] == usage["items"][0]["cost"]
    assert [one["key"] for one in admin.get("usage?groupBy=subscription&client=ann")["items"]] == ["first"]
    assert admin.get("usage?from=2100-01-01T00:00:00Z")["items"] == []

    opened = wait_until(lambda: admin.get("alerts?resolved=false")["items"], "an alert on the account's budget", WATCHED)
    assert {(one["type"], one["account"]) for one in opened} == {("quota_alert", "first")}
    assert "emergency" in {one["severity"] for one in opened}
    worst = next(one for one in opened if one["severity"] == "emergency")
    assert worst["percentage"] > 100 and worst["currentValue"] > worst["limit"] == 10_000
    assert admin.post(f"alerts/{worst['id']}/resolve")["resolved"] is True
    assert worst["id"] in {one["id"] for one in admin.get("alerts?resolved=true&account=first")["items"]}
    assert worst["id"] not in {one["id"] for one in admin.get("alerts?resolved=false")["items"]}
    assert admin.get("alerts?severity=info")["items"] == []
    audited = [one["action"] for one in admin.get("audit?limit=1000")["items"]]
    assert audited[0] == "alert.resolve" and audited.count("client_key.create") == 3
    for wrong in ("usage?groupBy=moon", "alerts?resolved=perhaps", "activities?limit=0", "audit?page=2"):
        status, refused = admin.ask("GET", wrong)
        assert (status, refused["error"]["type"]) == (400, "invalid_request_error"), wrong


def test_organisations_do_not_see_each_other(proxy: Proxy, standin: Standin) -> None:
    operator = Admin(proxy)
    boss = operator.key("boss", scopes=["chat", "admin"])
    operator = Admin(proxy, boss)
    keys = {}
    for name in ("acme", "other"):
        keys[name] = operator.key(name, scopes=["chat", "admin"], organizationId=name)
        operator.account(f"of-{name}", standin, organizationId=name, weeklyBudget=0.01)
    acme, other = (Admin(proxy, keys[name]) for name in ("acme", "other"))

    with Following(proxy, keys["other"]) as events, Following(proxy, boss) as all_events:
        ask(client(proxy, keys["acme"]), long_question())
        seen, data = all_events.next("usage")
        assert json.loads(data)["subscription"] == "of-acme"
        ask(client(proxy, keys["other"]), long_question())
        # The first thing that it hears of, after what happened to somebody else.
        assert json.loads(events.next("allocation")[1])["subscription"] == "of-other"
        theirs, _ = events.next("usage")
    # Whoever comes back goes on behind what was read last.
    with Following(proxy, boss, "--header", f"Last-Event-ID: {seen}") as again:
        assert json.loads(again.begun[1]) == {"missed": 0}
        while (told := again.next("usage"))[0] != theirs:
            assert json.loads(told[1])["subscription"] == "of-acme"

    def settled() -> bool:
        return all(len(admin.get("usage")["items"]) == 1 and admin.get("alerts")["items"] for admin in (acme, other))

    wait_until(settled, "both organisations' books", WATCHED)
    for admin, own in ((acme, "acme"), (other, "other")):
        assert [one["name"] for one in admin.get("claude-accounts")["items"]] == [f"of-{own}"]
        for book in ("usage", "activities", "alerts", "client-keys", "audit"):
            assert {one["organizationId"] for one in admin.get(book)["items"]} <= {own}, book
        assert [one["subscription"] for one in admin.get("usage")["items"]] == [f"of-{own}"]
    (foreign,) = other.get("claude-accounts")["items"]
    assert acme.ask("GET", f"claude-accounts/{foreign['id']}")[0] == 404
    assert acme.ask("DELETE", f"claude-accounts/{foreign['id']}")[0] == 404
    (alert, *_) = other.get("alerts")["items"]
    assert acme.ask("POST", f"alerts/{alert['id']}/resolve")[0] == 404
    assert acme.ask("GET", "usage?organizationId=other")[0] == 403
    assert acme.ask("GET", "organization-usage")[0] == 403
    assert len(operator.get("claude-accounts")["items"]) == 2
    assert [one["subscription"] for one in operator.get("usage?organizationId=acme")["items"]] == ["of-acme"]
    everything = proxy.http.get("/debug/auth-pool", headers={"authorization": f"Bearer {keys['acme']}"})
    assert everything.status_code == 403


def test_what_a_fallback_serves_is_written_down_too(start: Start, standin: Standin, database: str) -> None:
    backends = [{"name": "reserve", "type": "anthropic-api", "baseUrl": standin.url, "apiKeyEnv": "KEY_reserve"}]
    settings: dict[str, Any] = {
        "subscriptions": 0,
        "accounts": [account("house", standin.url)],
        "env": HOUSE | {"KEY_reserve": "sk-ant-api03-fake-reserve", "DATABASE_URL": database},
        "backends": backends,
        "routing": {"fallbackChain": ["reserve"]},
        "clientKeys": [{"name": "boss", "env": "KEY_boss", "admin": True}, {"name": "user", "env": "KEY_user"}],
    }
    settings["env"] |= {"KEY_boss": "boss-boss-boss-boss", "KEY_user": "user-user-user-user"}
    proxy = start(**settings)
    admin = Admin(proxy, "boss-boss-boss-boss")
    standin.script({"type": "limit", "window": "seven_day", "resets_in_s": 7200}, bearer="house")
    ask(client(proxy, "user-user-user-user"), long_question())
    (usage,) = wait_until(lambda: admin.get("usage")["items"], "the usage")
    assert (usage["subscription"], usage["client"], usage["outcome"]) == ("reserve", "user", "completed")
    assert usage["cost"] > 10_000
    (activity,) = wait_until(lambda: admin.get("activities?status=completed")["items"], "the end of the request")
    assert (activity["subscription"], activity["attempts"], activity["cost"]) == ("reserve", 2, usage["cost"])
    assert usage["activityId"] == activity["id"]
    proxy.stop()
    # It counts against the key's budget, also after a restart.
    settings["clientKeys"][1]["weeklyBudget"] = 0.01
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client(start(**settings), "user-user-user-user"), "hello")
    assert "budget of this client key" in str(caught.value)


def test_the_providers_own_count_stands_beside_ours(start: Start, standin: Standin, database: str) -> None:
    env = HOUSE | {"DATABASE_URL": database, "ENCRYPTION_KEY": secrets.token_hex(32)}
    proxy = start(subscriptions=0, accounts=[account("house", standin.url)], env=env)
    assert Admin(proxy).ask("GET", "organization-usage")[0] == 503
    proxy.stop()
    env |= {"ANTHROPIC_ADMIN_API_KEY": "sk-ant-admin01-x", "ANTHROPIC_ADMIN_BASE_URL": standin.url}
    name = f"of-{secrets.token_hex(4)}"
    proxy = start(subscriptions=0, accounts=[account("house", standin.url)], env=env)
    admin = Admin(proxy)
    boss = admin.key("boss", scopes=["chat", "admin"])
    admin = Admin(proxy, boss)
    admin.account(name, standin)
    ask(client(proxy, admin.key("user", subscriptions=[name])), long_question())
    (own,) = wait_until(lambda: admin.get("usage?groupBy=subscription")["items"], "our own account")
    told = admin.get("organization-usage?days=2")
    (row,) = [one for one in told["items"] if one["subscription"] == name]
    assert row["own"]["cost"] == own["cost"] and row["own"]["usage"] == own["usage"]
    # Each of our records is rounded to a millionth of a dollar.
    assert abs(row["difference"]) <= 2 and row["usage"]["output"] == own["usage"]["output"] > 0
    assert told["reportedCost"] > 0 and told["from"] < told["until"]
    assert admin.ask("GET", "organization-usage?days=32")[0] == 400
    assert "sk-ant" not in json.dumps(told) + proxy.daemon.log()


def test_a_stored_key_opens_the_door_to_other_machines_and_none_keeps_it_shut(
    start: Start, standin: Standin, database: str
) -> None:
    env = HOUSE | {"DATABASE_URL": database}
    proxy = start(subscriptions=0, accounts=[account("house", standin.url)], env=env)
    command = [*proxy.daemon.process.args[:-2], "--config", str(proxy.config_path)]  # type: ignore[index]
    command[command.index("--listen") + 1] = "0.0.0.0:0"
    closed = subprocess.run(command, env=proxy.env, capture_output=True, text=True, timeout=60)
    assert closed.returncode == 1 and "auth-pool keys create" in closed.stderr, closed.stderr
    boss = Admin(proxy).key("boss", scopes=["chat", "admin"])
    proxy.stop()
    daemon = Daemon(command, proxy.folder, "exposed", proxy.env, within=60)
    try:
        url = daemon.url.replace("0.0.0.0", "127.0.0.1")
        with httpx.Client(base_url=url, trust_env=False) as http:
            assert http.get("/health").status_code == 200
            assert http.get("/v1/models").status_code == http.get("/debug/auth-pool").status_code == 401
            http.headers["authorization"] = f"Bearer {boss}"
            assert http.get("/v1/models").status_code == http.get("/debug/auth-pool").status_code == 200
            (key,) = http.get(f"{ADMIN}/client-keys").json()["items"]
            # The door would stand open, or nobody could get in any more.
            assert http.delete(f"{ADMIN}/client-keys/{key['id']}").status_code == 409
    finally:
        assert daemon.stop() == 0
