"""`make test-citus`: the tests of the API on a Citus cluster, after the schema was applied twice.

The cluster is the one whose coordinator CITUS_DATABASE_URL names (a superuser, a database to write
to); else one of three nodes in a temporary folder, if the local PostgreSQL has Citus.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psycopg

from tests.conftest import ROOT, free_port
from todo_service import embedded
from todo_service.ops.migrate import SQL, apply_schema, differences

# PostgreSQL refuses to run as root, and another user can read nothing in HOME.
ACCOUNT = {"user": "postgres", "group": "postgres"} if os.geteuid() == 0 else {}
PROCESS = {"cwd": "/", "env": {}} | ACCOUNT


def main() -> int:
    with cluster() as url:
        for _ in range(2):  # each deploy's release phase applies the schema again
            apply_schema(url)
            psql = [embedded.binaries() / "psql", url, "-X", "-q"]
            subprocess.run([*psql, "-f", SQL / "citus.sql"], check=True)
        with psycopg.connect(url) as connection:
            if wrong := differences(connection):
                sys.exit("\n".join(wrong))
        pytest = [sys.executable, "-m", "pytest", "tests/api", *sys.argv[1:]]
        return subprocess.call(pytest, cwd=ROOT, env=os.environ | {"TEST_DATABASE_URL": url})


@contextmanager
def cluster() -> Iterator[str]:
    """The URL of a coordinator."""
    if "CITUS_DATABASE_URL" in os.environ:
        yield os.environ["CITUS_DATABASE_URL"]
        return
    programs = postgresql_with_citus()
    with tempfile.TemporaryDirectory(prefix="todo-service-citus-") as folder, ExitStack() as nodes:
        if ACCOUNT:
            shutil.chown(folder, **ACCOUNT)
        ports = [nodes.enter_context(node(programs, Path(folder, name))) for name in "012"]
        with psycopg.connect(url_of(ports[0]), autocommit=True) as connection:
            connection.execute("SELECT citus_set_coordinator_host('127.0.0.1', %s)", ports[:1])
            for port in ports[1:]:
                connection.execute("SELECT citus_add_node('127.0.0.1', %s)", (port,))
        yield url_of(ports[0])


def postgresql_with_citus() -> Path:
    """The folder of the programs of a PostgreSQL for which Citus is installed."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin/pg_config"), shutil.which("pg_config")]
    for pg_config in filter(None, found):
        options = [pg_config, "--bindir", "--pkglibdir"]
        programs, libraries = map(Path, subprocess.check_output(options, text=True).splitlines())
        if (libraries / "citus.so").exists() and (programs / "postgres").exists():
            return programs
    sys.exit(
        "make test-citus needs a local PostgreSQL with Citus (https://docs.citusdata.com),"
        " or CITUS_DATABASE_URL, the coordinator of a cluster"
    )


@contextmanager
def node(programs: Path, folder: Path) -> Iterator[int]:
    """The port of a PostgreSQL with Citus, on the loopback interface."""
    new = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
    initdb = [programs / "initdb", "-D", folder, *new]
    subprocess.run(initdb, check=True, stdout=subprocess.DEVNULL, **PROCESS)
    port = free_port()
    settings = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "shared_preload_libraries": "citus",
        "fsync": "off",
    }
    postgres = [programs / "postgres", "-D", folder]
    postgres += [f"--{name}={value}" for name, value in settings.items()]
    log = folder.with_suffix(".log")
    with log.open("wb") as stream:
        server = subprocess.Popen(postgres, stdout=stream, stderr=stream, **PROCESS)
    try:
        while True:
            try:
                with psycopg.connect(url_of(port)) as connection:
                    connection.execute("CREATE EXTENSION citus")
                break
            except psycopg.OperationalError:
                assert server.poll() is None, log.read_text()
                time.sleep(0.1)
        yield port
    finally:
        server.send_signal(signal.SIGINT)
        server.wait(60)


def url_of(port: int) -> str:
    return f"postgresql://postgres@127.0.0.1:{port}/postgres"


if __name__ == "__main__":
    sys.exit(main())
