"""`auth-pool accounts` and `auth-pool keys`, each run for real: against a running server, and on the store alone."""

import json
import os
import pty
import secrets
import subprocess
from pathlib import Path

import openai
import pytest

from conftest import Start
from harness.chat import ask
from harness.postgres import rows
from harness.proxy import Build, Proxy, account, base_env
from harness.standin import Standin
from test_admin import HOUSE, database, postgres_url  # noqa: F401

LIMIT = 60
KEY = "sk-ant-api03-fake-first"


class Terminal:
    """Somebody at the machine."""

    def __init__(self, build: Build, folder: Path, **env: str) -> None:
        self.folder, self.env = folder, base_env(folder) | env
        self._program = str(build.program)

    def run(self, *words: str, say: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self._program, *words],
            cwd=self.folder,
            env=self.env | env,
            input=say,
            capture_output=True,
            text=True,
            timeout=LIMIT,
        )

    def told(self, *words: str, say: str = "", **env: str) -> str:
        done = self.run(*words, say=say, **env)
        assert done.returncode == 0, done.stderr
        assert KEY not in done.stdout + done.stderr
        return done.stdout.strip()

    def refused(self, *words: str, **env: str) -> str:
        done = self.run(*words, **env)
        assert done.returncode == 1 and not done.stdout
        return done.stderr


def config(folder: Path, standin: Standin, **sections: object) -> str:
    file = folder / "auth-pool.json"
    file.write_text(json.dumps({"subscriptions": [account("house", standin.url)]} | sections))
    return str(file)


def test_a_running_server_is_managed_from_the_terminal(
    build: Build, start: Start, standin: Standin, database: str, tmp_path: Path  # noqa: F811
) -> None:
    env = HOUSE | {"DATABASE_URL": database, "ENCRYPTION_KEY": secrets.token_hex(32)}
    proxy = start(subscriptions=0, accounts=[account("house", standin.url)], env=env)
    at = Terminal(build, tmp_path)
    where = ("--url", proxy.url)
    boss = at.told("keys", "create", "boss", "--scopes", "chat,admin", *where)
    assert boss.startswith("ap-") and len(boss) > 40
    assert "AUTH_POOL_KEY" in at.refused("accounts", "list", *where)
    at.env["AUTH_POOL_KEY"] = boss

    added = at.told(
        *("accounts", "add", "First one", "--type", "api", "--secret-stdin", "--weekly-budget", "100"),
        *("--base-url", standin.url, *where),
        say=KEY + "\n",
    )
    assert added.startswith("registered as `first-one` (id ")
    table = at.told("accounts", "list", *where).splitlines()
    assert table[0].split()[:4] == ["NAME", "SUBSCRIPTION", "TYPE", "STATUS"]
    assert table[1].split()[:5] == ["First", "one", "first-one", "api", "active"]
    with standin.untouched():
        assert at.told("accounts", "test", "first-one", *where).startswith("`first-one`: the API takes the key (")
    standin.script({"type": "status", "code": 401}, bearer="first")
    assert "`first-one` cannot serve" in at.refused("accounts", "test", "First one", *where)
    standin.forget_script()

    user = at.told("keys", "create", "user", "--subscriptions", "first-one", "--requests-per-minute", "100", *where)
    client = proxy.openai(api_key=user)
    assert ask(client, "hello").choices[0].finish_reason == "stop"
    assert {request.bearer for request in standin.requests()} == {"first"}
    assert at.told("accounts", "disable", "first-one", *where) == "`first-one` is disabled"
    with pytest.raises(openai.InternalServerError):
        ask(client, "hello")
    assert at.told("accounts", "enable", "first-one", *where) == "`first-one` is enabled"
    assert at.told("accounts", "reset", "first-one", *where) == "`first-one` is reset"
    assert ask(client, "hello").choices[0].finish_reason == "stop"

    listed = json.loads(at.told("keys", "list", "--json", *where))
    assert {key["name"]: key["requestsPerMinute"] for key in listed} == {"boss": None, "user": 100}
    assert user not in json.dumps(listed)
    assert at.told("keys", "revoke", "user", *where) == "`user` is revoked"
    with pytest.raises(openai.AuthenticationError):
        ask(client, "hello")
    assert "there is no client key `user`" in at.refused("keys", "revoke", "user", *where)
    assert at.told("accounts", "remove", "first-one", *where) == "`first-one` is removed"
    assert "there is no account" in at.refused("accounts", "remove", "first-one", *where)
    assert KEY not in proxy.daemon.log() and user not in proxy.daemon.log()


def test_without_a_server_the_store_itself_is_worked_on(
    build: Build, start: Start, standin: Standin, database: str, tmp_path: Path  # noqa: F811
) -> None:
    old, new = secrets.token_hex(32), secrets.token_hex(32)
    at = Terminal(build, tmp_path, DATABASE_URL=database, ENCRYPTION_KEY=old, FIRST_KEY=KEY, **HOUSE)
    # Nothing listens on the discard port of this machine.
    where = ("--url", "http://127.0.0.1:9", "--config", config(tmp_path, standin))
    at.told("accounts", "add", "first", "--type", "api", "--secret-env", "FIRST_KEY", "--base-url", standin.url, *where)
    assert "No pool runs here" in at.refused("accounts", "test", "first", *where)
    boss = at.told("keys", "create", "boss", "--scopes", "chat,admin", *where)
    assert [key["name"] for key in json.loads(at.told("keys", "list", "--json", *where))] == ["boss"]
    (sealed,) = rows(database, "SELECT sealed_secret FROM claude_accounts")[0]
    assert KEY not in sealed

    rotated = at.told("keys", "rotate", *where[2:], ENCRYPTION_KEY=new, ENCRYPTION_KEY_PREVIOUS=old)
    assert rotated.startswith("1 secrets sealed anew")
    (anew,) = rows(database, "SELECT sealed_secret FROM claude_accounts")[0]
    assert anew != sealed and KEY not in anew
    assert "was not sealed anew" in at.refused("keys", "rotate", *where[2:], ENCRYPTION_KEY=secrets.token_hex(32))

    # The server that starts next has all of it.
    env = HOUSE | {"DATABASE_URL": database, "ENCRYPTION_KEY": new}
    proxy: Proxy = start(subscriptions=0, accounts=[account("house", standin.url, enabled=False)], env=env)
    assert ask(proxy.openai(api_key=boss), "hello").choices[0].finish_reason == "stop"
    assert standin.last().bearer == "first"


def test_login_hands_the_terminal_to_the_cli_in_the_right_profile(
    build: Build, standin: Standin, tmp_path: Path
) -> None:
    """The official CLI cannot log in here, but what it is asked to do can be seen; and that it is asked for real."""
    seen = tmp_path / "seen"
    script = tmp_path / "claude"
    script.write_text(
        "#!/bin/sh\n"
        f'printf "%s|%s|%s|%s\\n" "$*" "$CLAUDE_CONFIG_DIR" "$ANTHROPIC_API_KEY" "$(tty)" >> {seen}\n'
        'read -r typed; echo "typed: $typed"\n'
    )
    script.chmod(0o755)
    (tmp_path / ".claude-own").mkdir(mode=0o700)
    member = {"id": "own", "type": "claude-max", "configDir": "./.claude-own", "weeklyBudget": 1}
    file = config(tmp_path, standin, subscriptions=[member], claude={"command": str(script)})
    at = Terminal(build, tmp_path, ANTHROPIC_API_KEY="sk-ant-api03-of-the-shell", ENCRYPTION_KEY=secrets.token_hex(32))
    where = ("--url", "http://127.0.0.1:9", "--config", file)
    profile = tmp_path / ".claude-other"
    profile.mkdir(mode=0o700)
    at.told("accounts", "add", "other", "--type", "claude-max", "--config-dir", str(profile), *where)

    for words, name, dir_ in (
        (("auth login", ()), "own", tmp_path / ".claude-own"),
        (("setup-token", ("--setup-token",)), "other", profile),
    ):
        wanted, more = words
        controller, terminal = pty.openpty()
        command = [str(build.program), "accounts", "login", name, *more, *where]
        login = subprocess.Popen(command, cwd=tmp_path, env=at.env, stdin=terminal, stdout=terminal, stderr=terminal)
        os.write(controller, b"a code\n")
        assert login.wait(LIMIT) == 0
        os.close(terminal)
        said = os.read(controller, 65536).decode()
        os.close(controller)
        assert "typed: a code" in said
        asked, where_to, key, tty = seen.read_text().splitlines()[-1].split("|")
        assert (asked, where_to, key) == (wanted, str(dir_), "") and tty.startswith("/dev/")

    # The real one takes the same words; without a terminal and an account it gets no further.
    real = config(tmp_path, standin, subscriptions=[member], claude={"command": str(build.cli)})
    status = subprocess.run(
        [str(build.cli), "auth", "login", "--help"], env=at.env, capture_output=True, text=True, timeout=LIMIT
    )
    assert status.returncode == 0 and "login" in status.stdout.lower(), status
    missing = at.refused("accounts", "login", "nobody", "--url", "http://127.0.0.1:9", "--config", real)
    assert "there is no account `nobody`" in missing
    house = config(tmp_path, standin)
    keyed = at.refused("accounts", "login", "house", "--url", "http://127.0.0.1:9", "--config", house, **HOUSE)
    assert "has no CLI profile" in keyed


def test_a_profile_is_tested_by_its_login(build: Build, start: Start, standin: Standin, tmp_path: Path) -> None:
    proxy = start(subscriptions=1, env={"ENCRYPTION_KEY": secrets.token_hex(32)})
    at = Terminal(build, tmp_path, TOKEN="sk-ant-oat01-fake-later")
    where = ("--url", proxy.url)
    at.told("accounts", "add", "later", "--type", "claude-max", "--secret-env", "TOKEN", *where)
    empty = tmp_path / ".claude-empty"
    empty.mkdir(mode=0o700)
    at.told("accounts", "add", "empty", "--type", "claude-max", "--config-dir", str(empty), *where)
    with standin.untouched():
        assert at.told("accounts", "test", "later", *where).startswith("`later`: logged in (oauth_token) (")
        assert "nobody is logged in" in at.refused("accounts", "test", "empty", *where)
    before = sum(member["weeklyUsed"] for member in proxy.debug()["status"])
    assert before == 0, "it costs nothing"
