"""`python -m bench`: from an empty PostgreSQL to the tables, in one run."""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import httpx
import psycopg

from bench import data, growth, report, verify
from bench.ceiling import Ceiling
from bench.compare import Comparison, Competitor
from bench.competitors import Server, fastify, fastify_versions, floor, ours, proxy, reference
from bench.load import Invalid
from bench.workloads import WORKLOADS, write_requests
from todo_service import embedded


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure the service.")
    parser.add_argument("--quick", action="store_true", help="less of everything: to try it out")
    parser.add_argument("--growth", action="store_true", help="cost as tasks and requests grow")
    parser.add_argument(
        "--latency", type=float, default=0, metavar="MS", help="added each way to the database"
    )
    parser.add_argument(
        "--worker",
        action="append",
        default=[],
        metavar="[CLASS[:THREADS]][@POOL]",
        help="also the service on another gunicorn worker or pool: gthread:8@8, @8; repeatable as"
        " far as PostgreSQL's max_connections goes",
    )
    parser.add_argument(
        "--fastify", action="store_true", help="also the measured routes in Fastify; needs Node.js"
    )
    parser.add_argument(
        "--only", action="append", choices=WORKLOADS, help="this workload; repeatable"
    )
    return parser.parse_args()


def main() -> None:
    options = parse()
    # So that what this has started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    folder = Path(tempfile.mkdtemp(prefix="todo-bench-"))
    # Registered first, so run last: after the server has stopped.
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    server = os.environ.get("BENCH_DATABASE_URL") or embedded.start(folder)
    try:
        if options.growth:
            growth.run(server, folder, quick=options.quick)
        else:
            compare(server, folder, options)
    except (Invalid, httpx.HTTPError, psycopg.Error) as error:
        sys.exit(f"The run is invalid: {error}")


def compare(server: str, folder: Path, options: argparse.Namespace) -> None:
    files = write_requests(folder)
    rounds, seconds = (2, 1) if options.quick else (5, 4)
    with ExitStack() as stack:
        url = stack.enter_context(data.own_database(server, "tasks"))
        distant = url
        if options.latency:
            program, distant = proxy(url, options.latency, folder)
            stack.enter_context(program)
            program.wait(lambda: connects(distant))
        servers = [ours(distant, folder, files), reference(distant, folder, files)]
        servers += [ours(distant, folder, files, variant) for variant in options.worker]
        servers += [fastify(distant, folder, files)] if options.fastify else []
        servers += [floor(folder, files)]
        for one in servers:
            stack.enter_context(one)
        check(url, servers)
        competitors: list[Competitor] = [*servers, Ceiling(distant, folder)]
        comparison = Comparison(url, competitors, options.only or list(WORKLOADS))
        comparison.warm_up()
        samples = comparison.run(rounds, seconds)
        machine = report.machine(url) | (fastify_versions() if options.fastify else {})

    name = "quick" if options.quick else "full"
    name += f"-latency-{options.latency:g}" if options.latency else ""
    name += "-workers" if options.worker else ""
    name += "-fastify" if options.fastify else ""
    described = ", ".join(f"{key} {value}" for key, value in machine.items())
    text = (
        f"{report.comparison_table(samples)} {rounds} rounds of {seconds} s; {options.latency:g} ms"
        f" added each way between application and database.\n\nMachine: {described}."
    )
    figures: dict[str, object] = {
        "machine": machine,
        "options": vars(options),
        "samples": report.as_json(samples),
    }
    report.write(name, text, figures)
    report.plot(name, samples)


def connects(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def check(url: str, servers: list[Server]) -> None:
    """Compare the answers of all to those of the first."""
    expected: dict[str, verify.Answer] = {}
    data.seed(url)
    for one in servers:
        found = verify.ask(one)
        data.restore(url)
        expected = expected or found
        if one.uses_database:
            verify.compare(one, found, expected)
        else:
            verify.compare_size(one, found, expected)


if __name__ == "__main__":
    main()
