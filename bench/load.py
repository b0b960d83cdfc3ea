"""Requests sent by wrk, each after the answer to the one before; an error makes the run invalid."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import NamedTuple

_SCRIPT = Path(__file__).parent / "requests.lua"


class Invalid(Exception):
    """Something went wrong, and the figures would mean nothing."""


class Load(NamedTuple):
    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float


def send(url: str, requests: Path, *, seconds: int, connections: int = 32) -> Load:
    """Send the requests of a file, again and again, for so many seconds. Raises Invalid."""
    done = subprocess.run(
        [
            *("wrk", "--threads", "1", "--connections", str(connections)),
            *("--duration", f"{seconds}s", "--timeout", "10s"),
            *("--script", str(_SCRIPT), url, "--", str(requests)),
        ],
        capture_output=True,
        text=True,
        timeout=seconds + 60,
    )
    if done.returncode:
        raise Invalid(f"wrk: {done.stderr.strip()}")
    result = json.loads(done.stdout.splitlines()[-1])
    for kind in ("bad_status", "socket_errors"):
        if count := result.pop(kind):
            raise Invalid(f"{requests.name} to {url}: {kind} {count} of {result['requests']}")
    if not result["requests"]:
        raise Invalid(f"{requests.name} to {url}: no answer in {seconds} s")
    return Load(**result)
