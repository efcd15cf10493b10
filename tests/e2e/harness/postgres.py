"""A real PostgreSQL of a test's own, which can be stopped in its tracks, and both databases as a test reads them."""

import os
import signal
import sqlite3
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

from harness.processes import children

ROOT = Path(__file__).resolve().parents[3]
SERVICES = ROOT / "scripts/services.sh"


def _services(*words: str) -> str:
    run = subprocess.run([str(SERVICES), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=600)
    assert run.returncode == 0, run.stderr
    return run.stdout


class Postgres:
    """A running server, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        lines = _services("start", str(folder), "postgres").splitlines()
        name, _, self.url = lines[-1].partition("=")
        assert name == "AUTH_POOL_TEST_POSTGRES", lines

    def freeze(self) -> None:
        """Every process of it stands still: connections stay open, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def halt(self) -> None:
        """It ends at once, and every connection with it."""
        _services("halt", str(self._folder))

    def again(self) -> None:
        """It starts again, with what it had committed."""
        _services("again", str(self._folder))

    def stop(self) -> None:
        _services("stop", str(self._folder))

    def _signal(self, what: signal.Signals) -> None:
        pid = int((self._folder / "postgres/data/postmaster.pid").read_text().split()[0])
        for process in (pid, *children(pid)):
            os.kill(process, what)


def rows(url: str, query: str) -> list[tuple[str, ...]]:
    """What a query returns, as text."""
    if url.startswith("sqlite:"):
        with sqlite3.connect(url.removeprefix("sqlite:"), timeout=30) as connection:
            return [tuple(str(value) for value in row) for row in connection.execute(query)]
    parts = urlsplit(url)
    env = os.environ | {"PGPASSWORD": parts.password or ""}
    target = f"postgresql://{parts.username}@{parts.hostname}:{parts.port}{parts.path}"
    command = ["psql", "--no-psqlrc", "--no-align", "--tuples-only", "--field-separator=\t", target, "-c", query]
    said = subprocess.run(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, timeout=60)
    assert said.returncode == 0, said.stderr
    return [tuple(line.split("\t")) for line in said.stdout.splitlines()]
