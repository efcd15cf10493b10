"""`auth-pool doctor` with the real CLI: what it finds, what it says, and that it tells no secret."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.processes import with_environment
from harness.proxy import Build, Proxy, subscription
from harness.standin import Standin
from harness.waiting import wait_until
from test_commands import run, write

FEATURES = ("late_system_prompt", "history_replay", "client_tools", "hybrid_tools", "limits", "max_tokens", "cancel")


def doctor(build: Build, folder: Path, members: list[Any], *arguments: str) -> tuple[int, str]:
    config = {"subscriptions": members, "claude": {"command": str(build.cli)}}
    done = run(
        build,
        folder,
        "doctor",
        "--config",
        write(folder / "auth-pool.json", config),
        *arguments,
        AUTH_POOL_STATE_DIR=str(folder / "state"),
    )
    assert "sk-ant" not in done.stdout + done.stderr
    assert "@example.com" not in done.stdout + done.stderr
    return done.returncode, done.stdout


def test_a_sound_installation_is_found_sound(build: Build, standin: Standin, tmp_path: Path) -> None:
    code, text = doctor(build, tmp_path, [subscription(tmp_path, "sub1", standin.url)], "--json")
    report = json.loads(text)
    checks = {check["check"]: check for check in report["checks"]}
    assert (code, report["ok"]) == (0, True), text
    assert checks["Claude CLI"]["verdict"] == "ok"
    assert build.version in checks["Claude CLI"]["seen"]
    assert checks["login sub1"] == {"check": "login sub1", "verdict": "ok", "seen": "logged in (oauth_token)"}
    for feature in FEATURES:
        assert checks[f"CLI {feature}"]["verdict"] == "ok", checks[f"CLI {feature}"]
    assert standin.requests() == [], "a subscription's own provider is asked nothing"
    (known,) = json.loads((tmp_path / "state/cli-features.json").read_text())
    assert known["features"] == dict.fromkeys(FEATURES, "has")
    assert with_environment(f"{tmp_path}/") == {}
    assert list((tmp_path / "tmp").iterdir()) == [], "temporary files are left"


def test_what_is_wrong_is_said_with_what_to_do(build: Build, standin: Standin, tmp_path: Path) -> None:
    member = subscription(tmp_path, "sub2", standin.url, env={"ANTHROPIC_BASE_URL": standin.url})
    code, text = doctor(build, tmp_path, [member])
    assert code == 1
    lines = text.splitlines()
    (at,) = (index for index, line in enumerate(lines) if line.startswith("failed   login sub2"))
    assert "nobody is logged in" in lines[at]
    assert "/login" in lines[at + 1]


def test_a_bad_configuration_ends_the_examination_early(build: Build, tmp_path: Path) -> None:
    code, text = doctor(build, tmp_path, [{"id": "sub1", "type": "claude-max"}], "--json")
    report = json.loads(text)
    assert (code, report["ok"]) == (1, False)
    failed = [check["seen"] for check in report["checks"] if check["verdict"] == "failed"]
    assert any("subscriptions[0].weeklyBudget" in seen for seen in failed), failed
    assert not any(check["check"].startswith("CLI") for check in report["checks"])


def test_the_store_and_its_accounts_are_found_where_the_configuration_says(
    build: Build, standin: Standin, tmp_path: Path
) -> None:
    """By `store.path` of the file, not by the environment; and a registered profile's login is asked for too."""
    cli = tmp_path / "claude"
    # What the installed CLI can do is tried elsewhere; here it only tells of logins.
    cli.write_text("#!/bin/sh\n[ \"$1\" = auth ] && echo '{\"loggedIn\": true, \"authMethod\": \"oauth_token\"}'\n")
    cli.chmod(0o755)
    config = {
        "subscriptions": [{"id": "house", "type": "api", "apiKeyEnv": "ANTHROPIC_API_KEY", "weeklyBudget": 1}],
        "claude": {"command": str(cli)},
        "store": {"path": "kept/pool.db"},
    }
    file = write(tmp_path / "auth-pool.json", config)
    env = {"ENCRYPTION_KEY": "0123456789abcdef" * 4, "TOKEN": "sk-ant-oat01-fake-later", "ANTHROPIC_API_KEY": "sk-ant-x-y"}
    at = ("--config", file, "--url", "http://127.0.0.1:9")
    added = run(build, tmp_path, "accounts", "add", "later", "--type", "claude-max", "--secret-env", "TOKEN", *at, **env)
    assert added.returncode == 0, added.stderr

    def checks(**more: str) -> dict[str, Any]:
        done = run(build, tmp_path, "doctor", "--json", "--config", file, **env | more)
        assert "sk-ant" not in done.stdout + done.stderr
        return {check["check"]: check for check in json.loads(done.stdout)["checks"]}

    found = checks()
    for name in ("ENCRYPTION_KEY", "store", "registered", "default account", "login later", "clock"):
        assert found[name]["verdict"] == "ok", found.get(name)
    assert {"Redis", "Slack", "disk, state directory"} <= set(found)
    assert "kept/pool.db answers" in found["store"]["seen"]
    assert found["registered"]["seen"] == "1 accounts, 0 client keys"
    assert found["login later"]["seen"] == "logged in (oauth_token)"
    # With another key nobody can open what is sealed.
    found = checks(ENCRYPTION_KEY="fedcba9876543210" * 4)
    assert found["registered"]["verdict"] == "failed" and "ENCRYPTION_KEY" in found["registered"]["todo"]


ROOT = Path(__file__).resolve().parents[2]


def test_an_upgrade_while_the_pool_runs_is_noticed(
    build: Build, start: Callable[..., Proxy], tmp_path: Path
) -> None:
    """The link that is the CLI points to another build: new spares, other aliases, and another self-test."""
    (other,) = (
        path for path in (ROOT / "tests/cli").glob("*/node_modules/.bin/claude") if build.version not in str(path)
    )
    link = tmp_path / "claude"
    link.symlink_to(build.cli)
    proxy = start(subscriptions=1, spares=1, claude={"command": str(link), "selfTest": True})

    def known(path: Path) -> dict[str, Any] | None:
        cli = proxy.debug()["cli"]
        is_known = cli["binary"] and cli["binary"]["path"] == str(path.resolve()) and cli["features"]
        return cli["features"] if is_known else None

    everything = dict.fromkeys(FEATURES, "has")
    assert wait_until(lambda: known(build.cli), "the self-test to be over", 120) == everything
    models = proxy.http.get("/v1/models").json()
    (tmp_path / "new").symlink_to(other)
    (tmp_path / "new").rename(link)
    assert wait_until(lambda: known(other), "the other build to be known", 120) == everything
    wait_until(lambda: proxy.http.get("/v1/models").json() != models, "the other aliases", 60)
    proxy.wait_spares(1)
    answer = proxy.openai().chat.completions.create(model="sonnet", messages=[{"role": "user", "content": "hello"}])
    assert "You said: hello." in (answer.choices[0].message.content or "")
