"""Bounded waiting for what has no event to wait for."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

PAUSE = 0.01


def wait_until(probe: Callable[[], T], what: str, within: float = 10.0) -> T:
    """The first true value of `probe`. Fails with what was awaited, and with the last value seen."""
    deadline = time.monotonic() + within
    while True:
        value = probe()
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {within} s in vain for {what}; the last look gave {value!r}")
        time.sleep(PAUSE)
