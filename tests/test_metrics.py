"""What the log, statsd and traces tell, by what docs/deploy.md says of them."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import TracesData

from tests.conftest import ROOT, SECRET, Server, User

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "deploy.md").read_text()
_, _, METRICS = PAGE.partition("\n## Metrics\n")
METRICS, _, _ = METRICS.partition("\n## ")
(TRACED,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
COMMANDS = re.findall(r"^```sh\n(.*?)^```", METRICS, re.MULTILINE | re.DOTALL)
AWK = [command for command in COMMANDS if command.startswith("awk")]
JQ = [command for command in COMMANDS if command.startswith("jq")]
# A user whose id looks like fields, and a line that is no request's.
LOG = """\
level=INFO logger=todo_service.requests method=GET route=/ready status=200 ms=3.0 db_ms=2.0 pool_ms=0.5 user=- request_id=1
level=INFO logger=todo_service.requests method=GET route=/api/{user_id}/tasks status=200 ms=5.0 db_ms=4.0 pool_ms=0.0 user="a status=500 ms=9" request_id=2
level=WARNING logger=todo_service event=database_unavailable sqlstate=- reason=PoolTimeout request_id=3
level=INFO logger=todo_service.requests method=GET route=/api/{user_id}/tasks status=503 ms=301.0 db_ms=0.0 pool_ms=300.0 user=alice request_id=3
"""  # noqa: E501
ANSWERS = [
    {"1 GET /ready 200", "1 GET /api/{user_id}/tasks 200", "1 GET /api/{user_id}/tasks 503"},
    {"50% /api/{user_id}/tasks"},
    {"p50 5 p90 301 p99 301"},
    {"153 2 150 /api/{user_id}/tasks", "3 2 0.5 /ready"},
]


@pytest.mark.parametrize("prefix", ["", "2026-11-21T09:30:00+00:00 app[web.1]: "])
def test_the_commands_of_the_page_count_what_the_log_holds(tmp_path: Path, prefix: str) -> None:
    log = "".join(prefix + line for line in LOG.splitlines(keepends=True))
    (tmp_path / "service.log").write_text(log)

    for command, answer in zip(AWK, ANSWERS, strict=True):
        assert output(command, tmp_path) == answer


def test_the_commands_for_a_log_in_json_give_the_same_answers(tmp_path: Path) -> None:
    log = []
    for line in LOG.splitlines():
        fields = dict(re.findall(r'(\w+)=("[^"]*"|\S+)', line))
        log.append(json.dumps({name: value(text) for name, text in fields.items()}) + "\n")
    (tmp_path / "service.log").write_text("".join(log))

    for command, answer in zip(JQ, ANSWERS, strict=True):
        assert output(command, tmp_path) == answer


def value(text: str) -> str | float:
    return float(text) if re.fullmatch(r"[\d.]+", text) else text.strip('"')


def output(command: str, folder: Path) -> set[str]:
    """The lines of the answer; some versions of jq write 5.0 as 5, and uniq indents its counts."""
    lines = subprocess.check_output(["sh", "-c", command], cwd=folder, text=True).splitlines()
    return {re.sub(r"\.0\b", "", line.strip()) for line in lines}


def serve(database_url: str, folder: Path, app: str = "wsgi:app", **environ: str) -> str:
    """The log of a gunicorn that answered three requests, of which one is no HTTP."""
    log = folder / "log"
    command = Path(sys.executable).parent / "gunicorn", app
    server = Server(log, command, DATABASE_URL=database_url, JWT_SECRET=SECRET, **environ)
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


def test_requests_and_statements_are_spans_and_a_stop_leaves_no_traceback(
    database_url: str, tmp_path: Path
) -> None:
    received = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

    (tmp_path / "traced.py").write_text(TRACED)
    with HTTPServer(("127.0.0.1", 0), Collector) as collector:
        threading.Thread(target=collector.serve_forever).start()
        log = serve(
            database_url,
            tmp_path,
            "traced:app",
            PYTHONPATH=str(tmp_path),
            OTEL_EXPORTER_OTLP_ENDPOINT=f"http://127.0.0.1:{collector.server_port}",
        )
        collector.shutdown()

    spans = [
        span
        for data in received
        for resource in TracesData.FromString(data).resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
    (request,) = [span for span in spans if span.name.startswith("POST /api/<user_id")]
    (create,) = [span for span in spans if span.name == "--create_task"]
    assert create.parent_span_id == request.span_id
    assert "4 2" not in str(create)
    assert "Traceback" not in log
