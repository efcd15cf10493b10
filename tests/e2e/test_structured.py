"""Answers in JSON with the official client's own helpers, and thinking: what it gets, and what reached the provider."""

import json
from typing import Any, Literal

import openai
import pytest
from openai import OpenAI
from pydantic import BaseModel, Field

from harness.chat import EXACT, ask, stream, system, user
from harness.proxy import Proxy
from harness.sse import Streaming
from harness.standin import Json, Standin


class Person(BaseModel):
    name: str
    born: int | None


class City(BaseModel):
    """A city."""

    name: str = Field(description="As its people call it")
    population: int
    climate: Literal["cold", "mild", "hot"]
    mayors: list[Person]


QUESTION = [user("Which is the largest city?")]

#: A schema with bounds that the provider does not know.
BOUNDED: Json = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 30}},
    "required": ["age"],
    "additionalProperties": False,
}


def schema_format(schema: Json, **fields: Any) -> Json:
    return {"type": "json_schema", "json_schema": {"name": "it", "schema": schema} | fields}


def test_a_model_class_goes_up_as_native_structured_output(client: OpenAI, standin: Standin) -> None:
    parsed = client.chat.completions.parse(model=EXACT, messages=QUESTION, response_format=City)
    city = parsed.choices[0].message.parsed
    assert isinstance(city, City)
    assert json.loads(parsed.choices[0].message.content or "") == city.model_dump()
    assert parsed.choices[0].message.refusal is None
    request = standin.only()
    sent = request.body["output_config"]["format"]
    assert sent["type"] == "json_schema"
    assert sent["schema"]["required"] == ["name", "population", "climate", "mayors"]
    assert sent["schema"]["additionalProperties"] is False
    person = sent["schema"]["properties"]["mayors"]["items"]
    assert person["properties"]["born"]["anyOf"] == [{"type": "integer"}, {"type": "null"}]
    assert person["additionalProperties"] is False
    # The provider holds the answer to it: nothing is said of it in words.
    assert request.system() == [] and request.texts() == [("user", "Which is the largest city?")]


def test_a_model_class_is_streamed_as_it_comes(client: OpenAI, standin: Standin) -> None:
    words = '{"name": "Ur", "population": 7, "climate": "hot", "mayors": []}'
    standin.script({"type": "text", "text": words, "chunk_delay_ms": 20})
    deltas = []
    with client.chat.completions.stream(model=EXACT, messages=QUESTION, response_format=City) as events:
        for event in events:
            if event.type == "content.delta":
                deltas.append(event.delta)
        final = events.get_final_completion()
    assert final.choices[0].message.parsed == City(name="Ur", population=7, climate="hot", mayors=[])
    assert "".join(deltas) == words and len(deltas) > 5


def test_a_wrong_answer_is_asked_for_once_more(client: OpenAI, standin: Standin) -> None:
    standin.script({"type": "text", "text": '{"age": 3}'}, times=1)
    standin.script({"type": "text", "text": '{"age": 33}'}, times=1)
    answer = ask(client, "How old?", response_format=schema_format(BOUNDED))
    assert json.loads(answer.choices[0].message.content or "") == {"age": 33}
    first, second = standin.requests()
    # The bound is told in words, and checked here.
    age = first.body["output_config"]["format"]["schema"]["properties"]["age"]
    assert "minimum" not in age and '"minimum":30' in age["description"]
    assert first.texts() == [("user", "How old?")]
    assert second.texts()[:2] == [("user", "How old?"), ("assistant", '{"age": 3}')]
    role, note = second.texts()[2]
    assert role == "user" and "at '/age': 3 is less than the minimum of 30" in note
    assert second.body["output_config"] == first.body["output_config"]
    # Both were paid for.
    assert answer.usage and answer.usage.completion_tokens == 4


def test_two_wrong_answers_are_an_error(client: OpenAI, standin: Standin) -> None:
    standin.script({"type": "text", "text": '{"age": 3}'})
    with pytest.raises(openai.InternalServerError) as caught:
        ask(client, "How old?", response_format=schema_format(BOUNDED))
    assert (caught.value.status_code, caught.value.code, caught.value.param) == (502, "invalid_output", "response_format")
    assert "less than the minimum of 30" in caught.value.message
    # The official client does not try it twice more by itself.
    assert caught.value.response.headers["x-should-retry"] == "false"
    assert len(standin.requests()) == 2


def test_a_wrong_stream_ends_with_an_error_and_without_its_last_chunk(proxy: Proxy, standin: Standin) -> None:
    standin.script({"type": "text", "text": '{"age": 3}'})
    streaming = Streaming(proxy.url, {"model": EXACT, "messages": QUESTION, "response_format": schema_format(BOUNDED)})
    streaming.wait_for_end()
    assert streaming.text == '{"age": 3}'
    last = streaming.chunks[-1]
    assert last["error"]["code"] == "invalid_output" and "minimum of 30" in last["error"]["message"]
    assert "[DONE]" not in streaming.frames
    assert not any(choice["finish_reason"] for chunk in streaming.chunks[:-1] for choice in chunk["choices"])
    assert len(standin.requests()) == 1


@pytest.mark.parametrize("streamed", [False, True])
def test_any_object_is_asked_for_in_words(client: OpenAI, standin: Standin, streamed: bool) -> None:
    standin.script({"type": "text", "text": '```json\n{"any": ["thing"]}\n```'})
    messages = [system("Be brief."), user("Give me JSON")]
    options: Json = {"response_format": {"type": "json_object"}}
    if streamed:
        text = stream(client, messages, **options).text
    else:
        text = ask(client, messages, **options).choices[0].message.content or ""
    # Models like to put a fence around it.
    assert text == '{"any": ["thing"]}'
    request = standin.only()
    assert "format" not in request.body.get("output_config", {})
    told = "\n".join(request.system())
    assert told.startswith("Be brief.") and "one JSON object and with nothing else" in told


def test_what_is_no_object_is_asked_for_once_more(client: OpenAI, standin: Standin) -> None:
    standin.script({"type": "text", "text": "Of course! Here it is: {}"}, times=1)
    standin.script({"type": "text", "text": '{"sorry": true}'}, times=1)
    answer = ask(client, "Give me JSON", response_format={"type": "json_object"})
    assert json.loads(answer.choices[0].message.content or "") == {"sorry": True}
    assert "not valid JSON" in standin.requests()[1].texts()[2][1]


def test_a_schema_beyond_the_providers_is_asked_for_in_words(client: OpenAI, standin: Standin) -> None:
    tree: Json = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "parts": {"type": "array", "items": {"$ref": "#"}}},
        "required": ["name", "parts"],
        "additionalProperties": False,
    }
    standin.script({"type": "text", "text": '{"name": "a", "parts": [{"name": "b", "parts": []}]}'})
    answer = ask(client, "Take it apart", response_format=schema_format(tree, strict=True))
    assert json.loads(answer.choices[0].message.content or "")["parts"][0]["name"] == "b"
    request = standin.only()
    assert "format" not in request.body.get("output_config", {})
    assert json.loads("\n".join(request.system()).splitlines()[-1]) == tree


def test_a_refusal_has_its_own_field(client: OpenAI, standin: Standin) -> None:
    standin.script({"type": "refusal", "text": "I cannot help with that."})
    parsed = client.chat.completions.parse(model=EXACT, messages=QUESTION, response_format=City)
    message = parsed.choices[0].message
    assert message.refusal and message.parsed is None and message.content is None
    assert parsed.choices[0].finish_reason == "stop"


def test_an_answer_that_was_cut_is_the_clients_to_see(client: OpenAI, standin: Standin) -> None:
    standin.script({"type": "max_tokens", "after_deltas": 2})
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model=EXACT, messages=QUESTION, response_format=City)
    assert len(standin.requests()) == 1


def test_calls_and_structured_answers_go_together(client: OpenAI, standin: Standin) -> None:
    tool: Json = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}
    answer = ask(client, "call look", tools=[tool], response_format=schema_format(BOUNDED))
    assert answer.choices[0].finish_reason == "tool_calls" and answer.choices[0].message.tool_calls
    assert standin.only().body["output_config"]["format"]["type"] == "json_schema"


@pytest.mark.parametrize(
    ("schema", "param"),
    [
        ({"type": "array", "items": {"type": "string"}}, ""),
        ({"type": "object", "properties": {}}, ".additionalProperties"),
        (BOUNDED | {"required": []}, ".required"),
    ],
)
def test_a_strict_schema_follows_openais_rules(client: OpenAI, standin: Standin, schema: Json, param: str) -> None:
    with standin.untouched(), pytest.raises(openai.BadRequestError) as caught:
        ask(client, "Hello", response_format=schema_format(schema, strict=True))
    assert caught.value.param == f"response_format.json_schema.schema{param}"


@pytest.mark.parametrize(
    "schema",
    [{"$ref": "#"}, {"$ref": "file:///etc/passwd"}, {"type": "objekt"}, {"type": "object", "patternProperties": {"(": {}}}],
)
def test_a_schema_that_is_none_is_refused(client: OpenAI, standin: Standin, schema: Json) -> None:
    with standin.untouched(), pytest.raises(openai.BadRequestError) as caught:
        ask(client, "Hello", response_format=schema_format(schema))
    assert caught.value.param == "response_format.json_schema.schema"


def test_a_schema_leaves_the_effort_in_place(client: OpenAI, standin: Standin) -> None:
    standin.script({"type": "text", "text": '{"age": 40}'})
    ask(client, "How old?", "claude-opus-4-8", reasoning_effort="high", response_format=schema_format(BOUNDED))
    config = standin.only().body["output_config"]
    assert config["effort"] == "high" and config["format"]["type"] == "json_schema"


EFFORTS = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh"}
BUDGETS = {"minimal": 2048, "low": 2048, "medium": 8192, "high": 16384, "xhigh": 31999}


@pytest.mark.parametrize("word", EFFORTS)
def test_reasoning_effort_is_the_models_effort_or_budget(client: OpenAI, standin: Standin, word: str) -> None:
    ask(client, "Hello", model="claude-opus-4-8", reasoning_effort=word)
    ask(client, "Hello", reasoning_effort=word)
    adaptive, budgeted = (request.body for request in standin.requests())
    assert adaptive["thinking"]["type"] == "adaptive" and adaptive["output_config"]["effort"] == EFFORTS[word]
    assert budgeted["thinking"]["type"] == "enabled" and budgeted["thinking"]["budget_tokens"] == BUDGETS[word]


@pytest.mark.parametrize("options", [{}, {"reasoning_effort": "none"}])
@pytest.mark.parametrize("model", [EXACT, "claude-opus-4-8"])
def test_who_does_not_ask_for_thinking_gets_none(client: OpenAI, standin: Standin, options: Json, model: str) -> None:
    seen = stream(client, "Hello", model=model, **options)
    assert standin.only().body["thinking"] == {"type": "disabled"}
    deltas = [choice.delta.model_extra or {} for chunk in seen.chunks for choice in chunk.choices]
    assert not any("reasoning_content" in extra for extra in deltas)


def test_thinking_is_streamed_before_the_answer(client: OpenAI, standin: Standin) -> None:
    standin.script({"type": "thinking", "thinking": "One and one and two.", "text": "Four."})
    seen = stream(client, "How much?", reasoning_effort="low", stream_options={"include_usage": True})
    deltas = [choice.delta for chunk in seen.chunks for choice in chunk.choices]
    thoughts = [(delta.model_extra or {}).get("reasoning_content") for delta in deltas]
    assert "".join(filter(None, thoughts)) == "One and one and two." and len(list(filter(None, thoughts))) > 1
    assert seen.text == "Four."
    first_word = next(index for index, delta in enumerate(deltas) if delta.content)
    assert not any(thoughts[first_word:])


def test_thinking_that_was_not_asked_for_stays_here(client: OpenAI, standin: Standin) -> None:
    standin.script({"type": "thinking", "thinking": "Hm.", "text": "Four."})
    message = ask(client, "How much?").choices[0].message
    assert message.content == "Four." and "reasoning_content" not in (message.model_extra or {})
