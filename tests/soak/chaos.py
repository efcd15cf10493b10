"""What goes wrong meanwhile: killed processes, spent limits, broken answers, reloads."""

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import Callable

from talk import Tally

from harness.processes import children, command_line
from harness.proxy import Proxy
from harness.standin import Standin

#: What the provider does now and then, each time to one request.
PROVIDER = [
    {"type": "limit", "window": "five_hour", "resets_in_s": 4},
    {"type": "throttle"},
    {"type": "overloaded"},
    {"type": "status", "code": 500},
    {"type": "reset_before_headers"},
    {"type": "error_mid_stream", "after_deltas": 2, "kind": "reset"},
    {"type": "error_mid_stream", "after_deltas": 1, "kind": "eof"},
    {"type": "error_mid_stream", "after_deltas": 1, "kind": "event"},
]


class Chaos:
    """Makes trouble for a while."""

    def __init__(self, proxy: Proxy, standin: Standin, tally: Tally) -> None:
        self.proxy, self.standin, self.tally = proxy, standin, tally

    async def run(self, end: float) -> None:
        await asyncio.gather(
            self.every(6.0, end, self.kill_a_process),
            self.every(4.0, end, self.trouble_the_provider),
            self.every(9.0, end, self.reload),
        )

    async def every(self, seconds: float, end: float, action: Callable[[], None]) -> None:
        """About every so often until `end`, which is a moment of the monotonic clock."""
        while (pause := random.uniform(0.5, 1.5) * seconds) < end - time.monotonic():
            await asyncio.sleep(pause)
            await asyncio.to_thread(action)

    def kill_a_process(self) -> None:
        # Only the proxy's own children, and of these only such as are the CLI.
        candidates = [pid for pid in children(self.proxy.pid) if "--input-format" in command_line(pid)]
        if candidates:
            try:
                os.kill(random.choice(candidates), signal.SIGKILL)
            except ProcessLookupError:
                return
            self.tally.add("killed")

    def trouble_the_provider(self) -> None:
        action = random.choice(PROVIDER)
        self.standin.script(action, times=1, bearer=random.choice(self.proxy.names))
        self.tally.add(f"provider: {action['type']}")

    def reload(self) -> None:
        config = json.loads(self.proxy.config_path.read_text())
        for member in config["subscriptions"]:
            member["weeklyBudget"] = random.randint(10_000, 20_000)
        # One of them comes and goes.
        config["subscriptions"][-1]["enabled"] = random.random() < 0.5
        config["claude"]["sparesPerSubscription"] = random.choice([0, 1])
        new = self.proxy.config_path.with_suffix(".new")
        new.write_text(json.dumps(config))
        new.chmod(0o600)
        new.rename(self.proxy.config_path)
        self.tally.add("reloads")
