"""`make run` as a newcomer runs it: one command, one pasted line, Ctrl-C, and again."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT, free_port

pytestmark = pytest.mark.slow


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Path]:
    """A copy of the tree, without what runs leave behind, on the same environment."""
    folder = tmp_path / "checkout"
    ignore = shutil.ignore_patterns(".*", "__pycache__", "results")
    shutil.copytree(ROOT, folder, ignore=ignore)
    (folder / ".venv").symlink_to(ROOT / ".venv")
    yield folder
    for process in processes_of(folder):
        process.kill()


def processes_of(folder: Path) -> list[psutil.Process]:
    """What runs in the folder or on data below it."""
    found = []
    for process in psutil.process_iter(["cmdline", "cwd"]):
        words = [*(process.info["cmdline"] or []), process.info["cwd"] or ""]
        if any(str(folder) in word for word in words) and process.pid != os.getpid():
            found.append(process)
    return found


class Run:
    def __init__(self, folder: Path, **environ: str) -> None:
        self.log = folder / "run.log"
        self.port = free_port()
        with self.log.open("wb") as stream:
            self.process = subprocess.Popen(
                # The shared environment is not to be made again, whatever its age.
                ["make", "--old-file=.venv/running", "run"],
                cwd=folder,
                env={"PATH": os.environ["PATH"], "PORT": str(self.port)} | environ,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self.wait_for("Booting worker")

    def wait_for(self, text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def curl(self) -> str:
        (line,) = (line for line in self.log.read_text().splitlines() if line.startswith("curl "))
        return line

    def interrupt(self) -> None:
        """Ctrl-C: the terminal sends SIGINT to the whole foreground process group."""
        os.killpg(self.process.pid, signal.SIGINT)
        self.process.wait(30)


def shell(command: str, folder: Path) -> str:
    return subprocess.check_output(["bash", "-c", command], cwd=folder, text=True, timeout=60)


def test_a_newcomer_has_a_task_in_postgresql_that_survives_a_restart(checkout: Path) -> None:
    run = Run(checkout)

    answer = shell(run.curl(), checkout)
    assert answer.startswith("HTTP/1.1 201")
    assert '"title":"Buy milk"' in answer
    assert "make run" not in answer
    rows = shell("echo 'SELECT user_id, title FROM tasks' | make -o .venv/running psql", checkout)
    assert "alice   | Buy milk" in rows
    assert (checkout / ".env").stat().st_mode & 0o077 == 0

    run.interrupt()
    assert processes_of(checkout) == []
    assert "Traceback" not in run.log.read_text()

    again = Run(checkout)
    task = shell(again.curl().replace('-d \'{"title": "Buy milk"}\'', ""), checkout)
    assert task.startswith("HTTP/1.1 200")
    assert '"title":"Buy milk"' in task
    # Killed, gunicorn cannot stop PostgreSQL; the next run takes it over and does stop it.
    os.killpg(again.process.pid, signal.SIGKILL)
    again.process.wait()
    third = Run(checkout)
    third.interrupt()
    assert processes_of(checkout) == []


def test_the_page_for_the_shell_goes_on_from_the_first_task(checkout: Path) -> None:
    page = (ROOT / "docs" / "curl.md").read_text()
    code = "".join(re.findall(r"^```sh\n(.*?)^```", page, re.MULTILINE | re.DOTALL))
    # A comment that begins as JSON is what the command above it answers; an ellipsis is anything.
    answers = re.findall(r"^# ([{[].*(?:\n#  .*)*)", code, re.MULTILINE)
    run = Run(checkout)
    assert f"http://localhost:{run.port}/docs/" in run.log.read_text()
    shell(run.curl(), checkout)

    said = shell(code.replace("localhost:8000", f"localhost:{run.port}"), checkout)

    for answer in answers:
        pattern = re.escape(answer.replace("\n#  ", "")).replace("…", ".*")
        # Ids and times are the page's own.
        pattern = re.sub(r'(?<="id":)\d+', r"\\d+", pattern)
        pattern = re.sub(r"\d{4}\\-[\d\\-]+T[\d:\\.]+Z", r"[-\\d]+T[\\d:.]+Z", pattern)
        found = re.search(f"^{pattern}\n", said, re.MULTILINE)
        assert found, (answer, said)
        said = said[found.end() :]
    assert len(answers) == 13
    assert said == ""
    run.interrupt()


def test_a_port_that_is_taken_is_told_with_the_way_out(checkout: Path) -> None:
    with socket.create_server(("", 0)) as other:
        port = other.getsockname()[1]
        done = subprocess.run(
            ["make", "--old-file=.venv/running", "run"],
            cwd=checkout,
            env={"PATH": os.environ["PATH"], "PORT": str(port)},
            capture_output=True,
            text=True,
            timeout=60,
        )

    said, make = done.stderr.splitlines()
    assert said == (f"Port {port}: Address already in use. Take another: PORT={port + 1} make run")
    assert make.startswith("make: ***")


def test_a_python_that_makes_no_environment_is_told_with_what_to_install(checkout: Path) -> None:
    (checkout / ".venv").unlink()
    # Debian's Python without its package python3-venv has the one module and not the other.
    without = checkout / "ensurepip.py"
    without.write_text("raise ImportError")

    done = subprocess.run(
        ["make", "run"],
        cwd=checkout,
        env={"PATH": os.environ["PATH"]},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.stdout == "python3 cannot make an environment: apt-get install python3-venv\n"
    assert done.stderr.startswith("make: ***") and done.stderr.count("\n") == 1
    assert not (checkout / ".venv").exists()


def test_a_page_may_call_what_runs_as_make_run_says(checkout: Path) -> None:
    def headers(run: Run) -> str:
        return shell(f"curl -sI -H 'Origin: {origin}' http://localhost:{run.port}/health", checkout)

    run = Run(checkout)
    ((name, origin),) = re.findall(r"^(\w+)=(\S+) make run$", run.log.read_text(), re.MULTILINE)
    assert "Access-Control-Allow-Origin" not in headers(run)
    run.interrupt()

    again = Run(checkout, **{name: origin})
    assert f"Access-Control-Allow-Origin: {origin}\n" in headers(again)
    again.interrupt()


def test_psql_works_while_nothing_runs_and_leaves_nothing_behind(checkout: Path) -> None:
    (checkout / ".env").touch()

    assert "(1 row)" in shell("echo 'SELECT 1' | make -o .venv/running psql", checkout)

    assert processes_of(checkout) == []
