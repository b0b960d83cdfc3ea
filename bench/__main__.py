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

from bench import data, growth, report, trees, verify
from bench.ceiling import Ceiling
from bench.compare import Comparison, Competitor, Samples
from bench.competitors import Server, fastify, fastify_versions, floor, ours, proxy, reference
from bench.load import Invalid
from bench.workloads import KINDS, WORKLOADS, write_requests
from todo_service import embedded


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description="Measure the service.")
    parser.add_argument("--quick", action="store_true", help="less of everything: to try it out")
    parser.add_argument(
        "--against",
        metavar="REF",
        help="only the service, and beside it the service of that git reference: its files, its"
        " schema in a database of its own, and, where its requirements.txt asks for other versions"
        " than today's, an environment of its own for this run",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="with --against, also the reference, the floor and pgbench",
    )
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="5 of 4 s, or 2 of 1 s with --quick; with --against 12 of 1 s, or 4 with --quick",
    )
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
    options = parser.parse_args()
    if options.growth and options.against:
        parser.error("--growth has no --against")
    if options.against:
        # Many short turns tell two trees apart better than a few long ones.
        rounds, options.seconds = (4, 1) if options.quick else (12, 1)
    else:
        rounds, options.seconds = (2, 1) if options.quick else (5, 4)
    options.rounds = options.rounds or rounds
    return options


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
    base = trees.at(options.against, folder) if options.against else None
    everyone = options.all or base is None
    files = write_requests(folder)
    with ExitStack() as stack:
        distant = server
        if options.latency:
            program, distant = proxy(server, options.latency, folder)
            stack.enter_context(program)
            program.wait(lambda: connects(distant))
        url = stack.enter_context(data.own_database(distant, "tasks"))
        servers = [ours(url, folder, files)]
        if base:
            # A database of its own: the schema may be another one.
            own = stack.enter_context(data.own_database(distant, "against", base))
            servers += [ours(own, folder, files, tree=base)]
        servers += [reference(url, folder, files)] if everyone else []
        servers += [ours(url, folder, files, variant) for variant in options.worker]
        servers += [fastify(url, folder, files)] if options.fastify else []
        servers += [floor(folder, files)] if everyone else []
        for one in servers:
            stack.enter_context(one)
        notes = check(servers, base)
        competitors: list[Competitor] = [*servers]
        competitors += [Ceiling(url, folder)] if everyone else []
        comparison = Comparison(server, competitors, options.only or list(WORKLOADS))
        comparison.warm_up()
        samples = comparison.run(options.rounds, options.seconds)
        machine = report.machine(server) | (fastify_versions() if options.fastify else {})
    write(options, base, samples, machine, notes)


def write(
    options: argparse.Namespace,
    base: trees.Tree | None,
    samples: Samples,
    machine: dict[str, str],
    notes: list[str],
) -> None:
    name = "quick" if options.quick else "full"
    name += f"-against-{base.name}" if base else ""
    name += "-all" if base and options.all else ""
    name += f"-latency-{options.latency:g}" if options.latency else ""
    name += "-workers" if options.worker else ""
    name += "-fastify" if options.fastify else ""
    paragraphs: list[str] = []
    if base:
        paragraphs += report.against(samples, base.name)
        notes = [f"Ours is {trees.describe_today()}.", *notes]
        if base.programs != trees.TODAY.programs:
            notes.append(f"{base.name} runs on other versions of packages, from its requirements.")
    if base is None or options.all or options.worker or options.fastify:
        paragraphs += report.comparison(samples)
    paragraphs[-1] += (
        f" {options.rounds} rounds of {options.seconds} s; {options.latency:g} ms"
        " added each way between application and database."
    )
    paragraphs += [" ".join(notes)] if notes else []
    described = ", ".join(f"{key} {value}" for key, value in machine.items())
    paragraphs += [f"Machine: {described}."]
    figures: dict[str, object] = {
        "machine": machine,
        "options": vars(options),
        "samples": report.as_json(samples),
    }
    report.write(name, "\n\n".join(paragraphs), figures)
    report.plot(name, samples)


def connects(url: str) -> bool:
    try:
        psycopg.connect(url).close()
    except psycopg.OperationalError:
        return False
    return True


def check(servers: list[Server], base: trees.Tree | None) -> list[str]:
    """Compare the answers of all to those of the first; returns what a reader should know.

    What a competitor cannot answer is not asked of it any more. Only the tree of another commit
    may answer otherwise: that may be what has been changed.
    """
    expected: dict[str, verify.Answer] = {}
    notes: list[str] = []
    for one in servers:
        if one.database is not None:
            data.seed(one.database)
        found = verify.ask(one, knows_all=one is servers[0])
        expected = expected or found
        one.kinds = frozenset(found)
        if unknown := ", ".join(kind for kind in KINDS if kind not in found):
            notes.append(f"{one.name} does not know: {unknown}.")
        if base and one.name == base.name:
            if others := ", ".join(verify.differing(found, expected)):
                notes.append(f"{one.name} answers otherwise: {others}.")
        elif one.database is not None:
            verify.compare(one, found, expected)
        else:
            verify.compare_size(one, found, expected)
    return notes


if __name__ == "__main__":
    main()
