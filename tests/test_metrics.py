"""What the log and statsd tell: the commands of docs/deploy.md, LOG_FORMAT=json, --statsd-host."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT, SECRET, Server, User

METRICS = (ROOT / "docs" / "deploy.md").read_text().partition("\n## Metrics\n")[2]
METRICS = METRICS.partition("\n## ")[0]
COMMANDS = re.findall(r"^```sh\n(.*?)^```", METRICS, re.MULTILINE | re.DOTALL)
# Of tests/recorded.log: gunicorn from start to stop, with PostgreSQL away for a while, and a user
# whose id looks like fields.
ANSWERS = [
    {
        "7 GET /api/{user_id}/tasks/{task_id} 200",
        "4 POST /api/{user_id}/tasks 201",
        "4 GET /api/{user_id}/tasks 200",
        "2 GET /ready 200",
        "2 GET /api/{user_id}/tasks/{task_id} 503",
        "1 PUT /api/{user_id}/tasks/{task_id} 400",
        "1 GET /health 200",
        "1 GET - 404",
    },
    {"20% /api/{user_id}/tasks/{task_id}"},
    {"p50 6.3 p90 256.2 p99 301.6"},
    {
        "86.6 0.78 85.6 /api/{user_id}/tasks/{task_id}",
        "7.65 6.1875 0.1125 /api/{user_id}/tasks",
        "13 6.2 6.45 /ready",
        "0.2 0 0 -",
        "0.1 0 0 /health",
    },
]


def run(command: str, log: Path, folder: Path) -> set[str]:
    shutil.copyfile(log, folder / "service.log")
    output = subprocess.check_output(["sh", "-c", command], cwd=folder, text=True)
    return set(output.splitlines())


@pytest.mark.parametrize(("command", "answer"), list(zip(COMMANDS, ANSWERS, strict=True)))
def test_a_command_of_the_page_gives_its_answer_for_a_recorded_log(
    tmp_path: Path, command: str, answer: set[str]
) -> None:
    assert run(command, ROOT / "tests" / "recorded.log", tmp_path) == answer


def test_a_prefix_that_a_platform_puts_before_each_line_does_no_harm(tmp_path: Path) -> None:
    log = tmp_path / "prefixed.log"
    recorded = (ROOT / "tests" / "recorded.log").read_text()
    log.write_text(re.sub("^", "2026-11-21T09:30:00+00:00 app[web.1]: ", recorded, flags=re.M))

    for command, answer in zip(COMMANDS, ANSWERS, strict=True):
        assert run(command, log, tmp_path) == answer


def serve(database_url: str, folder: Path, **environ: str) -> str:
    """The log of a gunicorn that answered three requests, of which one is no HTTP."""
    log = folder / "log"
    server = Server(log, DATABASE_URL=database_url, JWT_SECRET=SECRET, **environ)
    server.wait("/ready")
    with User(server.url, "4 2") as user:
        user.headers["X-Request-ID"] = "42"
        user.create()
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"rubbish\r\n\r\n")
        client.recv(4096)
    assert server.stop() == 0
    return log.read_text()


def test_statsd_counts_requests_which_still_leave_one_line_each(
    database_url: str, tmp_path: Path
) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as statsd:
        statsd.bind(("127.0.0.1", 0))
        statsd.settimeout(20)
        address = f"127.0.0.1:{statsd.getsockname()[1]}"
        # With the access log that platforms turn on.
        arguments = f"--access-logfile - --statsd-host {address} --statsd-prefix todo"
        log = serve(database_url, tmp_path, GUNICORN_CMD_ARGS=arguments)
        sent = []
        while not sent or "status.201" not in sent[-1]:
            sent.append(statsd.recv(4096).decode())

    assert "todo.gunicorn.requests:1|c|@1.0" in sent
    assert "todo.gunicorn.request.status.201:1|c|@1.0" in sent
    assert any(re.fullmatch(r"todo\.gunicorn\.request\.duration:[\d.]+\|ms", line) for line in sent)
    (line,) = [line for line in log.splitlines() if line.endswith(" request_id=42")]
    assert " method=POST " in line
    assert "HTTP/1.1" not in log
    requests = run(COMMANDS[0], tmp_path / "log", tmp_path)
    assert "1 POST /api/{user_id}/tasks 201" in requests


def test_as_json_each_line_of_the_log_is_an_object_with_the_same_fields(
    database_url: str, tmp_path: Path
) -> None:
    log = serve(database_url, tmp_path, LOG_FORMAT="json")

    lines = [json.loads(line) for line in log.splitlines()]
    (request,) = [line for line in lines if line.get("request_id") == "42"]
    assert list(request) == [
        *("time", "level", "logger", "method", "route", "status", "ms", "db_ms", "pool_ms"),
        *("user", "request_id"),
    ]
    assert (request["status"], request["user"]) == (201, "4 2")
    assert all(isinstance(request[name], float) for name in ("ms", "db_ms", "pool_ms"))
    (malformed,) = [line for line in lines if line.get("event") == "malformed_request"]
    assert (malformed["level"], malformed["reason"]) == ("WARNING", "InvalidRequestLine")
    booting = [line for line in lines if line.get("message", "").startswith("Booting worker")]
    assert [list(line) for line in booting] == [["time", "level", "logger", "pid", "message"]] * 2
    assert all(isinstance(line["pid"], int) for line in booting)
