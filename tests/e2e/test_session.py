"""Sessions whose clients send only what is new, and the prompt cache that a conversation finds where it goes on."""

from concurrent.futures import ThreadPoolExecutor

import hashlib

import pytest
from openai import APIStatusError, OpenAI

from harness.chat import EXACT, Message, ask, assistant, stream, system, user
from harness.proxy import Proxy
from harness.standin import Json, Standin

#: Processes are counted here.
SPARES = 0

TOOLS: list[Json] = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


def named(name: str) -> Json:
    return {"extra_body": {"session_id": name}}


@pytest.mark.parametrize("streamed", [False, True])
def test_a_session_goes_on_where_it_stands(proxy: Proxy, client: OpenAI, standin: Standin, streamed: bool) -> None:
    name = f"memory-{streamed}"
    before = proxy.debug()["processes"]["started"]

    def say(*messages: Message) -> str:
        if streamed:
            return stream(client, list(messages), **named(name)).text
        return ask(client, list(messages), **named(name)).choices[0].message.content

    first = say(system("Be brief."), user("Remember X"))
    second = say(user("What was it?"))
    assert second == "You said: What was it?. (turn 2)"
    # In the form that JSON is asked for in words; that is for this answer only.
    standin.script({"type": "text", "text": '{"a": 1}'}, times=1)
    ask(client, [user("as JSON")], response_format={"type": "json_object"}, **named(name))
    say(user("And again?"))
    last = standin.last()
    assert last.texts()[:4] == [("user", "Remember X"), ("assistant", first), ("user", "What was it?"), ("assistant", second)]
    assert [text for role, text in last.texts() if role == "user"] == ["Remember X", "What was it?", "as JSON", "And again?"]
    assert last.system() == ["Be brief."]
    if not streamed:
        # Another system prompt takes other processes; without one the conversation stays where it is.
        assert proxy.debug()["processes"]["started"] <= before + 3

    # Whoever sends everything says what was said.
    say(user("a"), assistant("b"), user("c"))
    say(user("d"))
    texts = standin.last().texts()
    assert (texts[:3], texts[4:]) == ([("user", "a"), ("assistant", "b"), ("user", "c")], [("user", "d")])


def test_results_alone_go_on_too(proxy: Proxy, client: OpenAI, standin: Standin) -> None:
    before = proxy.debug()["processes"]["started"]
    options = named("agent") | {"tools": TOOLS}
    standin.script({"type": "tool_use", "calls": [{"name": "look", "input": {"n": n}} for n in range(2)]}, times=1)
    calls = ask(client, "Look", **options).choices[0].message.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": call.id} for call in calls]

    def refused(messages: list[Message]) -> str:
        with pytest.raises(APIStatusError) as caught:
            ask(client, messages, **options)
        assert (caught.value.status_code, caught.value.param) == (400, "messages")
        return caught.value.message

    assert calls[1].id in refused(results[:1])
    assert calls[0].id in refused([user("What now?")])
    assert "toolu_other" in refused([*results, {"role": "tool", "tool_call_id": "toolu_other", "content": ""}])
    ask(client, [*results, user("Well?")], **options)
    question, asked, told = standin.last().turns()
    assert question.text == "Look"
    assert [block["id"] for block in asked.blocks] == [call.id for call in calls]
    assert [block.get("tool_use_id") for block in told.blocks] == [calls[0].id, calls[1].id, None]
    assert proxy.debug()["processes"]["started"] == before + 1
    # Without a session the server knows of no calls.
    with pytest.raises(APIStatusError) as caught:
        ask(client, results, tools=TOOLS)
    assert caught.value.status_code == 400


def test_turns_of_a_session_are_never_mixed(client: OpenAI, standin: Standin) -> None:
    ask(client, "start", **named("busy"))
    standin.script({"type": "text", "chunk_delay_ms": 20})
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda n: ask(client, f"turn {n}", **named("busy")).choices[0].message.content, range(4)))
    assert sorted(answers) == sorted(set(answers))
    standin.forget_script()
    ask(client, "end", **named("busy"))
    texts = standin.last().texts()
    assert len(texts) == 11
    said = dict(zip([text for role, text in texts if role == "user"], [text for role, text in texts if role == "assistant"]))
    assert [f"You said: {question}. (turn" in answer for question, answer in said.items()] == [True] * 5


def test_what_broke_off_was_not_said(proxy: Proxy, client: OpenAI, standin: Standin) -> None:
    ask(client, "one", **named("broken"))
    standin.script({"type": "text", "count": 1000, "chunk_delay_ms": 20}, times=1)
    options = {"model": EXACT, "messages": [user("two")], "stream": True}
    with client.chat.completions.create(**options, **named("broken")) as chunks:
        for number, _ in enumerate(chunks):
            if number == 3:
                break
    proxy.wait_idle()
    ask(client, "three", **named("broken"))
    assert [text for role, text in standin.last().texts() if role == "user"] == ["one", "three"]


def test_a_header_names_no_conversation(client: OpenAI, standin: Standin) -> None:
    for text in ("one", "two"):
        ask(client, text, extra_headers={"X-Session-Id": "affinity"})
        assert standin.last().texts() == [("user", text)]


def test_clients_have_sessions_of_their_own(start, standin: Standin) -> None:
    secrets = {name: f"sk-{name}-0123456789abcdef0123456789" for name in ("alice", "bob")}
    keys = [{"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in secrets.items()]
    proxy = start(subscriptions=1, clientKeys=keys)
    alice, bob = (proxy.openai(key) for key in secrets.values())
    ask(alice, "my secret is 42", **named("s"))
    ask(bob, "what is it?", **named("s"))
    assert standin.last().texts() == [("user", "what is it?")]


def test_the_cold_cache_of_another_subscription_is_named(start, standin: Standin) -> None:
    proxy = start(subscriptions=2)
    client = proxy.openai()
    messages: list[Message] = [system("Long enough. " * 200), user("one")]

    def send() -> tuple[str, str]:
        raw = client.chat.completions.with_raw_response.create(model=EXACT, messages=messages)
        messages.extend([assistant(raw.parse().choices[0].message.content), user("more")])
        return raw.headers["x-auth-pool-cache"], raw.headers["x-auth-pool-subscription"]

    cache, first = send()
    assert cache == "cold"
    assert send() == ("warm", first)
    assert send() == ("warm", first)
    standin.script({"type": "limit", "window": "five_hour", "resets_in_s": 600}, bearer=first)
    cache, second = send()
    assert cache == "cold" and second != first
    expected = [(one["role"], one["content"]) for one in messages[1:-2]]
    assert standin.last().texts() == expected
    assert send() == ("warm", second)
