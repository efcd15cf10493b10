"""Conversations that stay alive: the next turn goes on in the process that holds what was said so far.

What the provider gets is the same as from a process that is told the whole history; and whatever does not fit exactly is
told to another process, without the client noticing anything but the time.
"""

import hashlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from openai import OpenAI

from harness.chat import Message, ask, assistant, stream, system, user
from harness.proxy import Proxy
from harness.standin import Standin
from harness.waiting import wait_until

#: Processes are counted here.
SPARES = 0


class Conversation:
    """A client that sends the whole history each time, as clients of chat completions do."""

    def __init__(self, client: OpenAI, *messages: Message, **options: object) -> None:
        self.client = client
        self.messages = list(messages)
        self.options = options

    def say(self, text: object, streamed: bool = False, **options: object) -> str:
        self.messages.append(user(text))
        options = self.options | options
        if streamed:
            answer = stream(self.client, self.messages, **options).text
        else:
            answer = ask(self.client, self.messages, **options).choices[0].message.content or ""
        self.messages.append(assistant(answer))
        return answer

    def texts(self) -> list[tuple[str, str]]:
        """What upstream must have got of it before the last answer."""
        return [(one["role"], one["content"]) for one in self.messages[:-1] if one["role"] != "system"]


def started(proxy: Proxy) -> int:
    return proxy.debug()["processes"]["started"]


@pytest.mark.parametrize("streamed", [False, True])
def test_a_conversation_stays_in_one_process(proxy: Proxy, client: OpenAI, standin: Standin, streamed: bool) -> None:
    before = started(proxy)
    talk = Conversation(client, system(f"Be brief. {streamed}"))
    for number in range(6):
        talk.say(f"  question {number} / @/etc/hostname\n", streamed)
    assert started(proxy) == before + 1
    requests = standin.requests()
    assert len(requests) == 6
    assert requests[-1].texts() == talk.texts()
    assert requests[-1].system() == [f"Be brief. {streamed}"]
    assert proxy.wait_idle()["processes"]["parked"] == 0


def test_options_hold_for_their_own_turn(proxy: Proxy, client: OpenAI, standin: Standin) -> None:
    before = started(proxy)
    talk = Conversation(client)
    talk.say("one", temperature=0.5, max_completion_tokens=5000, stop=["never"])
    talk.say("two")
    talk.say("three", reasoning_effort="high", max_completion_tokens=20000)
    talk.say("four")
    assert started(proxy) == before + 1
    first, second, third, fourth = (request.body for request in standin.requests())
    assert (first["temperature"], first["max_tokens"], first["stop_sequences"]) == (0.5, 5000, ["never"])
    assert "stop_sequences" not in second and second.get("temperature") in (None, 1)
    assert second["max_tokens"] > 20000 and second["thinking"]["type"] == "disabled"
    assert (third["max_tokens"], third["thinking"]["type"]) == (20000, "enabled")
    assert fourth["max_tokens"] == second["max_tokens"] and fourth["thinking"]["type"] == "disabled"


def test_a_schema_holds_for_its_own_turn(proxy: Proxy, client: OpenAI, standin: Standin) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"], "additionalProperties": False}
    before = started(proxy)
    talk = Conversation(client)
    talk.say("one")
    form = {"type": "json_schema", "json_schema": {"name": "form", "schema": schema, "strict": True}}
    assert talk.say("two", response_format=form) == '{"ok":true}'
    assert talk.say("three").startswith("You said")
    assert started(proxy) == before + 1
    formats = [request.body.get("output_config", {}).get("format") for request in standin.requests()]
    assert [bool(one) for one in formats] == [False, True, False]


def test_thinking_stays_in_the_conversation(proxy: Proxy, client: OpenAI, standin: Standin) -> None:
    standin.script({"type": "thinking", "thinking": "Let me think about it."}, times=1)
    before = started(proxy)
    talk = Conversation(client)
    talk.say("one", reasoning_effort="medium")
    talk.say("two", reasoning_effort="medium")
    talk.say("three")
    assert started(proxy) == before + 1
    for request in standin.requests()[1:]:
        thought = request.turns()[1].blocks[0]
        assert (thought["type"], thought["thinking"]) == ("thinking", "Let me think about it.")
        assert thought["signature"]


def test_what_does_not_fit_is_told_to_another_process(proxy: Proxy, client: OpenAI, standin: Standin) -> None:
    talk = Conversation(client, system("Be brief."))
    talk.say("one")
    talk.say("two")

    def continues(messages: list[Message], **options: object) -> bool:
        """Whether an existing process served this; in any case upstream got exactly this."""
        before = started(proxy)
        ask(client, messages, **options)
        expected = [(one["role"], one["content"]) for one in messages if one["role"] != "system"]
        assert standin.last().texts() == expected
        return started(proxy) == before

    history = talk.messages
    # Regenerated: the process has moved on.
    assert not continues(history[:-1])
    edited = [*history[:2], assistant("Something else."), *history[3:], user("three")]
    assert not continues(edited)
    assert not continues([system("Be long."), *history[1:], user("three")])
    # Two turns at once.
    assert not continues([*history, user("three"), assistant("3"), user("four")])
    assert not continues([*history, user("three")], model="claude-sonnet-4-5-20250929")
    # None of this has disturbed the conversation itself.
    assert continues([*history, user("three")])


def test_a_lost_process_is_not_noticed(proxy: Proxy, client: OpenAI, standin: Standin) -> None:
    talk = Conversation(client, system("About to die."))
    before_all = proxy.cli_processes()
    talk.say("one")
    (pid,) = proxy.cli_processes() - before_all
    proxy.wait_idle()
    os.kill(pid, signal.SIGKILL)
    before = started(proxy)
    assert talk.say("two") == "You said: two. (turn 2)"
    assert started(proxy) == before + 1
    assert standin.last().texts() == talk.texts()
    # And when it is lost at the very moment.
    (pid,) = proxy.cli_processes() - before_all
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(talk.say, "three")
        wait_until(lambda: proxy.debug()["totals"]["inFlight"] == 1, "the request to run")
        os.kill(pid, signal.SIGKILL)
        assert answer.result(60) == "You said: three. (turn 3)"
    assert standin.last().texts() == talk.texts()


def test_of_two_that_continue_at_once_one_is_forked(proxy: Proxy, client: OpenAI, standin: Standin) -> None:
    talk = Conversation(client, system("Twice."))
    talk.say("one")
    asks = [[*talk.messages, user(f"fork {number}")] for number in range(3)]
    before = started(proxy)
    standin.script({"type": "text", "chunk_delay_ms": 50})
    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda messages: ask(client, messages).choices[0].message.content, asks))
    assert answers == [f"You said: fork {number}. (turn 2)" for number in range(3)]
    assert started(proxy) == before + 2
    texts = {request.turns()[-1].text: request.texts() for request in standin.requests()[1:]}
    for messages in asks:
        assert texts[messages[-1]["content"]] == [(one["role"], one["content"]) for one in messages[1:]]


def test_costs_are_those_of_the_turn(start, standin: Standin) -> None:
    proxy = start(subscriptions=1)
    talk = Conversation(proxy.openai())
    spent = [0.0]
    for number in range(4):
        talk.say(f"question {number}")
        spent.append(proxy.wait_idle()["status"][0]["weeklyUsed"])
    turns = [later - earlier for earlier, later in zip(spent, spent[1:])]
    assert all(0 < turn < 3 * turns[0] for turn in turns), turns
    assert proxy.debug()["processes"]["started"] == 1 + 1


def test_cut_answers_end_their_process(proxy: Proxy, client: OpenAI, standin: Standin) -> None:
    talk = Conversation(client, system("Cut."))
    standin.script({"type": "max_tokens", "after_deltas": 3}, times=1)
    talk.say("one")
    before = started(proxy)
    assert talk.say("two") == "You said: two. (turn 2)"
    assert started(proxy) == before + 1
    assert len(standin.requests()) == 2
    assert standin.last().texts() == talk.texts()


def test_clients_never_share_a_process(start, standin: Standin) -> None:
    secrets = {name: f"sk-{name}-0123456789abcdef0123456789" for name in ("alice", "bob")}
    keys = [{"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in secrets.items()]
    proxy = start(subscriptions=1, clientKeys=keys)
    alice, bob = (proxy.openai(key) for key in secrets.values())
    messages: list[Message] = [user("I am the same")]
    answer = ask(alice, messages, extra_body={"session_id": "s"}).choices[0].message.content
    messages += [assistant(answer), user("Go on")]

    def processes() -> int:
        return len(proxy.cli_processes())

    wait_until(lambda: processes() == 1, "one process")
    ask(bob, messages, extra_body={"session_id": "s"})
    assert processes() == 2
    ask(alice, messages, extra_body={"session_id": "s"})
    assert processes() == 2
