"""A streamed answer read by hand, for what happens while a client waits."""

import json
import queue
import threading
from typing import Any

import httpx

from harness.proxy import CLIENT_TIMEOUT


class Streaming:
    """Reads a streamed answer in a thread of its own; keeps every frame."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        self.frames: list[str] = []
        self.error: Exception | None = None
        self.status: int | None = None
        #: The body of an answer that is no stream.
        self.refusal = ""
        self._arrived: queue.Queue[str | None] = queue.Queue()
        self._thread = threading.Thread(target=self._read, args=(url, body | {"stream": True}), daemon=True)
        self._thread.start()

    def _read(self, url: str, body: dict[str, Any]) -> None:
        try:
            with (
                httpx.Client(trust_env=False, timeout=CLIENT_TIMEOUT) as client,
                client.stream("POST", f"{url}/v1/chat/completions", json=body) as answer,
            ):
                self.status = answer.status_code
                if not answer.is_success:
                    self.refusal = answer.read().decode()
                    return
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        self.frames.append(line.removeprefix("data: "))
                        self._arrived.put(line)
        except httpx.HTTPError as error:
            self.error = error
        finally:
            self._arrived.put(None)

    def wait_for_text(self, within: float = 60.0) -> None:
        """Waits until the answer has begun."""
        while self._arrived.get(timeout=within) is not None:
            if self.text:
                return
        raise AssertionError(f"it ended without a word: {self.frames}, {self.error}")

    def wait_for_end(self, within: float = 60.0) -> None:
        self._thread.join(within)
        assert not self._thread.is_alive(), f"it goes on and on: {self.frames[-3:]}"

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(frame) for frame in list(self.frames) if frame != "[DONE]"]

    @property
    def text(self) -> str:
        deltas = [choice["delta"] for chunk in self.chunks for choice in chunk.get("choices", [])]
        return "".join(delta.get("content") or "" for delta in deltas)
