"""The comparison: every competitor, every workload, round by round."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench import data, proc
from bench.ceiling import Ceiling
from bench.competitors import Server
from bench.workloads import writes

Competitor = Server | Ceiling


@dataclass(frozen=True)
class Sample:
    """What one measurement gave; CPU in milliseconds per 1,000 requests, None if out of sight."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    app_cpu: float | None
    database_cpu: float | None


# By workload, then by competitor, a sample for each round.
Samples = dict[str, dict[str, list[Sample]]]


class Comparison:
    """Runs the measurements on one seeded database, whose URL this must be (not a proxy's)."""

    def __init__(self, url: str, competitors: Sequence[Competitor], workloads: Sequence[str]):
        self.url = url
        self.competitors = competitors
        self.workloads = workloads
        self.postmaster = proc.postmaster(url)

    def run(self, rounds: int, seconds: int) -> Samples:
        """Within a round the competitors take turns at each workload, so that drift hits all."""
        samples: Samples = {
            workload: {competitor.name: [] for competitor in self.competitors}
            for workload in self.workloads
        }
        progress = Progress(rounds * len(self.workloads) * len(self.competitors))
        for number in range(rounds):
            data.seed(self.url)
            for workload in self.workloads:
                for offset in range(len(self.competitors)):
                    # Another one goes first in every round.
                    competitor = self.competitors[(number + offset) % len(self.competitors)]
                    sample = self.measure(competitor, workload, seconds)
                    samples[workload][competitor.name].append(sample)
                    progress.show(
                        f"round {number + 1} of {rounds}, {workload}, {competitor.name}:"
                        f" {sample.requests_per_second:.0f} requests/s"
                    )
        return samples

    def warm_up(self) -> None:
        """Let every competitor fill its caches and its pool."""
        for competitor in self.competitors:
            self.measure(competitor, "mixed", 1)

    def measure(self, competitor: Competitor, workload: str, seconds: int) -> Sample:
        app = proc.cpu_seconds(competitor.pid)
        database = proc.cpu_seconds(self.postmaster)
        load = competitor.load(workload, seconds)
        sample = Sample(
            load.requests / load.seconds,
            load.p50_ms,
            load.p99_ms,
            spent(app, proc.cpu_seconds(competitor.pid), load.requests),
            spent(database, proc.cpu_seconds(self.postmaster), load.requests),
        )
        if competitor.uses_database and writes(workload):
            data.restore(self.url)
        return sample


def spent(before: float | None, after: float | None, requests: int) -> float | None:
    """Milliseconds per 1,000 requests, which are microseconds per request."""
    if before is None or after is None:
        return None
    return (after - before) * 1e6 / requests


def say(text: str) -> None:
    """Show progress: on a terminal, in place of what was shown before."""
    if sys.stderr.isatty():
        text = f"\r{text}\x1b[K"
    print(text, end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)


class Progress:
    """Says how far it is and how long the rest will take."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.done = 0
        self.started = time.monotonic()

    def show(self, text: str) -> None:
        self.done += 1
        elapsed = time.monotonic() - self.started
        minutes, seconds = divmod(int(elapsed / self.done * (self.steps - self.done)), 60)
        say(f"[{self.done}/{self.steps}, {minutes}:{seconds:02} left] {text}")
