"""Who is measured: HTTP servers with two workers each, and PostgreSQL alone."""

from __future__ import annotations

import json
import os
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

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def program(name: str) -> str:
    """The path of a program of the environment that this runs in."""
    return str(Path(sys.executable).parent / name)


class Program:
    """A process that runs from `with` to the end of its block."""

    def __init__(self, command: list[str], log: Path, **environ: str) -> None:
        self.command = command
        self.log = log
        # A developer's .env is no part of what is measured.
        always = {"PATH": os.environ["PATH"], "PYTHON_DOTENV_DISABLED": "1"}
        self.environ = always | environ

    def __enter__(self) -> Self:
        with self.log.open("ab") as stream:
            self.process = subprocess.Popen(
                self.command, cwd=ROOT, env=self.environ, stdout=stream, stderr=stream
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

    uses_database = True

    def __init__(
        self, name: str, command: list[str], folder: Path, files: dict[str, Path], **environ: str
    ) -> None:
        port = str(free_port())
        self.name = name
        self.url = f"http://127.0.0.1:{port}"
        self.files = files
        # UVICORN_PORT is to uvicorn what PORT is to gunicorn.
        environ |= {
            "JWT_SECRET": data.SECRET,
            "PORT": port,
            "UVICORN_PORT": port,
            "WEB_CONCURRENCY": "2",
        }
        super().__init__(command, folder / f"{name}.log", **environ)

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


def ours(url: str, folder: Path, files: dict[str, Path], variant: str = "") -> Server:
    """The service as the Procfile serves it.

    A variant names another gunicorn worker class, with a number of threads, and another size of the
    pool: gthread:8@8. What it leaves out stays as it is.
    """
    serving, _, pool_size = variant.partition("@")
    worker, _, threads = serving.partition(":")
    environ = {"DATABASE_URL": url}
    if worker:
        options = ["-c", "bench/worker.conf.py", "-k", worker]
        options += ["--threads", threads] if threads else []
        environ |= {"BENCH_WORKER": worker, "GUNICORN_CMD_ARGS": shlex.join(options)}
    if pool_size:
        environ["DB_POOL_SIZE"] = pool_size
    name = variant or "ours"
    return Server(name, [program("gunicorn"), "wsgi:app"], folder, files, **environ)


def reference(url: str, folder: Path, files: dict[str, Path]) -> Server:
    command = [program("uvicorn"), "bench.reference:app"]
    # Times in UTC, as the service has them. Both write a line to their log for each request.
    return Server("reference", command, folder, files, DATABASE_URL=url, PGTZ="UTC")


def fastify(url: str, folder: Path, files: dict[str, Path]) -> Server:
    """The measured routes in Fastify with node-postgres. Installs what it needs beside it."""
    home = ROOT / "bench" / "fastify"
    npm = shutil.which("npm")
    if npm is None:
        raise Invalid("--fastify needs Node.js with npm")
    subprocess.run([npm, "install", "--silent", "--no-package-lock"], cwd=home, check=True)
    command = ["node", str(home / "server.js")]
    return Server("fastify", command, folder, files, DATABASE_URL=url)


def fastify_versions() -> dict[str, str]:
    package = json.loads((ROOT / "bench" / "fastify" / "package.json").read_text())
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)
    return {"node": node.stdout.strip().removeprefix("v")} | package["dependencies"]


def floor(folder: Path, files: dict[str, Path]) -> Server:
    server = Server("floor", [program("gunicorn"), "bench.floor:app"], folder, files)
    server.uses_database = False
    return server


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
    return Program(command, folder / "proxy.log"), proxied(url, port)
