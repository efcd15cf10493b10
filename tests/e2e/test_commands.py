"""The other commands: demo, config, standin."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from harness.processes import with_environment
from harness.proxy import Build, base_env, subscription

LIMIT = 60


def run(build: Build, folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(build.program), *arguments],
        cwd=folder,
        env=base_env(folder) | env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
    )


def test_the_demo_serves_one_request_and_says_who_and_why(build: Build, tmp_path: Path) -> None:
    done = run(build, tmp_path, "demo", "--once", "--claude", str(build.cli))
    assert done.returncode == 0, done.stdout + done.stderr
    text = done.stdout
    print(text)
    assert "You said:" in text
    assert "first token after" in text
    (served,) = (line for line in text.splitlines() if "served by" in line)
    assert "sub1" in served or "sub2" in served or "sub3" in served
    assert "health" in served
    for name in ("sub1", "sub2", "sub3"):
        assert any(line.split()[:1] == [name] for line in text.splitlines()), f"the state of {name} is shown"
    assert with_environment(f"{tmp_path}/") == {}
    assert list((tmp_path / "tmp").iterdir()) == [], "temporary files are left"


def test_the_demo_says_what_to_do_without_a_cli(build: Build, tmp_path: Path) -> None:
    done = run(build, tmp_path, "demo", "--once", "--claude", str(tmp_path / "claude"))
    assert done.returncode == 1
    assert "scripts/demo" in done.stderr


def write(path: Path, config: object) -> str:
    path.write_text(config if isinstance(config, str) else json.dumps(config))
    return str(path)


def test_config_check_of_a_good_file(build: Build, tmp_path: Path) -> None:
    members = [subscription(tmp_path, name, "http://127.0.0.1:1") for name in ("sub1", "sub2")]
    file = write(tmp_path / "auth-pool.json", {"subscriptions": members})
    done = run(build, tmp_path, "config", "check", file)
    assert done.returncode == 0, done.stderr
    assert "ok, 2 subscriptions" in done.stdout
    assert "sk-ant" not in done.stdout + done.stderr


def test_config_check_tells_every_problem_with_its_place(build: Build, tmp_path: Path) -> None:
    good = subscription(tmp_path, "sub1", "http://127.0.0.1:1")
    config = {
        "subscriptions": [good, good | {"weeklyBudget": 0}, good | {"id": "sub3", "configDir": "/etc/../etc"}],
        "weeklyBudgetTreshold": 0.9,
        "claude": {"idleTimeout": "soon"},
    }
    done = run(build, tmp_path, "config", "check", write(tmp_path / "bad.json", config))
    assert done.returncode == 1
    for told in (
        "subscriptions[1].id",
        "subscriptions[1].weeklyBudget",
        "subscriptions[2].configDir",
        "did you mean `weeklyBudgetThreshold`",
        "claude.idleTimeout",
    ):
        assert told in done.stderr, done.stderr
    assert "sk-ant" not in done.stdout + done.stderr


@pytest.mark.parametrize("text", ["", "{", "[]", '{"subscriptions": "all"}'])
def test_config_check_of_what_is_no_configuration(build: Build, tmp_path: Path, text: str) -> None:
    done = run(build, tmp_path, "config", "check", write(tmp_path / "bad.json", text))
    assert done.returncode == 1
    assert "bad.json" in done.stderr


def test_serve_does_not_start_with_a_bad_configuration(build: Build, tmp_path: Path) -> None:
    file = write(tmp_path / "bad.json", {"subscriptions": []})
    done = run(build, tmp_path, "serve", "--listen", "127.0.0.1:0", "--config", file)
    assert done.returncode == 1
    assert "subscriptions" in done.stderr
    assert "listening" not in done.stdout


def test_serve_does_not_open_itself_to_the_network_without_keys(build: Build, tmp_path: Path) -> None:
    file = write(tmp_path / "auth-pool.json", {"subscriptions": [subscription(tmp_path, "sub1", "http://127.0.0.1:1")]})
    done = run(build, tmp_path, "serve", "--listen", "0.0.0.0:0", "--config", file)
    assert done.returncode == 1
    assert "clientKeys" in done.stderr


def test_the_schema_accepts_the_sample(build: Build, tmp_path: Path) -> None:
    done = run(build, tmp_path, "config", "schema")
    assert done.returncode == 0
    schema = json.loads(done.stdout)
    sample = json.loads((Path(__file__).parents[2] / "config/auth-pool.json").read_text())
    assert set(sample) <= set(schema["properties"])


def test_the_sample_configuration_passes_the_check(build: Build, tmp_path: Path) -> None:
    env = base_env(tmp_path)
    for number in (1, 2, 3):
        os.mkdir(Path(env["HOME"]) / f".claude-sub{number}", mode=0o700)
    sample = Path(__file__).parents[2] / "config/auth-pool.json"
    done = run(build, tmp_path, "config", "check", str(sample))
    assert done.returncode == 0, done.stderr
    assert "ok, 3 subscriptions" in done.stdout


def test_the_standin_listens_on_loopback_only(build: Build, tmp_path: Path) -> None:
    done = run(build, tmp_path, "standin", "--listen", "0.0.0.0:0")
    assert done.returncode == 1
    assert "loopback" in done.stderr
