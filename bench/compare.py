"""The comparison: every competitor, every workload, round by round."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from bench import data, proc
from bench.ceiling import Ceiling
from bench.competitors import Server
from bench.workloads import WORKLOADS, weight, writes

Competitor = Server | Ceiling


@dataclass(frozen=True)
class Sample:
    """One measurement; CPU in milliseconds per 1,000 requests, None where it cannot be seen."""

    requests_per_second: float
    p50_ms: float
    p99_ms: float
    app_cpu: float | None
    database_cpu: float | None


# By workload, then by competitor, a sample for each round.
Samples = dict[str, dict[str, list[Sample]]]


class Comparison:
    """Runs the measurements on databases of one PostgreSQL, whose URL this must be (no proxy's)."""

    def __init__(self, server: str, competitors: Sequence[Competitor], workloads: Sequence[str]):
        self.competitors = competitors
        # To be seeded before the next round.
        self.changed = {one.database for one in competitors if one.database is not None}
        self.postmaster = proc.postmaster(server)
        # Which competitors take part in each workload.
        self.workloads = {
            workload: [one for one in competitors if WORKLOADS[workload].keys() <= one.kinds]
            for workload in workloads
        }

    def run(self, rounds: int, seconds: int) -> Samples:
        """Within a round the competitors take turns at each workload, so that drift hits all."""
        samples: Samples = {
            workload: {competitor.name: [] for competitor in competitors}
            for workload, competitors in self.workloads.items()
        }
        progress = Progress(rounds * sum(map(len, self.workloads.values())))
        for number in range(rounds):
            while self.changed:
                data.seed(self.changed.pop())
            for workload, competitors in self.workloads.items():
                for offset in range(len(competitors)):
                    # Another one goes first in every round.
                    competitor = competitors[(number + offset) % len(competitors)]
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
            known = [name for name, able in self.workloads.items() if competitor in able]
            for workload in known[-1:]:  # the last one is the mixed one
                self.measure(competitor, workload, 1)

    def measure(self, competitor: Competitor, workload: str, seconds: int) -> Sample:
        app = proc.cpu_seconds(competitor.pid)
        database = proc.cpu_seconds(self.postmaster)
        load = competitor.load(workload, seconds)
        requests = load.requests * weight(workload)
        sample = Sample(
            requests / load.seconds,
            load.p50_ms,
            load.p99_ms,
            spent(app, proc.cpu_seconds(competitor.pid), requests),
            spent(database, proc.cpu_seconds(self.postmaster), requests),
        )
        if competitor.database is not None and writes(workload):
            # This does not undo all of it: the files of PostgreSQL have grown.
            data.restore(competitor.database)
            self.changed.add(competitor.database)
        return sample


def spent(before: float | None, after: float | None, requests: float) -> float | None:
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
