"""Chat completions with the official client, unchanged: what it gets, and what reached the provider."""

import base64

import pytest
from openai import OpenAI

from harness.chat import EXACT, ask, assistant, stream, system, user
from harness.standin import Standin, Turn

#: A picture of one pixel.
PNG = (
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)


def test_models_are_listed_and_found(client: OpenAI) -> None:
    names = {model.id for model in client.models.list()}
    assert {"opus", "sonnet", "haiku", "gpt-4o", EXACT} <= names
    model = client.models.retrieve("gpt-4o")
    assert (model.id, model.object, model.owned_by) == ("gpt-4o", "model", "anthropic")


def test_an_answer_and_its_usage(client: OpenAI, standin: Standin) -> None:
    answer = ask(client, "Hello there")
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == "You said: Hello there. (turn 1)"
    assert choice.finish_reason == "stop"
    assert (answer.object, answer.model) == ("chat.completion", EXACT)
    assert answer.id.startswith("chatcmpl-")
    usage = answer.usage
    assert usage and usage.completion_tokens == 6
    assert usage.prompt_tokens > 2 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    request = standin.only()
    assert request.texts() == [("user", "Hello there")]
    assert request.body["model"] == EXACT
    # Nobody asked for thinking, so nobody pays for it.
    assert request.body["thinking"] == {"type": "disabled"}


def test_a_stream_has_its_parts_in_order_and_as_they_arrive(client: OpenAI, standin: Standin) -> None:
    standin.script({"type": "text", "count": 10, "chunk_delay_ms": 60})
    seen = stream(client, "Count", stream_options={"include_usage": True})
    first, *middle, last, usage = seen.chunks
    assert first.choices[0].delta.role == "assistant" and not first.choices[0].delta.content
    assert seen.pieces == [f"tok{number} " for number in range(10)]
    assert all(not chunk.choices[0].finish_reason for chunk in (first, *middle))
    assert last.choices[0].finish_reason == "stop"
    assert usage.choices == [] and usage.usage and usage.usage.completion_tokens == 10
    assert all(chunk.usage is None for chunk in (first, *middle, last))
    assert len({chunk.id for chunk in seen.chunks}) == 1
    # The stand-in takes 540 ms from the first word to the last; collected chunks would come within a few.
    arrivals = seen.times[1:-2]
    assert arrivals[-1] - arrivals[0] > 0.4
    gaps = [later - earlier for earlier, later in zip(arrivals, arrivals[1:], strict=False)]
    assert sorted(gaps)[len(gaps) // 2] > 0.03, gaps


def test_a_stream_without_the_option_has_no_usage(client: OpenAI) -> None:
    seen = stream(client, "Hello")
    assert seen.text == "You said: Hello. (turn 1)"
    assert seen.finish_reasons == ["stop"]
    assert all(chunk.usage is None for chunk in seen.chunks)


def test_cached_tokens_are_told_streamed_or_not(client: OpenAI) -> None:
    prompt = [system("A long and steady system prompt. " * 400), user("Hello")]
    options = {"extra_body": {"session_id": "cache"}}
    cold = ask(client, prompt, **options).usage
    warm = ask(client, prompt, **options).usage
    streamed = stream(client, prompt, stream_options={"include_usage": True}, **options).chunks[-1].usage
    for usage in (cold, warm, streamed):
        assert usage and usage.prompt_tokens_details
    # What the CLI says of itself was here before.
    assert cold.prompt_tokens_details.cached_tokens < 100
    assert warm.prompt_tokens_details.cached_tokens > 3000
    assert streamed.prompt_tokens_details.cached_tokens == warm.prompt_tokens_details.cached_tokens
    assert cold.prompt_tokens == warm.prompt_tokens == streamed.prompt_tokens


def test_a_conversation_reaches_upstream_as_true_turns(client: OpenAI, standin: Standin) -> None:
    messages = [system("Be brief.")]
    for question in ("First question", "Second question  ", "Third\n\nquestion"):
        messages.append(user(question))
        answer = ask(client, messages)
        messages.append(assistant(answer.choices[0].message.content))
    assert messages[-1]["content"].endswith("(turn 3)")
    last = standin.last()
    assert last.system() == ["Be brief."]
    assert last.texts() == [
        ("user", "First question"),
        ("assistant", "You said: First question. (turn 1)"),
        ("user", "Second question  "),
        ("assistant", "You said: Second question. (turn 2)"),
        ("user", "Third\n\nquestion"),
    ]
    assert len(standin.requests()) == 3


def test_a_long_history_in_every_script_arrives_intact(client: OpenAI, standin: Standin) -> None:
    scripts = ["naïve café", "日本語と中文", "עברית וערבית العربية", "👩‍👩‍👧‍👦🏳️‍🌈", "a\u2028b\u0000c\ttab \r\n end"]
    messages = []
    for number in range(25):
        text = f"{number}: {scripts[number % len(scripts)]}"
        messages += [user(text), assistant(f"answer {text}")]
    messages.append(user("and now?"))
    ask(client, messages)
    assert standin.only().texts() == [(message["role"], message["content"]) for message in messages]


@pytest.mark.parametrize("size", [140_000, 900_000])
def test_a_large_prompt_arrives_whole(client: OpenAI, standin: Standin, size: int) -> None:
    line = "The quick brown fox, €, jumps over \"the\" lazy dog.\n"
    prompt = (line * (size // len(line) + 1))[:size]
    ask(client, prompt)
    assert standin.only().texts() == [("user", prompt)]


def test_several_system_messages_are_one_prompt(client: OpenAI, standin: Standin) -> None:
    ask(client, [system("First rule."), {"role": "developer", "content": "Second rule."}, user("Hello")])
    assert standin.only().system() == ["First rule.\n\nSecond rule."]


def test_images_arrive_as_they_were_sent(client: OpenAI, standin: Standin) -> None:
    url = "https://example.com/a%20picture.png?x=1&y=2"
    content = [
        {"type": "text", "text": "Compare"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
        {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
        {"type": "text", "text": "these two"},
    ]
    answer = ask(client, [user(content)])
    assert answer.choices[0].message.content.endswith("(turn 1, 2 images)")
    assert standin.only().turns() == [
        Turn(
            "user",
            [
                {"type": "text", "text": "Compare"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}},
                {"type": "image", "source": {"type": "url", "url": url}},
                {"type": "text", "text": "these two"},
            ],
        )
    ]
    assert base64.b64decode(PNG).startswith(b"\x89PNG")


def test_sampling_options_reach_upstream(client: OpenAI, standin: Standin) -> None:
    ask(client, "Hello", temperature=0.3, top_p=0.9, stop=["END", "STOP"])
    body = standin.only().body
    assert (body["temperature"], body["top_p"], body["stop_sequences"]) == (0.3, 0.9, ["END", "STOP"])


def test_a_stop_text_ends_the_answer(client: OpenAI) -> None:
    answer = ask(client, "one two STOP three", stop="STOP")
    assert answer.choices[0].message.content == "You said: one two "
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("streamed", [False, True])
def test_a_length_limit_ends_the_answer_after_one_request(
    client: OpenAI, standin: Standin, streamed: bool
) -> None:
    if streamed:
        seen = stream(client, "a b c d e f g", max_completion_tokens=4)
        assert (seen.text, seen.finish_reasons) == ("You said: a b ", ["length"])
    else:
        choice = ask(client, "a b c d e f g", max_tokens=4).choices[0]
        assert (choice.message.content, choice.finish_reason) == ("You said: a b ", "length")
    # The CLI would ask to go on. The next request makes sure that the time for it has passed.
    ask(client, "another")
    first, second = standin.requests()
    assert first.body["max_tokens"] == 4
    assert second.texts() == [("user", "another")]


def test_reasoning_effort_reaches_upstream_and_thinking_comes_back(client: OpenAI, standin: Standin) -> None:
    ask(client, "Hello", reasoning_effort="low")
    assert standin.only().body["thinking"]["type"] == "enabled"
    answer = ask(client, "Hello", model="claude-opus-4-8", reasoning_effort="low")
    body = standin.last().body
    assert body["output_config"]["effort"] == "low"
    assert body["thinking"]["type"] == "adaptive"
    assert answer.choices[0].message.model_extra["reasoning_content"] == "Let me think about this."


def test_an_openai_model_name_stands_for_what_the_configuration_says(client: OpenAI, standin: Standin) -> None:
    answer = ask(client, "Hello", model="gpt-4o")
    assert answer.model == "gpt-4o"
    assert standin.only().body["model"].startswith("claude-sonnet-5")


def test_the_cli_sends_nothing_of_its_own(client: OpenAI, standin: Standin) -> None:
    """No title requests, no token counts, no retries: a request costs one request."""
    for number in range(3):
        ask(client, f"Question {number}")
    assert [request.path.split("?")[0] for request in standin.requests()] == ["/v1/messages"] * 3
