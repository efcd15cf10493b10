"""Short words for what most tests do with the official client."""

import time
from dataclasses import dataclass, field
from typing import Any

from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

#: A model that both CLI builds know under this very name, that takes a temperature, and whose thinking can be off.
EXACT = "claude-sonnet-4-5"

Message = dict[str, Any]


def user(content: Any) -> Message:
    return {"role": "user", "content": content}


def assistant(content: Any, **fields: Any) -> Message:
    return {"role": "assistant", "content": content} | fields


def system(content: Any) -> Message:
    return {"role": "system", "content": content}


def ask(client: OpenAI, messages: str | list[Message], model: str = EXACT, **options: Any) -> ChatCompletion:
    """A whole answer to one question, or to a conversation."""
    if isinstance(messages, str):
        messages = [user(messages)]
    return client.chat.completions.create(model=model, messages=messages, **options)


def served_by(client: OpenAI, messages: str | list[Message], model: str = EXACT, **options: Any) -> str:
    """Asks, and tells which subscription answered."""
    if isinstance(messages, str):
        messages = [user(messages)]
    raw = client.chat.completions.with_raw_response.create(model=model, messages=messages, **options)
    assert raw.parse().choices[0].message.content is not None
    return raw.headers["x-auth-pool-subscription"]


@dataclass
class Streamed:
    """A streamed answer, piece by piece, with the moment each piece arrived."""

    chunks: list[ChatCompletionChunk] = field(default_factory=list)
    times: list[float] = field(default_factory=list)

    @property
    def pieces(self) -> list[str]:
        """The pieces of text, in order; the empty one that comes with the role is not one."""
        return [piece for chunk in self.chunks for choice in chunk.choices if (piece := choice.delta.content)]

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def finish_reasons(self) -> list[str]:
        return [choice.finish_reason for chunk in self.chunks for choice in chunk.choices if choice.finish_reason]


def stream(client: OpenAI, messages: str | list[Message], model: str = EXACT, **options: Any) -> Streamed:
    """A streamed answer, to its end."""
    if isinstance(messages, str):
        messages = [user(messages)]
    seen = Streamed()
    for chunk in client.chat.completions.create(model=model, messages=messages, stream=True, **options):
        seen.times.append(time.monotonic())
        seen.chunks.append(chunk)
    return seen
