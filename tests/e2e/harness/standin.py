"""The stand-in for the Anthropic API, and what reached it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from harness.daemon import Daemon
from harness.waiting import wait_until

Json = dict[str, Any]

#: How a token has to look for the stand-in to know its bearer by name.
TOKEN = "sk-ant-oat01-fake-"

#: What the CLI puts between the client's own blocks begins so.
REMINDER = "<system-reminder>"


@dataclass(frozen=True)
class Turn:
    """One message upstream, without what the CLI adds to it."""

    role: str
    blocks: list[Json]

    @property
    def text(self) -> str:
        """Its text; fails unless text is all there is."""
        assert all(block["type"] == "text" for block in self.blocks), self.blocks
        return "".join(block["text"] for block in self.blocks)


@dataclass(frozen=True)
class Upstream:
    """A request as the CLI sent it."""

    number: int
    path: str
    bearer: str
    body: Json
    status: int | None
    outcome: str

    def turns(self) -> list[Turn]:
        """The conversation as the client gave it: the CLI's reminders and cache marks taken away."""
        turns = [
            Turn(message["role"], [_plain(block) for block in _blocks(message) if not _is_reminder(block)])
            for message in self.body["messages"]
            if message["role"] != "system"
        ]
        return [turn for turn in turns if turn.blocks]

    def texts(self) -> list[tuple[str, str]]:
        """Role and text of every turn."""
        return [(turn.role, turn.text) for turn in self.turns()]

    def system(self) -> list[str]:
        """The client's system prompt: what follows the CLI's two blocks about itself."""
        return [block["text"] for block in self.body["system"][2:]]


def _blocks(message: Json) -> list[Json]:
    content = message["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _is_reminder(block: Json) -> bool:
    return block["type"] == "text" and block["text"].startswith(REMINDER)


def _plain(block: Json) -> Json:
    return {key: value for key, value in block.items() if key != "cache_control"}


class Standin:
    """A running stand-in and its controls."""

    def __init__(self, program: Path, folder: Path, env: dict[str, str]) -> None:
        self.daemon = Daemon([str(program), "standin", "--listen", "127.0.0.1:0"], folder, "standin", env, 10)
        self.url = self.daemon.url
        self._http = httpx.Client(base_url=f"{self.url}/standin", trust_env=False, timeout=10)

    def reset(self) -> None:
        """Forgets rules, limits and records."""
        for what in ("script", "limits", "requests"):
            self._http.delete(what).raise_for_status()

    def script(
        self,
        action: Json,
        *,
        times: int | None = None,
        bearer: str | None = None,
        model: str | None = None,
        contains: str | None = None,
    ) -> None:
        """Adds a rule. The first rule that matches a request decides."""
        match = {"bearer": bearer, "model": model, "contains": contains}
        rule: Json = {"match": {key: value for key, value in match.items() if value}, "action": action}
        if times is not None:
            rule["times"] = times
        answer = self._http.post("script", json=rule)
        assert answer.is_success, answer.text

    def limits(self, levels: Json) -> None:
        """Sets what a bearer's answers say of its windows."""
        answer = self._http.post("limits", json=levels)
        assert answer.is_success, answer.text

    def forget_script(self) -> None:
        self._http.delete("script").raise_for_status()

    def requests(self, since: int = 0) -> list[Upstream]:
        """The requests to the model after number `since`, oldest first."""
        recorded = self._http.get("requests", params={"since": since}).raise_for_status().json()["requests"]
        return [
            Upstream(one["number"], one["path"], one["bearer"], one["body"], one["status"], one["outcome"])
            for one in recorded
            if one["method"] == "POST"
        ]

    def everything(self) -> str:
        """All that was ever sent here since the last reset, as one text."""
        return self._http.get("requests").raise_for_status().text

    def only(self) -> Upstream:
        """The one request since the last reset; fails if there were more, or none."""
        requests = self.requests()
        assert len(requests) == 1, [(one.path, one.bearer, one.status) for one in requests]
        return requests[0]

    def last(self) -> Upstream:
        return self.requests()[-1]

    def await_request(self, matches: Callable[[Upstream], bool] = lambda _: True, within: float = 30.0) -> Upstream:
        """The first request that matches, as soon as it has come in."""
        return wait_until(lambda: next(filter(matches, self.requests()), None), "a request upstream", within)

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Fails if any request came in meanwhile."""
        before = len(self.requests())
        yield
        assert len(self.requests()) == before

    def stop(self) -> None:
        self._http.close()
        assert self.daemon.stop() == 0
