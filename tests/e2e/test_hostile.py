"""Requests that are wrong, or mean harm: each gets its 4xx with the field at fault, and no process is started for it."""

import json
from typing import Any

import pytest

from harness.chat import EXACT, ask, user
from harness.processes import command_line
from harness.proxy import Proxy
from harness.standin import Standin

#: Nothing is started ahead of need, so that every process that is started is seen.
SPARES = 0

CHAT = "/v1/chat/completions"


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": EXACT, "messages": [user("Hello")]} | fields


def tool(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name} | fields}


CALL = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}

#: A body, and the field that the error has to name.
WRONG: dict[str, tuple[Any, str | None]] = {
    "no object": ([], None),
    "no model": ({"messages": [user("Hello")]}, "model"),
    "model of the wrong type": (chat(model=["sonnet"]), "model"),
    "no messages": ({"model": EXACT}, "messages"),
    "empty messages": (chat(messages=[]), "messages"),
    "messages of the wrong type": (chat(messages="Hello"), "messages"),
    "a message of the wrong type": (chat(messages=["Hello"]), "messages[0]"),
    "no role": (chat(messages=[{"content": "Hello"}]), "messages[0].role"),
    "unknown role": (chat(messages=[{"role": "root", "content": "Hello"}]), "messages[0].role"),
    "no content": (chat(messages=[{"role": "user"}]), "messages[0].content"),
    "empty content": (chat(messages=[user("")]), "messages[0].content"),
    "blank content": (chat(messages=[user(" \n\t ")]), "messages[0].content"),
    "empty parts": (chat(messages=[user([])]), "messages[0].content"),
    "content of the wrong type": (chat(messages=[user(7)]), "messages[0].content"),
    "part of an unknown type": (chat(messages=[user([{"type": "smell"}])]), "messages[0].content[0].type"),
    "text of the wrong type": (chat(messages=[user([{"type": "text", "text": {}}])]), "messages[0].content[0].text"),
    "no user message": (chat(messages=[{"role": "system", "content": "x"}]), "messages"),
    "assistant speaks first": (chat(messages=[{"role": "assistant", "content": "x"}, user("y")]), "messages[0].role"),
    "assistant speaks last": (chat(messages=[user("y"), {"role": "assistant", "content": "x"}]), "messages[1].role"),
    "image over http": (
        chat(messages=[user([{"type": "image_url", "image_url": {"url": "http://10.0.0.1/x.png"}}])]),
        "messages[0].content[0].image_url.url",
    ),
    "image from a file": (
        chat(messages=[user([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}])]),
        "messages[0].content[0].image_url.url",
    ),
    "image that is no base64": (
        chat(messages=[user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,%%%"}}])]),
        "messages[0].content[0].image_url.url",
    ),
    "result without a call": (
        chat(messages=[user("x"), {"role": "tool", "tool_call_id": "c1", "content": "y"}]),
        "messages[1].tool_call_id",
    ),
    "call without a result": (
        chat(messages=[user("x"), {"role": "assistant", "tool_calls": [CALL]}, user("y")]),
        "messages[1].tool_calls",
    ),
    "temperature too high": (chat(temperature=2.5), "temperature"),
    "temperature of the wrong type": (chat(temperature="hot"), "temperature"),
    "negative max_tokens": (chat(max_tokens=-1), "max_tokens"),
    "max_tokens of zero": (chat(max_tokens=0), "max_tokens"),
    "max_tokens with a fraction": (chat(max_tokens=1.5), "max_tokens"),
    "gigantic max_tokens": (chat(max_tokens=10**30), "max_tokens"),
    "several answers": (chat(n=2), "n"),
    "stream of the wrong type": (chat(stream="yes"), "stream"),
    "options without stream": (chat(stream_options={"include_usage": True}), "stream_options"),
    "unknown effort": (chat(reasoning_effort="enormous"), "reasoning_effort"),
    "too many stops": (chat(stop=[f"s{number}" for number in range(17)]), "stop"),
    "blank stop": (chat(stop=["a", " "]), "stop[1]"),
    "tool with a bad name": (chat(tools=[tool("rm -rf /")]), "tools[0].function.name"),
    "two tools of one name": (chat(tools=[tool("f"), tool("f")]), "tools[1].function.name"),
    "too many tools": (chat(tools=[tool(f"f{number}") for number in range(129)]), "tools"),
    "schema of the wrong type": (chat(tools=[tool("f", parameters=[])]), "tools[0].function.parameters"),
    "choice of an unknown tool": (
        chat(tools=[tool("f")], tool_choice={"type": "function", "function": {"name": "g"}}),
        "tool_choice.function.name",
    ),
    "response format unknown": (chat(response_format={"type": "yaml"}), "response_format.type"),
    "session of the wrong type": (chat(session_id={"a": 1}), "session_id"),
    "empty session": (chat(session_id=""), "session_id"),
    "endless session": (chat(session_id="x" * 257), "session_id"),
    "session with a line break": (chat(session_id="a\nb"), "session_id"),
    "the server's files": (chat(context_files=["/etc/passwd"]), "context_files"),
    "the server's folders": (chat(working_directory="/"), "working_directory"),
    "the CLI's permissions": (chat(dangerously_skip_permissions=True), "dangerously_skip_permissions"),
    "servers of its own": (chat(mcp_servers={"x": {"command": "sh"}}), "mcp_servers"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_field_is_named(proxy: Proxy, standin: Standin, name: str) -> None:
    body, param = WRONG[name]
    with proxy.nothing_started():
        answer = proxy.http.post(CHAT, json=body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["code"] in ("invalid_value", "missing_required_parameter", "unsupported_parameter")
    assert error["param"] == param, error
    assert param is None or f"'{param}'" in error["message"]
    assert answer.headers["x-request-id"]
    assert standin.requests() == []


#: Bodies that are no JSON at all, or JSON that is meant to hurt.
BROKEN: dict[str, bytes] = {
    "nothing": b"",
    "blanks": b" \n ",
    "half": b'{"model":"sonnet","messages":[',
    "twice": json.dumps(chat()).encode() * 2,
    "invalid UTF-8": b'{"model":"sonnet","messages":[{"role":"user","content":"\xff\xfe"}]}',
    "lone surrogate": b'{"model":"sonnet","messages":[{"role":"user","content":"\\ud800"}]}',
    "deep": b'{"model":' + b"[" * 100_000,
    "deep and closed": b'{"model":' * 500 + b"1" + b"}" * 500,
    "not a number": b'{"model":"sonnet","temperature":NaN,"messages":[{"role":"user","content":"x"}]}',
    "countless values": b'{"model":"sonnet","x":[' + b"0," * 600_000 + b"0]}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_body_that_is_no_request(proxy: Proxy, standin: Standin, name: str) -> None:
    with proxy.nothing_started():
        answer = proxy.http.post(CHAT, content=BROKEN[name], headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    assert standin.requests() == []


def test_other_mistakes_of_http(proxy: Proxy) -> None:
    def code(answer: Any) -> tuple[int, str]:
        return answer.status_code, answer.json()["error"]["code"]

    with proxy.nothing_started():
        compressed = proxy.http.post(CHAT, content=b"x", headers={"content-encoding": "br"})
        assert code(compressed) == (415, "unsupported_encoding")
        wrong_method = proxy.http.get(CHAT)
        assert code(wrong_method) == (405, "method_not_supported") and "POST" in wrong_method.headers["allow"]
        assert code(proxy.http.get("/v1/../../etc/passwd")) == (404, "unknown_url")
        assert code(proxy.http.get("/v1/models/..%2f..%2fetc%2fpasswd"))[0] == 404
        foreign = proxy.http.post(CHAT, json=chat(), headers={"host": "evil.example"})
        assert code(foreign) == (403, "insufficient_permissions")
        page = proxy.http.post(CHAT, json=chat(), headers={"origin": "https://evil.example"})
        assert code(page) == (403, "insufficient_permissions")
        session = proxy.http.post(CHAT, json=chat(), headers={"x-session-id": b"\xff\xff"})
        assert code(session)[0] == 400


@pytest.mark.parametrize(
    "text", ["--help", "-p", "--dangerously-skip-permissions", "--model claude-opus-4-8", "-- ; touch /tmp/x", "$(id)"]
)
def test_text_that_looks_like_an_argument_is_text(proxy: Proxy, standin: Standin, text: str) -> None:
    client = proxy.openai()
    answer = ask(client, [{"role": "system", "content": text}, user(text)], extra_body={"session_id": text})
    assert answer.model_extra["session_id"] == text
    request = standin.only()
    assert (request.system(), request.texts()) == ([text], [("user", text)])
    assert request.body["model"] == EXACT


def test_nothing_of_a_client_is_in_an_argument_or_in_the_environment(proxy: Proxy, standin: Standin) -> None:
    mark = "3f5c-client-text-9d1e"
    standin.script({"type": "hang", "before": "mid"}, contains=mark)
    events = proxy.openai().chat.completions.create(
        model=EXACT,
        messages=[{"role": "system", "content": mark}, user(mark)],
        stream=True,
        stop=mark,
        user=mark,
        extra_body={"session_id": mark},
    )
    try:
        next(iter(events))
        processes = proxy.cli_processes()
        assert processes
        for process in processes:
            assert command_line(process)
            assert mark not in command_line(process)
            with open(f"/proc/{process}/environ", "rb") as environment:
                assert mark.encode() not in environment.read()
    finally:
        events.close()
    proxy.wait_idle()


def test_a_flood_of_mistakes_leaves_the_server_well(proxy: Proxy) -> None:
    with proxy.nothing_started():
        for _ in range(200):
            assert proxy.http.post(CHAT, content=b"{").status_code == 400
        for _ in range(500):
            assert proxy.http.get("/health").status_code == 200
    assert ask(proxy.openai(), "Still there?").choices
