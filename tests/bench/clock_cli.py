#!/usr/bin/env -S python3 -SE
"""Stands in for the CLI in latency.py: answers every question at once, and says when it did what.

The first delta holds two times: when the question was complete on stdin, and when the delta was written; every later
delta holds when it was written. The clock is the machine's monotonic one, the same in every process.
"""

import json
import os
import time

DELTAS = 10
PAUSE = 0.005


def write(line):
    os.write(1, json.dumps(line, separators=(",", ":")).encode() + b"\n")


def event(kind, **fields):
    write({"type": "stream_event", "event": {"type": kind, **fields}})


def answer(asked):
    event("message_start", message={"id": "msg", "type": "message", "role": "assistant", "model": "clock", "content": [],
                                    "usage": {"input_tokens": 1, "output_tokens": 1}})
    event("content_block_start", index=0, content_block={"type": "text", "text": ""})
    for number in range(DELTAS):
        if number:
            time.sleep(PAUSE)
        text = f"{asked!r} " if number == 0 else ""
        event("content_block_delta", index=0, delta={"type": "text_delta", "text": f"{text}{time.perf_counter()!r}"})
    event("content_block_stop", index=0)
    event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": DELTAS})
    event("message_stop")
    write({"type": "result", "subtype": "success", "is_error": False, "api_error_status": None, "num_turns": 1,
           "result": "", "stop_reason": "end_turn", "total_cost_usd": 0.0, "usage": {}})


def main():
    rest = b""
    while data := os.read(0, 1 << 20):
        at = time.perf_counter()
        *lines, rest = (rest + data).split(b"\n")
        for line in map(json.loads, lines):
            if line["type"] == "control_request":
                write({"type": "control_response",
                       "response": {"subtype": "success", "request_id": line["request_id"],
                                    "response": {"models": [], "version": "clock"}}})
            elif line["type"] == "user":
                answer(at)


main()
