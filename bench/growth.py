"""What tasks, streams and requests cost as their number grows."""

from __future__ import annotations

import random
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from statistics import median

import httpx

from bench import data, proc, report
from bench.compare import Progress, say
from bench.competitors import Server, ours
from bench.load import Invalid, send
from bench.workloads import line, write_requests
from todo_service.schemas import Cursor
from todo_service.store import Position

_PAGE = 100
_MIB = 2**20
_ROUNDS = 9
_SECONDS = 1


def run(server: str, folder: Path, *, quick: bool) -> None:
    """Measure on the PostgreSQL server at that URL; print tables."""
    sizes = (10_000, 100_000) if quick else (10_000, 100_000, 1_000_000)
    latencies = measure_latencies(server, folder, sizes)
    streaming = measure_streaming(server, folder, 40_000 if quick else 400_000)
    requests = measure_requests(server, folder, 20_000 if quick else 200_000)
    text = "\n\n".join(
        (latency_table(latencies, sizes), streaming_table(streaming), requests_table(requests))
    )
    figures = {"latencies_ms": latencies, "streaming": streaming, "resident_mib": requests}
    report.write("growth-quick" if quick else "growth", text, figures)


def measure_latencies(
    server: str, folder: Path, sizes: tuple[int, ...]
) -> dict[str, dict[int, list[float]]]:
    """By kind of request and number of tasks, all of one user: the median latency of each round.

    A database for each size and one request at a time, so that within a round every size meets the
    same machine.
    """
    servers: dict[int, Server] = {}
    with ExitStack() as stack:
        for size in sizes:
            place = folder / str(size)
            place.mkdir()
            url = stack.enter_context(data.own_database(server, str(size)))
            say(f"seeding {size:,} tasks")
            data.seed(url, users=1, tasks_each=size)
            files = write_growth_requests(place, size)
            servers[size] = stack.enter_context(ours(url, place, files))
        kinds = list(servers[sizes[0]].files)
        found: dict[str, dict[int, list[float]]] = {
            kind: {size: [] for size in sizes} for kind in kinds
        }
        progress = Progress(_ROUNDS * len(kinds) * len(sizes))
        for _ in range(_ROUNDS):
            for kind in kinds:
                for size, one in servers.items():
                    load = send(one.url, one.files[kind], seconds=_SECONDS, connections=1)
                    found[kind][size].append(load.p50_ms)
                    progress.show(f"{kind}, {size:,} tasks: {load.p50_ms:.2f} ms")
    return found


def write_growth_requests(folder: Path, size: int) -> dict[str, Path]:
    """Requests for single tasks anywhere, the first page, and pages in the oldest tenth."""
    user = data.user_id(0)
    token = data.sign(user)
    dice = random.Random(size)
    tasks = f"/api/{user}/tasks"
    page = f"{tasks}?limit={_PAGE}"
    oldest = [dice.randrange(_PAGE, size // 10) for _ in range(1000)]
    paths = {
        "get one": [f"{tasks}/{data.FIRST_TASK + dice.randrange(size)}" for _ in range(20_000)],
        "first page": [page],
        "page far in": [f"{page}&cursor={cursor(number)}" for number in oldest],
    }
    files: dict[str, Path] = {}
    for kind, wanted in paths.items():
        files[kind] = folder / f"{kind}.requests"
        files[kind].write_text("".join(line("GET", path, token) for path in wanted))
    return files


def cursor(number: int) -> str:
    """Where the task with that number stands: the first that was seeded has number 0."""
    created_at = data.FIRST_TIME + timedelta(seconds=number)
    return Cursor.encode(Position(created_at, data.FIRST_TASK + number))


def measure_streaming(server: str, folder: Path, tasks: int) -> dict[str, float]:
    """How much a worker grows while it streams that many tasks, over what it is when warm."""
    say(f"streaming {tasks:,} tasks")
    with data.own_database(server, "stream") as url:
        data.seed(url, users=1, tasks_each=tasks)
        files = write_growth_requests(folder, tasks)
        with ours(url, folder, files) as one:
            send(one.url, files["page far in"], seconds=2)
            idle = proc.workers(one.pid)
            received, peak, seen = 0, 0, 0
            headers = {"Authorization": f"Bearer {data.sign(data.user_id(0))}"}
            path = f"{one.url}/api/{data.user_id(0)}/tasks"
            started = time.monotonic()
            next_look = started
            with httpx.stream("GET", path, headers=headers, timeout=60) as answer:
                for piece in answer.iter_raw():
                    received += len(piece)
                    seen += piece.count(b"{")  # no title has one
                    if time.monotonic() >= next_look:
                        next_look += 0.02
                        now = proc.workers(one.pid)
                        peak = max(peak, *(now[pid] - idle[pid] for pid in idle))
            if seen != tasks:
                raise Invalid(f"{seen} of {tasks} tasks were streamed")
            return {
                "tasks": tasks,
                "body_mib": received / _MIB,
                "idle_mib": max(idle.values()) / _MIB,
                "growth_mib": peak / _MIB,
                "seconds": time.monotonic() - started,
            }


def measure_requests(server: str, folder: Path, requests: int) -> dict[int, float]:
    """Memory of the largest worker by the number of mixed requests that were answered."""
    found: dict[int, float] = {}
    with data.own_database(server, "requests") as url:
        data.seed(url)
        files = write_requests(folder)
        with ours(url, folder, files) as one:
            pids = proc.workers(one.pid).keys()
            sent = 0
            deadline = time.monotonic() + 15 * 60
            for milestone in (0, requests // 10, requests // 2, requests):
                while sent < milestone:
                    if time.monotonic() > deadline:
                        raise Invalid(f"only {sent} requests were answered in 15 minutes")
                    sent += one.load("mixed", 5).requests
                    say(f"{sent:,} of {requests:,} requests")
                resident = proc.workers(one.pid)
                # A second one may have come since the first had answered.
                if not pids <= resident.keys():
                    raise Invalid("a worker was replaced, and its memory with it")
                found[sent] = max(resident.values()) / _MIB
    return found


def latency_table(found: dict[str, dict[int, list[float]]], sizes: tuple[int, ...]) -> str:
    rows = []
    for kind, by_size in found.items():
        row = [kind]
        for size in sizes:
            ratio = median(a / b for a, b in zip(by_size[size], by_size[sizes[0]], strict=True))
            row.append(f"{median(by_size[size]):.2f} ms ({ratio:.2f})")
        rows.append(row)
    headings = ["median latency (to the first column)", *(f"{size:,} tasks" for size in sizes)]
    return report.table(headings, rows)


def streaming_table(found: dict[str, float]) -> str:
    headings = ("streamed in one answer", "body", "time", "worker before", "growth at most")
    row = (
        f"{found['tasks']:,} tasks",
        f"{found['body_mib']:.0f} MiB",
        f"{found['seconds']:.1f} s",
        f"{found['idle_mib']:.1f} MiB",
        f"{found['growth_mib']:.1f} MiB",
    )
    return report.table(headings, [row])


def requests_table(found: dict[int, float]) -> str:
    rows = [(f"{sent:,}", f"{resident:.1f} MiB") for sent, resident in found.items()]
    return report.table(("mixed requests answered", "largest worker"), rows)
