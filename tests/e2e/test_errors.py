"""Every class of error arrives as the exception that the official client has for it."""

import hashlib

import openai
import pytest
from openai import OpenAI

from conftest import Start
from harness.chat import EXACT, ask, stream, user
from harness.proxy import Proxy
from harness.standin import Json, Standin

#: Nothing is started ahead of need, so that every process that is started is seen.
SPARES = 0


def test_a_bad_request_names_its_field(client: OpenAI, proxy: Proxy, standin: Standin) -> None:
    with proxy.nothing_started(), pytest.raises(openai.BadRequestError) as caught:
        ask(client, [user("a"), {"role": "wizard", "content": "b"}])
    error = caught.value
    assert (error.status_code, error.type, error.code) == (400, "invalid_request_error", "invalid_value")
    assert error.param == "messages[1].role"
    assert "wizard" in error.message
    assert error.request_id
    assert standin.requests() == []


def test_an_unknown_model(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, "Hello", model="gpt-17")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-17")


def test_an_unknown_path(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="sonnet", input="Hello")
    assert caught.value.code == "unknown_url"


def test_what_the_provider_refuses_is_the_clients_error(client: OpenAI, standin: Standin) -> None:
    message = "messages.0: all is not well"
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
    standin.script({"type": "status", "code": 400, "body": body})
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "Hello")
    assert message in caught.value.message
    # Every subscription would be refused, so none but the first is bothered. (2.1.329 asks twice by itself.)
    assert len({request.bearer for request in standin.requests()}) == 1


def test_a_prompt_beyond_the_models_context(client: OpenAI, standin: Standin) -> None:
    message = "prompt is too long: 214000 tokens > 200000 maximum"
    body = {"type": "error", "error": {"type": "invalid_request_error", "message": message}}
    standin.script({"type": "status", "code": 400, "body": body})
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, "Hello")
    assert caught.value.code == "context_length_exceeded"
    # The CLI would shorten the conversation behind the client's back, by a request of its own.
    standin.only()


def test_client_keys(start: Start) -> None:
    def key(name: str, **fields: object) -> Json:
        return {"name": name, "sha256": hashlib.sha256(f"key-{name}".encode()).hexdigest()} | fields

    proxy = start(subscriptions=1, clientKeys=[key("all"), key("few", models=["haiku"])])
    for wrong in ("nobody's", "key-al"):
        with pytest.raises(openai.AuthenticationError) as caught:
            ask(proxy.openai(wrong), "Hello")
        assert caught.value.code == "invalid_api_key"
    few = proxy.openai("key-few")
    with pytest.raises(openai.PermissionDeniedError) as denied:
        ask(few, "Hello", model="sonnet")
    assert (denied.value.code, denied.value.param) == ("insufficient_permissions", "model")
    assert {model.id for model in few.models.list()} >= {"haiku"}
    assert "sonnet" not in {model.id for model in few.models.list()}
    assert ask(few, "Hello", model="haiku").choices
    assert ask(proxy.openai("key-all"), "Hello").choices


def test_all_subscriptions_limited(start: Start, standin: Standin) -> None:
    proxy = start()
    for name, seconds in (("sub1", 300), ("sub2", 200), ("sub3", 250)):
        standin.script({"type": "limit", "window": "five_hour", "resets_in_s": seconds}, bearer=name)
    client = proxy.openai()
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client, "Hello")
    assert caught.value.code == "upstream_rate_limited"
    # The first limit that ends decides.
    assert 185 <= int(caught.value.response.headers["retry-after"]) <= 201
    with standin.untouched(), pytest.raises(openai.RateLimitError) as again:
        ask(client, "Hello again")
    assert 180 <= int(again.value.response.headers["retry-after"]) <= 200
    assert {request.bearer for request in standin.requests()} == {"sub1", "sub2", "sub3"}
    assert len(standin.requests()) == 3
    ready = proxy.http.get("/health/ready")
    assert ready.status_code == 503 and "subscriptions" in ready.json()["reason"]


@pytest.mark.parametrize(
    ("action", "status", "code"),
    [
        ({"type": "overloaded"}, 503, "upstream_overloaded"),
        ({"type": "status", "code": 500}, 502, "upstream_error"),
        ({"type": "reset_before_headers"}, 502, "upstream_error"),
    ],
    ids=["overloaded", "broken", "unreachable"],
)
def test_a_failing_provider(start: Start, standin: Standin, action: Json, status: int, code: str) -> None:
    proxy = start(subscriptions=2)
    standin.script(action)
    with pytest.raises(openai.InternalServerError) as caught:
        ask(proxy.openai(), "Hello")
    assert (caught.value.status_code, caught.value.code, caught.value.type) == (status, code, "server_error")
    assert {request.bearer for request in standin.requests()} == {"sub1", "sub2"}
    # It is the provider's trouble, not the subscriptions'.
    assert {one["status"] for one in proxy.debug()["status"]} == {"available"}


def test_a_silent_provider(start: Start, standin: Standin) -> None:
    proxy = start(
        subscriptions=1, claude={"firstEventTimeout": "3s"}, accountSelection={"retryOnFailure": False}
    )
    standin.script({"type": "hang", "before": "first_event"})
    with pytest.raises(openai.InternalServerError) as caught:
        ask(proxy.openai(), "Hello")
    assert (caught.value.status_code, caught.value.code) == (504, "upstream_timeout")
    proxy.wait_idle()


def test_a_body_that_is_too_large(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=1, server={"maxBodyBytes": 100_000})
    with proxy.nothing_started(), pytest.raises(openai.APIStatusError) as caught:
        ask(proxy.openai(), "x" * 100_000)
    assert (caught.value.status_code, caught.value.body["code"]) == (413, "request_too_large")

    def pieces():
        yield b'{"model":"sonnet","messages":[{"role":"user","content":"'
        for _ in range(50):
            yield b"x" * 4096

    with proxy.nothing_started():
        answer = proxy.http.post("/v1/chat/completions", content=pieces())
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert standin.requests() == []


@pytest.mark.parametrize("kind", ["event", "reset", "eof"])
def test_an_error_after_the_first_byte(client: OpenAI, proxy: Proxy, standin: Standin, kind: str) -> None:
    standin.script({"type": "error_mid_stream", "after_deltas": 3, "kind": kind}, times=1)
    seen: list[str] = []
    with pytest.raises(openai.APIError) as caught:
        for chunk in client.chat.completions.create(model=EXACT, messages=[user("Hello")], stream=True):
            seen += [choice.delta.content for choice in chunk.choices if choice.delta.content]
            assert not any(choice.finish_reason for choice in chunk.choices)
    assert not isinstance(caught.value, openai.APIStatusError)
    # Not every build tells why.
    assert caught.value.code in ("upstream_error", "upstream_overloaded")
    assert caught.value.type == "server_error"
    # What was sent stays as it was: nothing is repeated, nothing of another answer is added.
    assert seen == ["tok0 ", "tok1 ", "tok2 "]
    standin.only()
    proxy.wait_idle()


def test_the_last_frame_of_a_broken_stream_is_its_error(proxy: Proxy, standin: Standin) -> None:
    standin.script({"type": "error_mid_stream", "after_deltas": 1, "kind": "event"}, times=1)
    body = {"model": EXACT, "stream": True, "messages": [user("Hello")]}
    text = proxy.http.post("/v1/chat/completions", json=body).text
    assert text.rstrip().splitlines()[-1].startswith('data: {"error":')
    assert "[DONE]" not in text


def test_an_answer_that_breaks_before_its_first_word_is_given_elsewhere(
    client: OpenAI, proxy: Proxy, standin: Standin
) -> None:
    standin.script({"type": "error_mid_stream", "after_deltas": 0, "kind": "event"}, times=1)
    assert stream(client, "Hello").text == "You said: Hello. (turn 1)"
    first, second = standin.requests()
    assert first.bearer != second.bearer


def test_every_answer_has_a_request_id(proxy: Proxy) -> None:
    good = proxy.http.get("/v1/models", headers={"x-request-id": "my-id_1.2"})
    assert good.headers["x-request-id"] == "my-id_1.2"
    for bad in ("a b", "x" * 300, "a\tb", "é"):
        error = proxy.http.get("/v1/nothing", headers={"x-request-id": bad.encode()})
        assert error.status_code == 404
        assert error.headers["x-request-id"] not in ("", bad)
