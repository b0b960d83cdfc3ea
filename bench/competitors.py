"""Who is measured: HTTP servers with two workers each, and PostgreSQL alone."""

from __future__ import annotations

import json
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import httpx
from psycopg.conninfo import conninfo_to_dict

from bench import data
from bench.load import Invalid, Load, send
from bench.trees import ROOT, TODAY, Tree, environ
from bench.workloads import KINDS


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Program:
    """A process that runs from `with` to the end of its block."""

    def __init__(self, command: list[str], root: Path, log: Path, **variables: str) -> None:
        self.command = command
        self.root = root
        self.log = log
        self.environ = environ(**variables)

    def __enter__(self) -> Self:
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                self.command, cwd=self.root, env=self.environ, stdout=stream, stderr=stream
            )
        return self

    def __exit__(self, *_: object) -> None:
        self.process.terminate()
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def wait(self, is_ready: Callable[[], bool], seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not is_ready():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise Invalid(f"{shlex.join(self.command)}: {self.log.read_text()}")
            time.sleep(0.05)


class Server(Program):
    """An HTTP server on a port of its own; in a `with` block, it answers."""

    def __init__(
        self,
        name: str,
        command: list[str],
        folder: Path,
        files: dict[str, Path],
        *,
        database: str | None,
        root: Path = ROOT,
        **variables: str,
    ) -> None:
        port = str(free_port())
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.files = files
        self.database = database
        # What it can answer; bench.verify finds out.
        self.kinds = frozenset(KINDS)
        # UVICORN_PORT is to uvicorn what PORT is to gunicorn.
        variables |= {
            "JWT_SECRET": data.SECRET,
            "PORT": port,
            "UVICORN_PORT": port,
            "WEB_CONCURRENCY": "2",
        }
        if database is not None:
            variables["DATABASE_URL"] = database
        super().__init__(command, root, folder / f"{name}.log", **variables)

    def __enter__(self) -> Self:
        super().__enter__()
        with ExitStack() as stack:
            stack.push(self)
            self.wait(self.is_alive)
            stack.pop_all()
        return self

    def is_alive(self) -> bool:
        try:
            return httpx.get(f"{self.url}/health").status_code == 200
        except httpx.TransportError:
            return False

    @property
    def pid(self) -> int:
        return self.process.pid

    def load(self, workload: str, seconds: int) -> Load:
        try:
            return send(self.url, self.files[workload], seconds=seconds)
        except Invalid as error:
            log = self.log.read_text().splitlines()
            raise Invalid("\n".join([f"{self.name}: {error}", *log[-20:]])) from None


def ours(
    url: str, folder: Path, files: dict[str, Path], variant: str = "", tree: Tree = TODAY
) -> Server:
    """The service of a tree as its Procfile serves it.

    A variant names another gunicorn worker class, with a number of threads, and another size of the
    pool: gthread:8@8. What it leaves out stays as it is.
    """
    serving, _, pool_size = variant.partition("@")
    worker, _, threads = serving.partition(":")
    variables: dict[str, str] = {}
    if worker:
        options = ["-c", "bench/worker.conf.py", "-k", worker]
        options += ["--threads", threads] if threads else []
        variables |= {"BENCH_WORKER": worker, "GUNICORN_CMD_ARGS": shlex.join(options)}
    if pool_size:
        variables["DB_POOL_SIZE"] = pool_size
    return Server(
        variant or tree.name,
        [tree.program("gunicorn"), "wsgi:app"],
        folder,
        files,
        database=url,
        root=tree.root,
        **variables,
    )


def reference(url: str, folder: Path, files: dict[str, Path]) -> Server:
    command = [TODAY.program("uvicorn"), "bench.reference:app"]
    # Times in UTC, as the service has them. Both write a line to their log for each request.
    return Server("reference", command, folder, files, database=url, PGTZ="UTC")


def fastify(url: str, folder: Path, files: dict[str, Path]) -> Server:
    """The measured routes in Fastify with node-postgres. Installs what it needs beside it."""
    home = ROOT / "bench" / "fastify"
    npm = shutil.which("npm")
    if npm is None:
        raise Invalid("--fastify needs Node.js with npm")
    subprocess.run([npm, "install", "--silent", "--no-package-lock"], cwd=home, check=True)
    command = ["node", str(home / "server.js")]
    return Server("fastify", command, folder, files, database=url)


def fastify_versions() -> dict[str, str]:
    package = json.loads((ROOT / "bench" / "fastify" / "package.json").read_text())
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    return {"node": node.stdout.strip().removeprefix("v")} | package["dependencies"]


def floor(folder: Path, files: dict[str, Path]) -> Server:
    command = [TODAY.program("gunicorn"), "bench.floor:app"]
    return Server("floor", command, folder, files, database=None)


def proxied(url: str, port: int) -> str:
    """The URL of the same database through a proxy on that port of this host."""
    parts = urlsplit(url)
    user, at, _ = parts.netloc.rpartition("@")
    query = "&".join(
        pair
        for pair in parts.query.split("&")
        if pair.partition("=")[0] not in ("", "host", "hostaddr", "port")
    )
    return parts._replace(netloc=f"{user}{at}127.0.0.1:{port}", query=query).geturl()


def proxy(url: str, delay: float, folder: Path) -> tuple[Program, str]:
    """A proxy that adds `delay` ms each way, and the URL of the database through it."""
    stated = conninfo_to_dict(url)
    host, number = str(stated.get("host") or "localhost"), str(stated.get("port") or 5432)
    target = f"{host}/.s.PGSQL.{number}" if host.startswith("/") else f"{host}:{number}"
    port = free_port()
    command = [
        *(sys.executable, "-m", "bench.proxy", "--port", str(port)),
        *("--target", target, "--delay", str(delay)),
    ]
    return Program(command, ROOT, folder / "proxy.log"), proxied(url, port)
