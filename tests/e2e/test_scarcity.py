"""A machine that has run out of something: the client is told, nothing is left behind, and afterwards all is well."""

import itertools
import os
import resource
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

from conftest import Start
from harness.chat import EXACT, ask, assistant, stream, user
from harness.proxy import Proxy
from harness.standin import Standin
from harness.waiting import wait_until

#: Processes are counted here.
SPARES = 0


def send(http: httpx.Client, text: str) -> httpx.Response:
    return http.post("/v1/chat/completions", json={"model": EXACT, "messages": [user(text)]})


def well(answer: httpx.Response, text: str) -> bool:
    """Whether it was answered; if not, it was refused as it should be."""
    if answer.status_code == 200:
        assert answer.json()["choices"][0]["message"]["content"] == f"You said: {text}. (turn 1)"
        return True
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (502, "upstream_error"), error
    assert error["message"] and "/" not in error["message"], "nothing of the machine is told to a client"
    return False


@contextmanager
def descriptors_left(pid: int, count: int) -> Iterator[None]:
    """So many more files can be opened by the process meanwhile."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    # The limit is on their numbers, of which some below the highest may be free.
    limit = 0
    while limit - len([one for one in taken if one < limit]) < count:
        limit += 1
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


def test_descriptors_run_out(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=1, claude={"maxProcesses": 4}, circuitBreaker={"enabled": False})
    # The connection is there already, as that of a client that asks now and then.
    assert well(send(proxy.http, "before"), "before")
    proxy.wait_idle()
    outcomes = []
    for left in range(0, 24, 2):
        text = f"{left} left"
        with descriptors_left(proxy.pid, left):
            outcomes.append(well(send(proxy.http, text), text))
        # What was begun in vain has left nothing, and the next is answered at once.
        proxy.wait_idle()
        assert well(send(proxy.http, f"after {text}"), f"after {text}")
        proxy.wait_idle()
    assert not outcomes[0], "without any no process can be started"
    assert outcomes[-1], "a process needs less than two dozen"
    assert "Too many open files" in proxy.daemon.log(), "the operator can see why"


def test_new_clients_wait_while_there_are_no_descriptors(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=1)
    standin.script({"type": "text", "count": 40, "chunk_delay_ms": 50}, contains="long")
    long = proxy.openai()
    chunks = long.chat.completions.create(model=EXACT, messages=[user("long")], stream=True)
    next(chunks)
    with descriptors_left(proxy.pid, 0):
        with httpx.Client(base_url=proxy.url, trust_env=False, timeout=1) as other, pytest.raises(httpx.TimeoutException):
            other.get("/health")
        # What runs is not disturbed.
        rest = [chunk for chunk in chunks]
        assert rest[-1].choices[0].finish_reason == "stop"
    with httpx.Client(base_url=proxy.url, trust_env=False, timeout=30) as other:
        assert other.get("/health").status_code == 200
    proxy.wait_idle()


#: Makes the folder in `$FULL_DISK` a disk of its own, a small one, which nobody else sees.
DISK = 'mount -t tmpfs -o size=2m,nr_inodes=200 tmpfs "$FULL_DISK" && exec "$@"'


class Disk:
    """A small disk of a proxy."""

    def __init__(self, proxy: Proxy, folder: Path) -> None:
        self.folder = Path(f"/proc/{proxy.pid}/root{folder}")

    @contextmanager
    def full(self) -> Iterator[None]:
        """Every byte and every file is taken meanwhile, also what somebody else gives back."""
        over, filled, names = threading.Event(), threading.Event(), itertools.count()

        def fill() -> None:
            while not over.is_set():
                with suppress(OSError), (self.folder / "filler").open("ab", buffering=0) as file:
                    while file.write(b"x" * 4096):
                        pass
                with suppress(OSError):
                    while True:
                        (self.folder / f"filler{next(names)}").touch()
                filled.set()
                time.sleep(0.005)

        thread = threading.Thread(target=fill)
        thread.start()
        assert filled.wait(30)
        try:
            yield
        finally:
            over.set()
            thread.join()
            for path in self.folder.glob("filler*"):
                path.unlink()


def start_on_disk(start: Start, tmp_path: Path, folder: Path, **settings: object) -> tuple[Proxy, Disk]:
    """A proxy that has `folder` on a disk of its own."""
    unshare = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--mount"]
    launcher = [*unshare, "sh", "-c", DISK, "sh"]
    proxy = start(subscriptions=1, launcher=launcher, **settings)
    return proxy, Disk(proxy, folder)


def test_the_disk_for_temporary_files_is_full(start: Start, standin: Standin, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    env = {"FULL_DISK": str(folder), "TMPDIR": str(folder)}
    proxy, disk = start_on_disk(start, tmp_path, folder, env=env, circuitBreaker={"enabled": False})
    talk = [user("before")]
    talk.append(assistant(ask(proxy.openai(), talk).choices[0].message.content))
    proxy.wait_idle()
    with disk.full():
        # The conversation goes on in its process, which needs no more room.
        answer = ask(proxy.openai(), [*talk, user("still there?")]).choices[0].message.content
        assert answer == "You said: still there?. (turn 2)"
        for number in range(3):
            assert not well(send(proxy.http, f"full {number}"), f"full {number}")
        assert "No space left on device" in proxy.daemon.log()
        proxy.wait_idle()
    assert well(send(proxy.http, "after"), "after")
    proxy.wait_idle()
    assert len(list(disk.folder.glob("cli-*"))) == len(proxy.cli_processes()), "a folder for each process, and no other"


def test_the_disk_of_the_profile_is_full(start: Start, standin: Standin, tmp_path: Path) -> None:
    folder = tmp_path / ".claude-full"
    folder.mkdir(mode=0o700)
    proxy, disk = start_on_disk(
        start,
        tmp_path,
        folder,
        env={"FULL_DISK": str(folder)},
        subscription_fields={"configDir": str(folder)},
        circuitBreaker={"enabled": False},
    )
    assert well(send(proxy.http, "before"), "before")
    proxy.wait_idle()
    with disk.full():
        # The CLI keeps notes there, which it can do without.
        for number in range(3):
            assert well(send(proxy.http, f"full {number}"), f"full {number}")
            streamed = stream(proxy.openai(), f"streamed {number}")
            assert streamed.text == f"You said: streamed {number}. (turn 1)" and streamed.finish_reasons == ["stop"]
        proxy.wait_idle()
    assert well(send(proxy.http, "after"), "after")
    proxy.wait_idle()


def test_the_profile_disappears(start: Start, standin: Standin) -> None:
    proxy = start(subscriptions=1)
    profile = proxy.folder / ".claude-sub1"
    client = proxy.openai()
    talk = [user("one")]
    talk.append(assistant(ask(client, talk).choices[0].message.content))
    standin.script({"type": "text", "count": 40, "chunk_delay_ms": 50}, times=1, contains="two")
    chunks = client.chat.completions.create(model=EXACT, messages=[*talk, user("two")], stream=True)
    next(chunks)
    shutil.rmtree(profile)
    assert list(chunks)[-1].choices[0].finish_reason == "stop", "what runs goes on"
    # The login is a token of the environment: another process makes itself a profile anew.
    assert well(send(proxy.http, "anew"), "anew")
    wait_until(profile.exists, "the profile to be there again")
    assert standin.last().bearer == "sub1"
    proxy.wait_idle()
