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
