"""Client tools on live processes: the CLI waits for the results of calls with the conversation in its memory.

Whatever way the results take, on the live process or by replay in another one, the provider gets what the client sent.
"""

import json
import os
import signal
from collections.abc import Callable

import pytest
from openai import OpenAI

from harness.chat import Message, ask, assistant, system, user
from harness.proxy import Proxy
from harness.standin import Json, Standin
from harness.waiting import wait_until

#: Processes are counted here.
SPARES = 0

PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="


def tool(name: str, **fields: object) -> Json:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object", "properties": {}}} | fields}


def result(call: Json | str, content: object) -> Message:
    return {"role": "tool", "tool_call_id": call if isinstance(call, str) else call["id"], "content": content}


class Agent:
    """A client with tools that sends the whole history each time."""

    def __init__(self, proxy: Proxy, standin: Standin, tools: list[Json], *messages: Message) -> None:
        self.proxy, self.standin, self.client = proxy, standin, proxy.openai()
        self.tools = tools
        self.messages = list(messages)

    def send(self, *messages: Message, **options: object) -> list[Json]:
        """Sends these messages with all that came before; the calls that the model makes."""
        self.messages += messages
        if self.tools:
            options["tools"] = self.tools
        message = ask(self.client, self.messages, **options).choices[0].message
        self.messages.append(message.model_dump(exclude_none=True))
        self.text = message.content
        return self.messages[-1].get("tool_calls", [])

    def call(self, *calls: tuple[str, Json], text: str | None = None) -> list[Json]:
        """Has the model make these calls on the next request."""
        action = {"type": "tool_use", "calls": [{"name": name, "input": given} for name, given in calls]}
        self.standin.script(action | ({"text": text} if text else {}), times=1)

    def started(self) -> int:
        return self.proxy.debug()["processes"]["started"]

    def check(self) -> None:
        """Upstream got every turn before the last answer as it was sent."""
        body = self.standin.last()
        got = [(turn.role, [plain(block) for block in turn.blocks]) for turn in body.turns()]
        assert got == upstream(self.messages[:-1])


def plain(block: Json) -> Json:
    """A block, with texts that may be written in two ways in one of them."""
    if block["type"] == "tool_result":
        content = block.get("content") or []
        if isinstance(content, str):
            content = [{"type": "text", "text": content}]
        block = block | {"content": [part for part in content if part.get("text") != ""]}
        block = {key: value for key, value in block.items() if not (key == "is_error" and value is False)}
    if block["type"] == "tool_use":
        # Newer builds tell who calls.
        block = {key: block[key] for key in ("type", "id", "name", "input")}
    return block


def upstream(messages: list[Message]) -> list[tuple[str, list[Json]]]:
    """OpenAI's messages as the provider's turns."""
    turns: list[tuple[str, list[Json]]] = []

    def say(role: str, blocks: list[Json]) -> None:
        if turns and turns[-1][0] == role:
            turns[-1][1].extend(blocks)
        else:
            turns.append((role, blocks))

    for one in messages:
        match one["role"]:
            case "user":
                say("user", parts(one["content"]))
            case "tool":
                say("user", [{"type": "tool_result", "tool_use_id": one["tool_call_id"], "content": parts(one["content"])}])
            case "assistant":
                calls = [
                    {
                        "type": "tool_use",
                        "id": call["id"],
                        "name": call["function"]["name"],
                        "input": json.loads(call["function"]["arguments"]),
                    }
                    for call in one.get("tool_calls", [])
                ]
                say("assistant", parts(one.get("content") or "") + calls)
    return turns


def parts(content: str | list[Json]) -> list[Json]:
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]

    def part(one: Json) -> Json:
        if one["type"] == "text":
            return one
        if not one["image_url"]["url"].startswith("data:"):
            return {"type": "image", "source": {"type": "url", "url": one["image_url"]["url"]}}
        media_type, _, data = one["image_url"]["url"].removeprefix("data:").partition(";base64,")
        return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}

    return [part(one) for one in content if one.get("text") != ""]


def image() -> Json:
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}


Start = Callable[..., Agent]


@pytest.fixture
def agent(proxy: Proxy, standin: Standin, request: pytest.FixtureRequest) -> Start:
    """Makes agents whose conversations nobody else has."""

    def make(*names: str, tools: list[Json] | None = None) -> Agent:
        tools = [tool(name) for name in names] if tools is None else tools
        return Agent(proxy, standin, tools, system(f"Test {request.node.name}"))

    return make


def test_results_go_to_the_process_that_waits(agent: Start) -> None:
    one = agent("look", "listen")
    before = one.started()
    one.call(("look", {"at": "ü€\u2028</system-reminder>"}), ("listen", {}), ("look", {"at": [1, {"x": None}]}), text="Let me.")
    calls = one.send(user("Do it"))
    assert len(calls) == 3
    one.proxy.wait_idle()
    assert one.proxy.debug()["processes"]["parked"] == 1
    one.send(result(calls[0], "  18 °C\n"), result(calls[1], "/clear @/etc/hostname"), result(calls[2], "</system-reminder>\u2028"))
    one.check()
    # And on as a plain conversation, and with further calls.
    one.send(user("/clear"))
    one.check()
    one.call(("listen", {"n": 1}))
    (call,) = one.send(user("again"))
    one.send(result(call, "x"))
    one.check()
    assert one.started() == before + 1
    assert len(one.standin.requests()) == 5


def test_results_keep_the_order_in_which_they_were_sent(agent: Start) -> None:
    one = agent("look")
    before = one.started()
    one.call(*(("look", {"n": n}) for n in range(12)))
    calls = one.send(user("Do it"))
    one.send(*(result(call, f"result {n}") for n, call in reversed(list(enumerate(calls)))))
    one.check()
    assert one.started() == before + 1


@pytest.mark.parametrize(
    ("contents", "replayed"),
    [
        ([""], True),
        (["x", ""], True),
        ([[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]], False),
        ([[{"type": "text", "text": "see"}, image()]], False),
        ([[image()]], False),
        (["row €, " * 20_000], False),
        (["y" * 470_000], False),
        (["line\n" * 70_000], False),
        (["z" * 90_000] * 5, False),
        (["y" * 600_000], True),
        (["é" * 600_000, "small"], True),
    ],
    ids=["empty", "one-empty", "two-texts", "text-and-image", "image", "160k", "470k", "lines", "5x90k", "600k", "1200k"],
)
@pytest.mark.parametrize("extra", [None, "And now?", [{"type": "text", "text": "What"}, image(), {"type": "text", "text": "@/etc/hostname"}]], ids=["", "text", "image"])
def test_any_result_arrives_as_it_was_sent(agent: Start, contents: list[object], replayed: bool, extra: object) -> None:
    one = agent("look")
    one.call(*(("look", {"n": n}) for n in range(len(contents))))
    calls = one.send(user("Do it"))
    before = one.started()
    more = [user(extra)] if extra else []
    one.send(*(result(call, content) for call, content in zip(calls, contents)), *more)
    one.check()
    assert one.started() == before + replayed
    one.send(user("Go on"))
    one.check()
    assert one.started() == before + replayed
    assert len(one.standin.requests()) == 3


def test_a_picture_elsewhere_arrives_as_its_address(agent: Start) -> None:
    """The protocol of the CLI's tools has no word for it, so it is replayed."""
    address = {"type": "image_url", "image_url": {"url": "https://example.com/a%20b.png?c=1&d"}}
    for number, content in enumerate(([address], [{"type": "text", "text": "see"}, image(), address])):
        one = agent("look")
        one.messages[0] = system(f"Pictures {number}")
        one.call(("look", {}), ("look", {}))
        calls = one.send(user("Do it"))
        before = one.started()
        one.send(result(calls[0], content), result(calls[1], "beside it"))
        one.check()
        assert one.started() == before + 1
        one.send(user([{"type": "text", "text": "And this?"}, address]))
        one.check()
        assert one.started() == before + 1


@pytest.mark.parametrize("form", ["text", "texts"])
def test_an_error_of_100_kB_arrives_whole(agent: Start, form: str) -> None:
    """Clients of this dialect have no other word for an error than the text of the result."""
    words = "Error: it failed\n  at line 7\n" * 3_600
    one = agent("look")
    one.call(("look", {}))
    (call,) = one.send(user("Do it"))
    before = one.started()
    one.send(result(call, words if form == "text" else [{"type": "text", "text": part} for part in ("Error:", words)]))
    one.check()
    one.send(user("Go on"))
    one.check()
    assert one.started() == before


def test_many_large_tools_go_up_word_for_word(agent: Start) -> None:
    functions: list[Json] = [
        {
            "name": f"tool-{number}_".ljust(64, "n"),
            "description": f"{number} €\u2028 " + "Details matter. " * 563,
            "parameters": {
                "type": "object",
                "anyOf": [{"required": ["a"]}, {"required": ["b"]}],
                "properties": {"a": {"type": "string", "description": "größer\n"}, "b": {"$ref": "#/$defs/c"}},
                "$defs": {"c": {"type": ["integer", "null"]}},
            },
            "strict": number % 2 == 0,
        }
        for number in range(128)
    ]
    one = agent(tools=[{"type": "function", "function": function} for function in functions])
    expected = [
        {"name": one["name"], "description": one["description"], "input_schema": one["parameters"]}
        | ({"strict": True} if one["strict"] else {})
        for one in functions
    ]
    before = one.started()
    for number in (127, 0, 64):
        given = {"a": "日本 \ud83d\ude00 \"quoted\" \\ \n".encode("utf-16", "surrogatepass").decode("utf-16"), "b": number}
        one.call((functions[number]["name"], given))
        (call,) = one.send(user(f"call {number}"))
        assert json.loads(call["function"]["arguments"]) == given
        assert one.standin.last().body["tools"] == expected
        one.send(result(call, "ok"))
        assert one.standin.last().body["tools"] == expected
        one.check()
    assert one.started() == before + 1


def test_the_set_of_tools_changes_between_turns(agent: Start) -> None:
    one = agent()
    before = one.started()
    one.send(user("no tools yet"))
    assert not one.standin.last().body.get("tools")
    for number in range(4):
        one.tools = [tool(f"new{number}"), tool("old", description=f"version {number}")]
        one.call((f"new{number}", {}), ("old", {}))
        calls = one.send(user(f"turn {number}"))
        assert [call["function"]["name"] for call in calls] == [f"new{number}", "old"]
        one.send(*(result(call, "fine") for call in calls), tool_choice="none")
        one.check()
        body = one.standin.last().body
        assert [sent["name"] for sent in body["tools"]] == [f"new{number}", "old"]
        assert (body["tools"][1]["description"], body["tool_choice"]["type"]) == (f"version {number}", "none")
    one.tools = []
    one.send(user("none any more"))
    assert not one.standin.last().body.get("tools")
    one.check()
    assert one.started() == before + 1


def test_the_set_of_tools_changes_while_results_are_awaited(agent: Start) -> None:
    one = agent("look")
    before = one.started()
    one.call(("look", {}), ("look", {}))
    calls = one.send(user("Do it"))
    for number in range(3):
        one.tools = [tool(f"new{number}"), tool("look", description="Another one.")]
        one.call((f"new{number}", {"n": number}))
        extra = [user("By the way")] if number == 1 else []
        calls = one.send(*(result(call, f"r{number}") for call in calls), *extra)
        assert [call["function"]["name"] for call in calls] == [f"new{number}"]
        one.check()
    one.send(*(result(call, "last") for call in calls))
    one.check()
    assert one.started() == before + 1
    assert len(one.standin.requests()) == 5


def test_options_change_while_results_are_awaited(agent: Start) -> None:
    one = agent("look")
    before = one.started()
    one.call(("look", {}))
    (call,) = one.send(user("Do it"), max_completion_tokens=5_000)
    one.call(("look", {}))
    (call,) = one.send(result(call, "r"), max_completion_tokens=5_000, temperature=0.5, stop=["never"])
    body = one.standin.last().body
    assert (body["temperature"], body["max_tokens"], body["stop_sequences"]) == (0.5, 5_000, ["never"])
    one.check()
    assert one.started() == before + 1
    # What the CLI looks at only when a turn begins takes another process.
    one.call(("look", {}))
    (call,) = one.send(result(call, "r"), reasoning_effort="low")
    body = one.standin.last().body
    assert body["thinking"]["type"] == "enabled" and body["max_tokens"] > 20_000 and "stop_sequences" not in body
    one.check()
    one.send(result(call, "r"))
    assert one.standin.last().body["thinking"]["type"] == "disabled"
    one.check()
    assert one.started() == before + 3


def test_a_call_of_no_tool_of_the_client_is_the_clients_business(agent: Start) -> None:
    one = agent("look")
    one.call(("look", {}), ("Bash", {"command": "id"}))
    calls = one.send(user("Do it"))
    assert [call["function"]["name"] for call in calls] == ["look", "Bash"]
    one.send(*(result(call, "no such tool") for call in calls))
    one.check()
    assert len(one.standin.requests()) == 2


def test_a_client_that_leaves_its_calls_alone(agent: Start) -> None:
    one = agent("look")
    one.call(("look", {}))
    calls = one.send(user("Do it"))
    before = one.started()
    # It goes back to before the calls, and later comes back with the results all the same.
    other = Agent(one.proxy, one.standin, one.tools, *one.messages[:-1])
    other.messages[-1] = user("Never mind")
    other.send()
    other.check()
    one.send(result(calls[0], "late"))
    one.check()
    assert one.started() == before + 1


def test_a_waiting_process_that_is_killed_is_not_missed(agent: Start) -> None:
    one = agent("look", "listen")
    children = one.proxy.cli_processes()
    one.call(("look", {}), ("listen", {}))
    calls = one.send(user("Do it"))
    (pid,) = one.proxy.cli_processes() - children
    os.kill(pid, signal.SIGKILL)
    one.send(result(calls[0], "a"), result(calls[1], "b"), user("well?"))
    one.check()
    one.call(("look", {}))
    (call,) = one.send(user("once more"))
    one.send(result(call, "c"))
    one.check()


def test_waiting_processes_give_way_when_memory_is_short(start: Callable[..., Proxy], standin: Standin) -> None:
    proxy = start(subscriptions=1)
    agents = [Agent(proxy, standin, [tool("look")], system(f"Agent {number}")) for number in range(4)]
    calls = []
    for one in agents:
        one.call(("look", {}), ("look", {"again": True}))
        calls.append(one.send(user("Do it")))
    proxy.wait_idle()
    assert proxy.debug()["processes"]["parked"] == 4
    config = json.loads(proxy.config_path.read_text())
    # Less than three of them take.
    config["claude"]["maxMemory"] = "256MiB"
    proxy.replace_config(config)

    def within() -> bool:
        memory = proxy.debug()["memory"]
        return memory["maxBytes"] == 256 << 20 and memory["usedBytes"] <= memory["maxBytes"]

    wait_until(within, "the processes to be within their memory", 60)
    assert proxy.debug()["processes"]["parked"] < 4
    for number, one in enumerate(agents):
        one.send(result(calls[number][0], f"a{number}"), result(calls[number][1], f"b{number}"))
        one.check()
        one.send(user("Go on"))
        one.check()


def test_the_order_of_tools_is_the_clients(agent: Start) -> None:
    one = agent("look", "listen", "think")
    before = one.started()
    for _ in range(3):
        one.tools = one.tools[1:] + one.tools[:1]
        one.call(("look", {}))
        (call,) = one.send(user("Do it"))
        one.tools = one.tools[::-1]
        one.send(result(call, "x"))
        sent = [definition["name"] for definition in one.standin.last().body["tools"]]
        assert sent == [one_tool["function"]["name"] for one_tool in one.tools]
        one.check()
    assert one.started() == before + 1


def test_a_loop_of_twenty_steps_is_one_process(agent: Start) -> None:
    one = agent("look", "listen", "think")
    before = one.started()
    one.call(("look", {"step": 0}))
    calls = one.send(user("Go"))
    for step in range(1, 20):
        one.call(*(("look", {"step": step, "n": n}) for n in range(1 + step % 4)), ("think", {}), text=f"Step {step}. ")
        calls = one.send(*(result(call, f"{step} {call['id']}") for call in calls))
        one.check()
    one.send(*(result(call, "done") for call in calls))
    one.check()
    assert one.started() == before + 1
    assert len(one.standin.requests()) == 21


def test_costs_are_counted_once(start, standin: Standin) -> None:
    proxy = start(subscriptions=1)
    one = Agent(proxy, standin, [tool("look")], system("Costs."))
    spent = [0.0]
    for step in range(4):
        one.call(("look", {}))
        (call,) = one.send(*([user("Go")] if step == 0 else [result(call, "x")]))
        spent.append(proxy.wait_idle()["status"][0]["weeklyUsed"])
    one.send(result(call, "x"))
    spent.append(proxy.wait_idle()["status"][0]["weeklyUsed"])
    one.send(user("bye"))
    spent.append(proxy.wait_idle()["status"][0]["weeklyUsed"])
    steps = [later - earlier for earlier, later in zip(spent, spent[1:])]
    assert all(0 < step < 3 * steps[0] for step in steps), steps


def test_histories_of_other_servers_go_on_here(client: OpenAI, standin: Standin) -> None:
    calls = [{"id": "functions.look:0", "type": "function", "function": {"name": "look", "arguments": "{}"}}]
    messages = [user("Look"), assistant(None, tool_calls=calls), result("functions.look:0", "seen")]
    answer = ask(client, messages, tools=[tool("look")])
    messages += [assistant(answer.choices[0].message.content), user("thanks")]
    ask(client, messages, tools=[tool("look")])
    assert len(standin.requests()) == 2
