"""A server under test: started, found by the address it prints, stopped by its process id and by nothing else."""

import os
import re
import select
import subprocess
import time
from pathlib import Path

from harness.processes import children

ADDRESS = re.compile(r"listening on (http://\S+)")


class Daemon:
    """A program that prints `listening on http://...` and ends on SIGTERM with exit code 0."""

    def __init__(self, command: list[str], folder: Path, name: str, env: dict[str, str], within: float) -> None:
        self.log_path = folder / f"{name}.log"
        self._log = self.log_path.open("wb")
        self.process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=subprocess.PIPE, stderr=self._log, stdin=subprocess.DEVNULL
        )
        try:
            self.url = self._read_address(within)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self, offset: int = 0) -> str:
        """What it has logged, from a byte offset on."""
        with self.log_path.open("rb") as file:
            file.seek(offset)
            return file.read().decode(errors="replace")

    def log_size(self) -> int:
        return self.log_path.stat().st_size

    def stop(self, within: float = 20.0) -> int:
        """Asks it to end and waits; the exit code. Fails when it leaves a child of its own behind."""
        if self.process.poll() is None:
            self.process.terminate()
        return self.wait(within)

    def wait(self, within: float) -> int:
        """Waits for its end without asking for it."""
        before = children(self.pid)
        try:
            code = self.process.wait(within)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"{self.process.args} did not end within {within} s\n{self.log()[-4000:]}") from None
        finally:
            self._log.close()
            if self.process.stdout:
                self.process.stdout.close()
        left = {pid for pid in before if os.path.exists(f"/proc/{pid}")}
        assert not left, f"{self.process.args} ended and left its children {left} behind"
        return code

    def _read_address(self, within: float) -> str:
        assert self.process.stdout
        deadline = time.monotonic() + within
        seen = b""
        while not (match := ADDRESS.search(seen.decode(errors="replace"))) or not seen.endswith(b"\n"):
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self.process.stdout.fileno(), 4096) if ready else b""
            if not piece:
                raise AssertionError(f"{self.process.args} printed no address but {seen!r}\n{self.log()[-4000:]}")
            seen += piece
        return match[1]
