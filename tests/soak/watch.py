"""What is seen from outside: memory, descriptors and processes over time, and every request at the provider."""

import asyncio
import csv
import os
import re
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path

from talk import Tally

from harness.processes import command_line, stats
from harness.proxy import Proxy
from harness.standin import Standin

#: Seconds between two lines that say how far it is.
PROGRESS = 30

NONCE = re.compile(r"n(\d{6})x(\d+)x[0-9a-f]{8}")


@dataclass
class Sample:
    """One look at the proxy."""

    seconds: float
    rss_mb: float
    descriptors: int
    threads: int
    processes: int
    processes_pss_mb: float
    turns: int


def pss_mb(pid: int) -> float:
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^Pss:\s+(\d+)", text, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def field_of_status(pid: int, name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return int(found[1]) if found else 0


class Watch:
    """Samples until it is cancelled, and looks through what reached the provider."""

    def __init__(self, proxy: Proxy, standin: Standin, tally: Tally, interval: float) -> None:
        self.proxy, self.standin, self.tally, self.interval = proxy, standin, tally, interval
        self.samples: list[Sample] = []
        self.begun = time.monotonic()
        self.seen = 0
        self.next_word = PROGRESS

    async def run(self) -> None:
        # Cancelled between two looks only: a look that is given up would go on in its thread.
        while True:
            await asyncio.shield(asyncio.to_thread(self.look))
            await asyncio.sleep(self.interval)

    def look(self) -> None:
        self.audit()
        pid = self.proxy.pid
        running = [stat.pid for stat in stats() if stat.parent == pid and stat.state != "Z"]
        self.samples.append(
            Sample(
                round(time.monotonic() - self.begun, 1),
                round(field_of_status(pid, "VmRSS") / 1024, 1),
                len(os.listdir(f"/proc/{pid}/fd")),
                field_of_status(pid, "Threads"),
                len([child for child in running if "--input-format" in command_line(child)]),
                round(sum(map(pss_mb, running)), 1),
                self.tally.counts["turns"],
            )
        )
        self.say()

    def say(self) -> None:
        """How far it is, now and then."""
        now = self.samples[-1]
        if now.seconds < self.next_word:
            return
        self.next_word = now.seconds + PROGRESS
        print(f"  {now.seconds:6.0f} s: {now.turns} turns, {len(self.tally.wrong)} wrong; proxy {now.rss_mb} MB, "
              f"{now.descriptors} descriptors; {now.processes} processes, {now.processes_pss_mb} MB", file=sys.stderr, flush=True)

    def audit(self) -> None:
        """Every request upstream holds the words of one conversation, each turn once and in order."""
        for request in self.standin.requests(self.seen):
            self.seen = max(self.seen, request.number)
            self.tally.add("requests upstream")
            said = [NONCE.findall(str(message["content"])) for message in request.body["messages"] if message["role"] == "user"]
            nonces = [nonce for message in said for nonce in message]
            conversations = {number for number, _ in nonces}
            turns = list(dict.fromkeys(int(turn) for _, turn in nonces))
            if len(conversations) != 1 or turns != list(range(len(turns))):
                self.tally.wrong.append(f"request {request.number} upstream mixes or loses turns: {nonces}")
            if request.status == 400:
                self.tally.wrong.append(f"request {request.number} upstream was refused for its structure")

    def write(self, folder: Path, name: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            names = [field.name for field in fields(Sample)]
            writer.writerow(names)
            writer.writerows([getattr(sample, name) for name in names] for sample in self.samples)
        (folder / f"{name}.svg").write_text(self.svg(name))

    def svg(self, title: str) -> str:
        """Three curves over time, each with a scale of its own."""
        rows = [("proxy, RSS in MB", "rss_mb"), ("proxy, descriptors", "descriptors"),
                ("CLI processes", "processes"), ("CLI processes, PSS in MB", "processes_pss_mb")]
        width, height, left = 900, 130, 60
        end = max(sample.seconds for sample in self.samples) or 1
        parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height * len(rows) + 40}" '
                 f'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>'
                 f'<text x="{left}" y="18" font-weight="bold">{title}</text>']
        for row, (label, name) in enumerate(rows):
            top, values = 30 + row * height, [getattr(sample, name) for sample in self.samples]
            most = max(values) or 1
            points = " ".join(
                f"{left + sample.seconds / end * (width - left - 20):.1f},{top + 100 - value / most * 80:.1f}"
                for sample, value in zip(self.samples, values, strict=True)
            )
            parts.append(f'<line x1="{left}" y1="{top + 100}" x2="{width - 20}" y2="{top + 100}" stroke="#999"/>'
                         f'<text x="{left}" y="{top + 14}">{label}</text>'
                         f'<text x="{left - 6}" y="{top + 24}" text-anchor="end">{most:g}</text>'
                         f'<text x="{left - 6}" y="{top + 104}" text-anchor="end">0</text>'
                         f'<polyline points="{points}" fill="none" stroke="#1f5fbf" stroke-width="1.5"/>')
        parts.append(f'<text x="{width - 20}" y="{30 + len(rows) * height}" text-anchor="end">{end:.0f} s</text></svg>')
        return "\n".join(parts)
