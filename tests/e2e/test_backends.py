"""API keys as subscriptions, backends beside the pool, and a single key without any configuration."""

from pathlib import Path

import openai
import pytest
from openai import OpenAI

from conftest import Start
from harness.chat import EXACT, ask, stream, user
from harness.daemon import Daemon
from harness.proxy import Build, account, base_env
from harness.standin import Standin

#: Keys whose owner the stand-in knows by what follows `-fake-`.
KEYS = {f"KEY_{name}": f"sk-ant-api03-fake-{name}" for name in ("a", "b", "reserve")}

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


def limit(standin: Standin, bearer: str, window: str = "seven_day") -> None:
    standin.script({"type": "limit", "window": window, "resets_in_s": 7200}, bearer=bearer)


def test_api_keys_are_a_pool_without_any_cli(start: Start, standin: Standin) -> None:
    accounts = [account("a", standin.url), account("b", standin.url)]
    proxy = start(subscriptions=0, accounts=accounts, env=KEYS, claude={"command": "no-such-program"})
    client = proxy.openai()
    assert ask(client, "hello").choices[0].message.content == "You said: hello. (turn 1)"
    assert stream(client, "hello").text == "You said: hello. (turn 1)"
    called = ask(client, "call weather", tools=[WEATHER])
    assert called.choices[0].finish_reason == "tool_calls"
    picture = "data:image/png;base64,iVBORw0KGgo="
    image = {"type": "image_url", "image_url": {"url": picture}}
    seen = ask(client, [user([{"type": "text", "text": "look"}, image])])
    assert seen.choices[0].message.content == "You said: look. (turn 1, 1 image)"
    thought = ask(client, "why?", reasoning_effort="high")
    assert thought.choices[0].message.model_extra["reasoning_content"] == "Let me think about this."
    last = standin.last().body
    assert last["messages"][-1]["content"][-1]["cache_control"] == {"type": "ephemeral"}
    assert not proxy.cli_processes()
    # One is limited: the other one serves, and the client notices nothing.
    limit(standin, "a", "five_hour")
    assert [ask(client, f"again {number}").choices[0].finish_reason for number in range(3)] == ["stop"] * 3
    assert proxy.member("a")["status"] == "cooldown" or "a" not in {one.bearer for one in standin.requests()}
    assert "fake" not in proxy.http.get("/debug/auth-pool").text


def test_all_limited_leads_to_the_fallback_and_says_so(start: Start, standin: Standin) -> None:
    backends = [{"name": "reserve", "type": "anthropic-api", "baseUrl": standin.url, "apiKeyEnv": "KEY_reserve"}]
    accounts = [account("a", standin.url), account("b", standin.url)]
    proxy = start(
        subscriptions=0, accounts=accounts, env=KEYS, backends=backends, routing={"fallbackChain": ["reserve"]}
    )
    limit(standin, "a")
    limit(standin, "b")
    raw = proxy.openai().chat.completions.with_raw_response.create(model=EXACT, messages=[user("hello")])
    assert raw.headers["x-auth-pool-backend"] == "reserve"
    assert "limited by the provider" in raw.headers["x-auth-pool-fallback"]
    assert raw.parse().choices[0].message.content == "You said: hello. (turn 1)"
    named = OpenAI(base_url=f"{proxy.url}/v1/reserve", api_key="unused", max_retries=0)
    assert ask(named, "hello").choices[0].message.content == "You said: hello. (turn 1)"
    assert '"Failover"' in proxy.daemon.log() or "failover" in proxy.daemon.log()


def test_all_limited_without_fallback_says_when_to_come_back(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=0, accounts=[account("a", standin.url)], env=KEYS, fallbackWhenExhausted=False)
    limit(standin, "a")
    with pytest.raises(openai.RateLimitError) as refused:
        ask(proxy.openai(), "hello")
    assert 7000 < int(refused.value.response.headers["retry-after"]) <= 7200


def test_plain_chat_needs_cli_subscriptions_only(start: Start, standin: Standin) -> None:
    """And a key in the environment is never theirs."""
    proxy = start(subscriptions=1, env={"ANTHROPIC_API_KEY": "sk-ant-api03-fake-nobody"})
    assert ask(proxy.openai(), "hello").choices[0].message.content == "You said: hello. (turn 1)"
    assert {request.bearer for request in standin.requests()} == {"sub1"}


def test_a_key_in_the_environment_is_all_it_takes(build: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    env = base_env(tmp_path) | {"ANTHROPIC_API_KEY": "sk-ant-api03-fake-x", "PATH": "/nowhere"}
    daemon = Daemon([str(build.program), "serve", "--listen", "127.0.0.1:0"], tmp_path, "proxy", env, within=60)
    try:
        client = OpenAI(base_url=f"{daemon.url}/v1", api_key="unused", max_retries=0)
        assert "claude-sonnet-5" in {model.id for model in client.models.list()}
    finally:
        assert daemon.stop() == 0


def test_the_models_of_backends_are_listed_and_asked_by_their_names(start: Start, standin: Standin) -> None:
    backends = [
        {"name": "reserve", "type": "anthropic-api", "baseUrl": standin.url, "apiKeyEnv": "KEY_reserve"},
        {
            "name": "router",
            "type": "openai-api",
            "baseUrl": "http://127.0.0.1:9/v1",
            "models": {"opus": "vendor/claude-opus", "*": "llama"},
        },
    ]
    proxy = start(subscriptions=0, accounts=[account("a", standin.url)], env=KEYS, backends=backends)
    client = proxy.openai()
    listed = {model.id: model.owned_by for model in client.models.list()}
    assert listed["sonnet"] == "anthropic"
    beside = {name: owner for name, owner in listed.items() if owner != "anthropic"}
    assert beside == dict.fromkeys(("reserve/haiku", "reserve/opus", "reserve/sonnet"), "reserve") | dict.fromkeys(
        ("router/llama", "router/opus", "router/vendor/claude-opus"), "router"
    )
    assert client.models.retrieve("router/vendor/claude-opus").owned_by == "router"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("reserve/no-such-model")
    answer = ask(client, "hello", model="reserve/sonnet")
    assert (answer.model, answer.choices[0].message.content) == ("reserve/sonnet", "You said: hello. (turn 1)")
    assert standin.last().bearer == "reserve"
    with pytest.raises(openai.APIStatusError) as refused:
        ask(client, "hello", model="router/vendor/claude-opus")
    assert refused.value.status_code == 502, "nobody listens there"
    for unknown in ("nobody/sonnet", "reserve/no-such-model"):
        with pytest.raises(openai.NotFoundError) as caught:
            ask(client, "hello", model=unknown)
        assert caught.value.code == "model_not_found"
