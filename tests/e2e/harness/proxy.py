"""The proxy under test, with subscriptions whose CLI talks to the stand-in."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI

from harness.daemon import Daemon
from harness.processes import children, with_environment
from harness.standin import TOKEN, Json
from harness.waiting import wait_until

#: CLI processes start at a rate of two to four a second here, and tests start dozens at once.
FIRST_EVENT_TIMEOUT = "120s"

#: How long a client waits for an answer: nothing here takes longer unless it hangs.
CLIENT_TIMEOUT = 150.0


@dataclass(frozen=True)
class Build:
    """What is tested: the proxy's program, and the CLI build that it drives."""

    program: Path
    cli: Path
    version: str

    @property
    def is_old(self) -> bool:
        """Whether the CLI is of the line that behaves as 2.1.197 does."""
        return self.version == "2.1.197"


def base_env(folder: Path) -> dict[str, str]:
    """An environment with a home of its own, so that nothing of the machine's user takes part."""
    home, temporary = folder / "home", folder / "tmp"
    for path in (home, temporary):
        path.mkdir(exist_ok=True)
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": str(temporary), "LANG": "C.UTF-8"}
    return env | {"LOG_LEVEL": os.environ.get("E2E_LOG_LEVEL", "info,auth_pool=debug")}


def subscription(folder: Path, name: str, standin_url: str, **fields: Any) -> Json:
    """A subscription as its owner would write it; only the token is made up."""
    config_dir = folder / f".claude-{name}"
    config_dir.mkdir(mode=0o700, exist_ok=True)
    return {
        "id": name,
        "email": f"{name}@example.com",
        "type": "claude-max",
        "configDir": str(config_dir),
        "weeklyBudget": 456,
        "env": {"ANTHROPIC_BASE_URL": standin_url, "CLAUDE_CODE_OAUTH_TOKEN": f"{TOKEN}{name}"},
    } | fields


def account(name: str, standin_url: str, **fields: Any) -> Json:
    """A subscription that is an API key, in the environment variable of its name."""
    return {"id": name, "type": "api", "apiKeyEnv": f"KEY_{name}", "baseUrl": standin_url, "weeklyBudget": 456} | fields


class Proxy:
    """A running `auth-pool serve`."""

    def __init__(
        self,
        build: Build,
        folder: Path,
        standin_url: str,
        *,
        subscriptions: int = 3,
        spares: int = 0,
        claude: Json | None = None,
        subscription_fields: Json | None = None,
        accounts: list[Json] | None = None,
        env: dict[str, str] | None = None,
        launcher: list[str] | None = None,
        **sections: Any,
    ) -> None:
        """`launcher` is a command before the program's own, which becomes the program."""
        self.folder = folder
        self.names = [f"sub{number}" for number in range(1, subscriptions + 1)]
        fields = subscription_fields or {}
        config: Json = {
            "subscriptions": [subscription(folder, name, standin_url, **fields) for name in self.names]
            + (accounts or []),
            "models": {"gpt-4o": "sonnet"},
            "claude": {
                "command": str(build.cli),
                "firstEventTimeout": FIRST_EVENT_TIMEOUT,
                "maxProcesses": 48,
                "sparesPerSubscription": spares,
                # It starts processes of its own, where tests count processes.
                "selfTest": False,
            }
            | (claude or {}),
            # Tests ask the same again and again.
            "runawayGuard": {"enabled": False},
        } | sections
        self.config_path = folder / "auth-pool.json"
        self.config_path.write_text(json.dumps(config, indent=2))
        self.config_path.chmod(0o600)
        self.env = base_env(folder) | (env or {})
        command = [*(launcher or []), str(build.program), "serve", "--listen", "127.0.0.1:0", "--config", str(self.config_path)]
        self.daemon = Daemon(command, folder, "proxy", self.env, within=60)
        self.url = self.daemon.url
        self.pid = self.daemon.pid
        self.http = httpx.Client(base_url=self.url, trust_env=False, timeout=CLIENT_TIMEOUT)
        self._clients: list[OpenAI] = []

    def openai(self, api_key: str = "unused", max_retries: int = 0) -> OpenAI:
        """The official client, unchanged. Without retries of its own, so that every error is seen."""
        client = OpenAI(base_url=f"{self.url}/v1", api_key=api_key, max_retries=max_retries, timeout=CLIENT_TIMEOUT)
        self._clients.append(client)
        return client

    def replace_config(self, config: Json) -> None:
        """Puts another file in the place of the configuration, as editors do."""
        new = self.config_path.with_suffix(".new")
        new.write_text(json.dumps(config))
        new.chmod(0o600)
        new.rename(self.config_path)

    def debug(self) -> Json:
        return self.http.get("/debug/auth-pool").raise_for_status().json()

    def health(self) -> Json:
        return self.http.get("/health").raise_for_status().json()

    def member(self, name: str) -> Json:
        """What the pool says of one subscription."""
        return next(one for one in self.debug()["status"] if one["id"] == name)

    def cli_processes(self) -> set[int]:
        """The CLI processes that run now, as the kernel sees them."""
        return children(self.pid)

    def wait_idle(self, within: float = 20.0) -> Json:
        """Waits until no request runs, its bookkeeping is done, and no process but spares and live ones is left.

        The debug view of that moment.
        """

        def idle() -> Json | None:
            debug = self.debug()
            processes = debug["processes"]
            busy = debug["totals"]["inFlight"] or processes["running"]
            known = processes["spare"] + processes["live"] + processes["parked"]
            return None if busy or len(self.cli_processes()) != known else debug

        return wait_until(idle, "the pool to be idle", within)

    def wait_spares(self, count: int, within: float = 60.0) -> None:
        """Waits until so many processes stand ready and nothing is being started."""

        def ready() -> bool:
            return self.debug()["processes"]["spare"] == count and len(self.cli_processes()) == count

        wait_until(ready, f"{count} spares", within)

    @contextmanager
    def nothing_started(self) -> Iterator[None]:
        """Fails if a CLI process was started, or a request begun, meanwhile."""
        before = self.debug()
        yield
        after = self.debug()
        assert after["processes"]["started"] == before["processes"]["started"]
        assert after["totals"]["inFlight"] == 0

    def stop(self, within: float = 20.0) -> None:
        """SIGTERM. Fails unless it ends with exit code 0 and leaves no process behind, related to it or not."""
        self.disconnect()
        code = self.daemon.stop(within)
        assert code == 0, f"exit code {code}\n{self.daemon.log()[-4000:]}"
        self.assert_nothing_left()

    def disconnect(self) -> None:
        """Closes this side's connections, so that none keeps the server from ending."""
        self.http.close()
        for client in self._clients:
            client.close()

    def assert_nothing_left(self) -> None:
        """Fails if any process, or any temporary file, is left of it. To be called after its end."""
        orphans = with_environment(f"{self.folder}/")
        assert not orphans, f"left behind: {orphans}"
        files = list((self.folder / "tmp").iterdir())
        assert not files, f"left behind: {files}"
