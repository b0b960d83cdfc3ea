"""CPU time and memory of processes, from /proc (proc_pid_stat(5)) and their CPU clocks."""

from __future__ import annotations

import ctypes
import os
import time
from pathlib import Path
from typing import NamedTuple

import psycopg

_TICK = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_LIBC = ctypes.CDLL(None)


class Process(NamedTuple):
    name: str
    parent: int
    own: float  # seconds of CPU
    ended: float  # the same, of its children that have ended
    resident: int  # bytes


def read(pid: int) -> Process | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
        own = clock(pid)
    except OSError:
        return None  # it has ended
    # A name may hold blanks and brackets.
    before, _, after = text.rpartition(")")
    fields = after.split()
    ended = sum(map(int, fields[13:15])) * _TICK
    return Process(before.partition("(")[2], int(fields[1]), own, ended, int(fields[21]) * _PAGE)


def clock(pid: int) -> float:
    """Seconds of CPU that the process has used. Raises OSError if there is none.

    To the nanosecond, where its stat counts in hundredths of a second: over a turn of a second
    those would blur what each of PostgreSQL's back-ends has done (clock_getcpuclockid(3)).
    """
    number = ctypes.c_int()
    if error := _LIBC.clock_getcpuclockid(pid, ctypes.byref(number)):
        raise OSError(error, os.strerror(error))
    return time.clock_gettime(number.value)


def tree(root: int) -> dict[int, Process]:
    """The process and all its descendants."""
    pids = (int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit())
    everyone = {pid: process for pid in pids if (process := read(pid)) is not None}
    found: dict[int, Process] = {}
    pending = [root]
    while pending:
        pid = pending.pop()
        if pid in everyone:
            found[pid] = everyone[pid]
            pending += (child for child, process in everyone.items() if process.parent == pid)
    return found


def cpu_seconds(root: int | None) -> float | None:
    """CPU time of the tree so far; None if there is no tree to look at.

    It only grows: when a process ends, what it has used is added to its parent's, and a back-end's
    to the postmaster's. If that happens while this reads, it is counted twice or not at all, so it
    reads again.
    """
    if root is None:
        return None
    last: dict[int, float] = {}
    while True:
        now = tree(root)
        ended = {pid: process.ended for pid, process in now.items()}
        if ended == last:
            return sum(process.own + process.ended for process in now.values())
        last = ended


def workers(root: int) -> dict[int, int]:
    """Resident bytes of each child of the process."""
    return {pid: one.resident for pid, one in tree(root).items() if one.parent == root}


def postmaster(url: str) -> int | None:
    """The id of PostgreSQL's first process, or None if it is not visible from here."""
    with psycopg.connect(url) as connection:
        host = connection.info.host
        backend = read(connection.info.backend_pid)
    if backend is None or not (host.startswith("/") or host in ("localhost", "127.0.0.1", "::1")):
        return None
    return backend.parent if backend.name == "postgres" else None
