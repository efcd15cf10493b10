"""Starts what the tests need, and stops it: by process id, checked, with the logs shown when a test fails."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from harness.proxy import Build, Proxy, base_env
from harness.standin import Standin

ROOT = Path(__file__).resolve().parents[2]

#: How much of a server's log is shown for a failed test.
SHOWN_LOG = 12_000

#: Servers that run now, and where their logs stood when the test began.
_running: dict[Proxy, int] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--cli-version",
        default=os.environ.get("E2E_CLI_VERSION", "2.1.329"),
        help="the pinned CLI build to drive: a folder of tests/cli",
    )
    parser.addoption(
        "--program",
        default=os.environ.get("E2E_PROGRAM", str(ROOT / "target/debug/auth-pool")),
        help="the auth-pool program to test",
    )
    parser.addoption(
        "--kills", type=int, default=3, help="how often a proxy under load is killed, with each kind of database"
    )
    parser.addoption("--outage", type=int, default=30, help="for how many seconds the database is gone")


def pytest_report_header(config: pytest.Config) -> str:
    return f"auth-pool: {config.getoption('--program')}, Claude CLI {config.getoption('--cli-version')}"


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints what was measured, whether or not it passed."""
    if measured := config.stash.get(MEASURED, {}):
        terminalreporter.section(f"measured with Claude CLI {config.getoption('--cli-version')}")
        for name, value in measured.items():
            terminalreporter.write_line(f"{name}: {value}")


MEASURED = pytest.StashKey[dict[str, str]]()


@pytest.fixture(scope="session")
def measured(pytestconfig: pytest.Config) -> dict[str, str]:
    """Where a test leaves a number for the summary."""
    return pytestconfig.stash.setdefault(MEASURED, {})


@pytest.fixture(scope="session")
def build(pytestconfig: pytest.Config) -> Build:
    version = pytestconfig.getoption("--cli-version")
    program = Path(pytestconfig.getoption("--program")).resolve()
    cli = ROOT / "tests/cli" / version / "node_modules/.bin/claude"
    for needed, advice in ((program, "cargo build"), (cli, "scripts/test installs it")):
        assert needed.is_file(), f"{needed} is missing: {advice}"
    return Build(program, cli, version)


@pytest.fixture(scope="session")
def standin_process(build: Build, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Standin]:
    folder = tmp_path_factory.mktemp("standin")
    standin = Standin(build.program, folder, base_env(folder))
    yield standin
    standin.stop()


@pytest.fixture
def standin(standin_process: Standin) -> Standin:
    """The stand-in without anything that an earlier test has told or asked it."""
    standin_process.reset()
    return standin_process


Start = Callable[..., Proxy]


def _starter(build: Build, standin: Standin, folders: pytest.TempPathFactory) -> Iterator[Start]:
    started: list[Proxy] = []

    def start(**settings: Any) -> Proxy:
        proxy = Proxy(build, folders.mktemp("proxy"), standin.url, **settings)
        started.append(proxy)
        _running[proxy] = 0
        return proxy

    yield start
    problems = []
    for proxy in started:
        _running.pop(proxy, None)
        if proxy.daemon.process.returncode is None:
            try:
                proxy.stop()
            except AssertionError as problem:
                problems.append(str(problem))
    assert not problems, "\n".join(problems)


@pytest.fixture
def start(build: Build, standin: Standin, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Starts proxies of the test's own; those that still run are stopped after it, and checked for orphans."""
    yield from _starter(build, standin, tmp_path_factory)


@pytest.fixture(scope="module")
def shared_proxy(
    build: Build, standin_process: Standin, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Proxy]:
    """One proxy for a module whose tests leave it as it was: three equal subscriptions.

    Each has a spare, unless the module says how many with `SPARES`: where processes are counted, none may be started
    in the background.
    """
    for start_one in _starter(build, standin_process, tmp_path_factory):
        yield start_one(spares=getattr(request.module, "SPARES", 1))


@pytest.fixture
def proxy(shared_proxy: Proxy, standin: Standin) -> Proxy:
    """The module's proxy, with a stand-in that has forgotten earlier tests."""
    return shared_proxy


@pytest.fixture
def client(proxy: Proxy) -> OpenAI:
    """The official client of the module's proxy."""
    return proxy.openai()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Remembers where the logs stand, so that a failure shows its own part only."""
    for proxy in _running:
        _running[proxy] = proxy.daemon.log_size()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report = yield
    if report.failed:
        for proxy, offset in _running.items():
            log = proxy.daemon.log(offset)[-SHOWN_LOG:]
            report.sections.append((f"log of the proxy {proxy.url}", log))
    return report
