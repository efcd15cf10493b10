"""Processes as the kernel sees them: the tests do not take the program's word for what it has left behind."""

import os
import select
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Stat:
    """A line of `/proc/<pid>/stat`, as far as it matters here."""

    pid: int
    state: str
    parent: int
    group: int


def stats() -> Iterator[Stat]:
    """Every process there is, zombies included."""
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (stat := _stat(int(entry))):
            yield stat


def _stat(pid: int) -> Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name stands in parentheses and may hold anything.
    state, parent, group = text.rpartition(")")[2].split()[:3]
    return Stat(pid, state, int(parent), int(group))


def children(pid: int) -> set[int]:
    """The direct children of a process, zombies included."""
    return {stat.pid for stat in stats() if stat.parent == pid}


def group_members(group: int) -> set[int]:
    """Every process of a process group, zombies included."""
    return {stat.pid for stat in stats() if stat.group == group}


def command_line(pid: int) -> str:
    """A process's arguments, joined by blanks; empty when it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def with_environment(text: str) -> dict[int, str]:
    """Every process with `text` somewhere in its environment, however it is related to us, and its arguments.

    A test's folder is in the environment of every CLI process it causes, so one that was left behind is found
    even when nobody knows its parent any more.
    """
    found = {}
    for stat in stats():
        try:
            environment = Path(f"/proc/{stat.pid}/environ").read_bytes()
        except OSError:
            continue
        if text.encode() in environment and stat.pid != os.getpid():
            found[stat.pid] = command_line(stat.pid)
    return found


def seconds_until_group_is_gone(group: int, since: float, within: float) -> float:
    """How long after `since` (monotonic) the last process of a group was gone, its zombie included."""
    deadline = time.monotonic() + within
    # The kernel tells when the leader ends; what is left then (its group, its zombie) has no such event.
    try:
        descriptor = os.pidfd_open(group)
    except ProcessLookupError:
        pass
    else:
        try:
            select.select([descriptor], [], [], within)
        finally:
            os.close(descriptor)
    while members := group_members(group):
        if time.monotonic() >= deadline:
            raise AssertionError(f"after {within} s group {group} still has {members}")
        time.sleep(0.001)
    return time.monotonic() - since
