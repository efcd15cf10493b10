"""Function calling: the client's tools go up word for word, calls come back, results go up as results."""

import json

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessage

from harness.chat import EXACT, ask, stream, user
from harness.standin import Json, Standin

WEATHER: Json = {
    "name": "get_weather",
    # Longer than what the CLI would pass on by its own means.
    "description": "Tells the weather. " + "Details matter. " * 600,
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "minLength": 1},
            "unit": {"anyOf": [{"const": "C"}, {"const": "F"}], "default": "C"},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
TIME: Json = {"name": "Get-Time_2", "parameters": {"type": "object", "properties": {"zone": {"type": "string"}}}}
TOOLS: list[Json] = [{"type": "function", "function": function} for function in (WEATHER, TIME)]

#: The same two as the provider writes them.
UPSTREAM_TOOLS: list[Json] = [
    {
        "name": WEATHER["name"],
        "description": WEATHER["description"],
        "input_schema": WEATHER["parameters"],
        "strict": True,
    },
    {"name": TIME["name"], "input_schema": TIME["parameters"]},
]

QUESTION = 'Please call get_weather {"city":"Paris","unit":"C"} and call Get-Time_2 {"zone":"Europe/Paris"}'
ARGUMENTS: list[Json] = [{"city": "Paris", "unit": "C"}, {"zone": "Europe/Paris"}]


def calls_of(message: ChatCompletionMessage) -> list[tuple[str, Json]]:
    return [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]


def test_calls_come_back_and_results_go_up(client: OpenAI, standin: Standin) -> None:
    answer = ask(client, QUESTION, tools=TOOLS)
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert calls_of(choice.message) == [("get_weather", ARGUMENTS[0]), ("Get-Time_2", ARGUMENTS[1])]
    assert standin.only().body["tools"] == UPSTREAM_TOOLS

    ids = [call.id for call in choice.message.tool_calls]
    messages = [
        user(QUESTION),
        choice.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": ids[0], "content": "  18 °C, sunny\n"},
        {"role": "tool", "tool_call_id": ids[1], "content": "12:00"},
    ]
    answer = ask(client, messages, tools=TOOLS)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.content == "The tool said: 18 °C, sunny; 12:00. (turn 2)"

    # A turn that calls tools ends there: the CLI does not answer for the client, and does not ask again.
    _, request = standin.requests()
    question, calls, results = request.turns()
    assert (question.role, question.text) == ("user", QUESTION)
    assert calls.role == "assistant"
    assert [(block["type"], block["id"], block["name"], block["input"]) for block in calls.blocks] == [
        ("tool_use", ids[0], "get_weather", ARGUMENTS[0]),
        ("tool_use", ids[1], "Get-Time_2", ARGUMENTS[1]),
    ]
    assert results.role == "user"
    assert [(block["type"], block["tool_use_id"], text_of(block)) for block in results.blocks] == [
        ("tool_result", ids[0], "  18 °C, sunny\n"),
        ("tool_result", ids[1], "12:00"),
    ]


def text_of(result: Json) -> str:
    content = result["content"]
    return content if isinstance(content, str) else "".join(block["text"] for block in content)


def test_calls_are_streamed(client: OpenAI, standin: Standin) -> None:
    seen = stream(client, QUESTION, tools=TOOLS, stream_options={"include_usage": True})
    assert seen.finish_reasons == ["tool_calls"]
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    ids: dict[int, str] = {}
    for chunk in seen.chunks:
        for delta in (delta for choice in chunk.choices for delta in choice.delta.tool_calls or []):
            if delta.function.name:
                assert delta.index not in names and delta.id
                names[delta.index], ids[delta.index] = delta.function.name, delta.id
            arguments[delta.index] = arguments.get(delta.index, "") + (delta.function.arguments or "")
    assert names == {0: "get_weather", 1: "Get-Time_2"}
    assert [json.loads(arguments[index]) for index in (0, 1)] == ARGUMENTS
    assert len(set(ids.values())) == 2
    assert seen.chunks[-1].usage and seen.chunks[-1].usage.completion_tokens > 0
    assert standin.only().body["tools"] == UPSTREAM_TOOLS


def test_text_and_calls_in_one_answer(client: OpenAI, standin: Standin) -> None:
    action = {"type": "tool_use", "text": "Let me look. ", "calls": [{"name": "get_weather", "input": {"city": "Rome"}}]}
    standin.script(action, times=1)
    message = ask(client, "What is it like in Rome?", tools=TOOLS).choices[0].message
    assert message.content == "Let me look. "
    assert calls_of(message) == [("get_weather", {"city": "Rome"})]


@pytest.mark.parametrize(
    ("choice", "parallel", "upstream", "called"),
    [
        ("required", None, {"type": "any"}, ["get_weather"]),
        ({"type": "function", "function": {"name": "Get-Time_2"}}, None, {"type": "tool", "name": "Get-Time_2"}, ["Get-Time_2"]),
        ("none", None, {"type": "none"}, []),
        ("auto", False, {"type": "auto", "disable_parallel_tool_use": True}, ["get_weather"]),
    ],
    ids=["required", "named", "none", "one-at-a-time"],
)
def test_the_choice_of_a_tool_goes_up(
    client: OpenAI, standin: Standin, choice: str | Json, parallel: bool | None, upstream: Json, called: list[str]
) -> None:
    options = {} if parallel is None else {"parallel_tool_calls": parallel}
    text = QUESTION if choice in ("auto", "none") else "Hello"
    message = ask(client, text, tools=TOOLS, tool_choice=choice, **options).choices[0].message
    assert [name for name, _ in calls_of(message)] == called
    sent = standin.only().body["tool_choice"]
    assert {key: sent[key] for key in upstream} == upstream


def test_a_large_and_an_empty_result_arrive_whole(client: OpenAI, standin: Standin) -> None:
    """The CLI shortens what its own tools return; what a client's tool returned is not its business."""
    large = "row €, " * 20_000
    calls = [
        {"id": f"call_{number}", "type": "function", "function": {"name": "get_weather", "arguments": "{}"}}
        for number in range(2)
    ]
    messages = [
        user("Look"),
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_0", "content": large},
        {"role": "tool", "tool_call_id": "call_1", "content": ""},
        user("Well?"),
    ]
    ask(client, messages, tools=TOOLS)
    first, second, text = standin.only().turns()[-1].blocks
    assert (first["tool_use_id"], text_of(first)) == ("call_0", large)
    assert second["tool_use_id"] == "call_1" and text_of({"content": second.get("content") or ""}) == ""
    assert text == {"type": "text", "text": "Well?"}
