"""Conversations whose every answer is known beforehand, so that a wrong one is seen at once.

Each turn says a word that was never said before (its nonce), and the stand-in repeats what it hears: `You said: Say
<nonce>. (turn 3)`. The answer has to be exactly that: another nonce is another client's answer, another number of turns
another history.
"""

import asyncio
import json
import random
import secrets
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import httpx

Json = dict[str, Any]

MODEL = "claude-sonnet-4-5"
#: What a pool in trouble may answer; everything else is a mistake.
PASSING = {429, 502, 503, 504}
#: What a server answers that does not know the session any more.
FORGOTTEN = 409
#: How often a turn is tried before it counts as lost.
TRIES = 60

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"To {name} for something",
            "parameters": {"type": "object", "properties": {"q": {"type": "string"}}, "required": ["q"]},
        },
    }
    for name in ("look", "search")
]


class Wrong(Exception):
    """An answer that must not be."""


class Passing(Exception):
    """An error that a client has to live with: it comes again."""


@dataclass
class Tally:
    """What happened, counted."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, what: str) -> None:
        self.counts[what] += 1


@dataclass
class Habits:
    """How likely a client does what."""

    leaves: float = 0.08
    streams: float = 0.5
    calls_tools: float = 0.25
    regenerates: float = 0.08
    names_its_session: float = 0.5
    sends_only_what_is_new: float = 0.3
    pause: float = 0.3


class Conversation:
    """One client's conversation; the client keeps the history, as OpenAI's clients do.

    Some name a session and send only what is new. Whenever such a client cannot know what the server has heard, it sends
    everything once more.
    """

    def __init__(self, number: int, url: str, key: str, tally: Tally, habits: Habits, with_tools: bool) -> None:
        self.number, self.url, self.key, self.tally, self.habits = number, url, key, tally, habits
        self.history: list[Json] = []
        self.turns = 0
        self.options: Json = {"tools": TOOLS} if with_tools else {}
        self.in_session = random.random() < habits.sends_only_what_is_new
        #: Whether the server knows all that was said up to the last answer, and nothing else.
        self.is_known = True
        if self.in_session:
            self.options["session_id"] = self.new_name()
            tally.add("conversations of which only what is new is sent")
        elif random.random() < habits.names_its_session:
            self.options["prompt_cache_key"] = self.new_name()

    def new_name(self) -> str:
        return f"session-{self.number}-{secrets.token_hex(4)}"

    def nonce(self) -> str:
        return f"n{self.number:06d}x{self.turns}x{secrets.token_hex(4)}"

    async def turn(self) -> None:
        """One question, and for calls of tools their results, until the answer is there."""
        begun = len(self.history)
        if "tools" in self.options and random.random() < self.habits.calls_tools:
            await self.call_tools()
        else:
            await self.say()
        if random.random() < self.habits.regenerates:
            # Another question in its place, as if the user had edited it.
            del self.history[begun:]
            self.is_known = False
            if self.in_session and not begun:
                # One turn alone would be taken for the next one.
                self.options["session_id"] = self.new_name()
            self.tally.add("regenerated")
            await self.say()
        self.turns += 1
        self.tally.add("turns")

    async def say(self) -> None:
        text = f"Say {self.nonce()}"
        self.history.append({"role": "user", "content": text})
        answer = await self.answered()
        self.expect(answer, f"You said: {text}. (turn {self.spoken() + 1})", [])

    async def call_tools(self) -> None:
        nonce = self.nonce()
        names = random.choice([["look"], ["look", "search"]])
        asked = " ".join(f'call {name} {{"q": "{name} {nonce}"}}' for name in names)
        self.history.append({"role": "user", "content": asked})
        answer = await self.answered()
        self.expect(answer, None, [(name, {"q": f"{name} {nonce}"}) for name in names])
        results = [f"{name} found {nonce}" for name in names]
        for call, result in zip(answer["tool_calls"], results, strict=True):
            self.history.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        self.tally.add("tool results")
        answer = await self.answered()
        self.expect(answer, f"The tool said: {'; '.join(results)}. (turn {self.spoken() + 1})", [])

    def spoken(self) -> int:
        """How often the model has spoken, the last answer not counted."""
        return sum(message["role"] == "assistant" for message in self.history)

    def expect(self, answer: Json, text: str | None, calls: list[tuple[str, Json]]) -> None:
        content = answer.get("content") or None
        made = [
            (call["function"]["name"], json.loads(call["function"]["arguments"]))
            for call in answer.get("tool_calls") or []
        ]
        if content != text or made != calls:
            raise Wrong(f"conversation {self.number}: expected {text!r} {calls}, got {content!r} {made}")
        self.history.append({"role": "assistant", "content": content} | ({"tool_calls": answer["tool_calls"]} if made else {}))

    async def answered(self) -> Json:
        for attempt in range(TRIES):
            try:
                if random.random() < self.habits.leaves:
                    await self.leave()
                answer = await (self.streamed() if random.random() < self.habits.streams else self.whole())
                self.is_known = True
                return answer
            except Passing as error:
                self.is_known = False
                self.tally.add(f"error {error}")
                await asyncio.sleep(min(0.2 * (attempt + 1), 1.5))
        raise Wrong(f"conversation {self.number}: no answer within {TRIES} attempts")

    def body(self, stream: bool) -> Json:
        messages = self.history
        if self.in_session and self.is_known:
            spoken = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
            messages = messages[spoken[-1] + 1 :] if spoken else messages
            if spoken:
                self.tally.add("turns sent without what was said before")
        return {"model": MODEL, "messages": messages, "stream": stream} | self.options

    def client(self) -> httpx.AsyncClient:
        # A connection of its own each time: what stays open is the server's doing.
        return httpx.AsyncClient(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, trust_env=False, timeout=180
        )

    async def whole(self) -> Json:
        async with self.client() as client:
            answer = await client.post("/v1/chat/completions", json=self.body(False))
        self.check_status(answer)
        return answer.json()["choices"][0]["message"]

    async def streamed(self) -> Json:
        message: Json = {"content": ""}
        calls: dict[int, Json] = {}
        async with self.client() as client:
            async with client.stream("POST", "/v1/chat/completions", json=self.body(True)) as answer:
                if answer.status_code != 200:
                    await answer.aread()
                self.check_status(answer)
                async for line in answer.aiter_lines():
                    if line == "data: [DONE]":
                        message["tool_calls"] = [calls[index] for index in sorted(calls)]
                        return message
                    if not line.startswith("data: "):
                        continue
                    frame = json.loads(line.removeprefix("data: "))
                    if "error" in frame:
                        raise Passing(f"{frame['error']['code']} in mid-stream")
                    for choice in frame["choices"]:
                        self.gather(choice["delta"], message, calls)
        raise Wrong(f"conversation {self.number}: a stream ended without its end: {message}")

    @staticmethod
    def gather(delta: Json, message: Json, calls: dict[int, Json]) -> None:
        message["content"] += delta.get("content") or ""
        for piece in delta.get("tool_calls") or []:
            empty = {"id": "", "type": "function", "function": {"name": "", "arguments": ""}}
            call = calls.setdefault(piece["index"], empty)
            call["id"] += piece.get("id") or ""
            for name in ("name", "arguments"):
                call["function"][name] += piece["function"].get(name) or ""

    def check_status(self, answer: httpx.Response) -> None:
        if answer.status_code == 200:
            return
        if answer.status_code in PASSING or (answer.status_code == FORGOTTEN and self.in_session):
            raise Passing(f"{answer.status_code} {answer.json()['error']['code']}")
        raise Wrong(f"conversation {self.number}: {answer.status_code} {answer.text[:500]}")

    async def leave(self) -> None:
        """Asks, and goes away at some moment; then everything is as if nothing had been asked."""
        self.tally.add("left")
        stream = random.random() < 0.7
        ask = self.streamed() if stream else self.whole()
        try:
            await asyncio.wait_for(ask, random.choice([0.01, 0.05, 0.2, 0.5, 1.0]))
        except (TimeoutError, Passing):
            pass
        # It may have been answered all the same.
        self.is_known = False
