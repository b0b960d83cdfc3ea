"""What the Dockerfile says, run without Docker: its files, its user, its variables, its command."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import httpx
import psutil
import psycopg
import pytest
import yaml
from psycopg import sql
from psycopg.conninfo import make_conninfo

from tests.conftest import ENVIRON, NO_TLS, ROOT, SECRET, Server, assert_tasks_work
from tests.test_doctor import as_url

DOCKERFILE = re.findall(r"^([A-Z]+) (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
INSTRUCTIONS = dict(DOCKERFILE)
IGNORED = (ROOT / ".dockerignore").read_text().splitlines()
USER = int(INSTRUCTIONS["USER"].partition(":")[0])


def is_let_through(path: str) -> bool:
    """Whether .dockerignore lets a file of the repository into the image: the last rule decides
    that matches it or a folder that it is in."""
    names = path.split("/")
    above = ["/".join(names[: length + 1]) for length in range(len(names))]
    let_through = True
    for rule in IGNORED:
        if rule and not rule.startswith("#"):
            pattern = re.escape(rule.lstrip("!")).replace(r"\*\*/", "(.*/)?")
            pattern = pattern.replace(r"\*", "[^/]*")
            if any(re.fullmatch(pattern, name) for name in above):
                let_through = rule.startswith("!")
    return let_through


@pytest.mark.parametrize(
    "path", ["wsgi.py", "sql/queries/get_task.sql", "todo_service/serving/worker.py"]
)
def test_what_the_service_needs_is_in_the_image(path: str) -> None:
    assert is_let_through(path)
    assert (ROOT / path).exists()


@pytest.mark.parametrize(
    "path",
    [
        *(".env", ".env.example", ".git/config", ".data/postgresql/base", ".venv/bin/python"),
        *("tests/conftest.py", "bench/load.py", "docs/deploy.md", "requirements-dev.txt"),
        *("todo_service/__pycache__/log.pyc", "todo_service/blueprints/__pycache__/log.pyc"),
    ],
)
def test_what_the_service_does_not_need_stays_out_of_the_image(path: str) -> None:
    assert not is_let_through(path)


def test_the_image_runs_the_python_of_the_other_platforms() -> None:
    version = (ROOT / ".python-version").read_text().strip()

    assert INSTRUCTIONS["FROM"] == f"python:{version}-slim"


def test_signals_go_to_gunicorn_which_is_not_root() -> None:
    assert INSTRUCTIONS["USER"] == f"{USER}:{USER}" and USER > 0
    assert "ENTRYPOINT" not in INSTRUCTIONS
    # A list is run as it is, a string by a shell.
    assert json.loads(INSTRUCTIONS["CMD"])[0] == "gunicorn"


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the image's files that nobody may write to."""
    folder = tmp_path_factory.mktemp("image") / "app"
    for entry in ROOT.iterdir():
        for path in [entry, *entry.rglob("*")] if is_let_through(entry.name) else []:
            name = path.relative_to(ROOT)
            if path.is_file() and is_let_through(str(name)):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, folder / name)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)


@pytest.fixture(scope="module")
def database(database_url: str) -> Iterator[str]:
    """The URL of an empty database."""
    name = f"todo_{uuid4().hex}"
    with psycopg.connect(database_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        yield as_url(make_conninfo(database_url, dbname=name))
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


@pytest.fixture(scope="module")
def variables(environment: Path, database: str) -> dict[str, str]:
    given = dict(value.split("=", 1) for name, value in DOCKERFILE if name == "ENV")
    path = f"{environment / 'bin'}:{os.defpath}"
    return given | {"PATH": path, "DATABASE_URL": database, "JWT_SECRET": SECRET}


def as_its_user(command: list[str]) -> list[str]:
    """The command as an unprivileged user: root changes to that of the image."""
    if os.geteuid() != 0:
        return command
    # It may read everything: the Python that runs here may be in root's own folder.
    reading = "=-all,+dac_read_search"
    return [
        *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"),
        *(f"--inh-caps{reading}", f"--ambient-caps{reading}", f"--bounding-set{reading}"),
        *command,
    ]


@pytest.fixture(scope="module")
def released(image: Path, variables: dict[str, str]) -> str:
    """What the command for the schema says."""
    return subprocess.check_output(
        as_its_user(["flask", "--app", "wsgi", "init-db"]),
        cwd=image,
        env=ENVIRON | variables,
        text=True,
        timeout=30,
    )


@pytest.fixture(scope="module")
def served(
    image: Path, variables: dict[str, str], released: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("image") / "log"
    server = Server(log, as_its_user(json.loads(INSTRUCTIONS["CMD"])), image, **variables)
    server.wait("/ready")
    yield server
    server.stop()


def test_the_image_applies_the_schema(released: str) -> None:
    assert released == "The schema is in place.\n"


def test_every_route_of_a_task_works_in_the_image(served: Server, database: str) -> None:
    assert_tasks_work(served.url, database)


def test_the_image_writes_to_nothing_but_memory(served: Server) -> None:
    master = psutil.Process(served.process.pid)
    processes = [master, *master.children(recursive=True)]
    assert len(processes) == 3
    written = set()
    for process in processes:
        # Root does not run in a container; whoever runs the tests without being root does.
        assert process.uids().effective == (USER if os.geteuid() == 0 else os.geteuid())
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            info = Path(f"/proc/{process.pid}/fdinfo/{descriptor.name}").read_text()
            if int(re.findall(r"^flags:\s+(\d+)$", info, re.MULTILINE)[0], 8) & os.O_ACCMODE:
                written.add(str(descriptor.readlink()))
    files = {name for name in written if name.startswith("/")} - {str(served.log)}
    assert {str(Path(name).parent) for name in files} <= {"/dev", "/dev/shm"}, files


def test_the_image_leaves_on_sigterm(
    image: Path, variables: dict[str, str], released: str, tmp_path: Path
) -> None:
    command = as_its_user(json.loads(INSTRUCTIONS["CMD"]))
    server = Server(tmp_path / "log", command, image, **variables)
    server.wait("/ready")

    assert server.stop() == 0
    assert "Shutting down: Master" in server.log.read_text()


def test_the_kubernetes_snippet_fits_the_service(served: Server) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    pod = yaml.safe_load(snippet)["spec"]["template"]["spec"]
    (web,) = pod["containers"]

    for probe in ("livenessProbe", "readinessProbe"):
        path = web[probe]["httpGet"]["path"]
        assert httpx.get(served.url + path, verify=NO_TLS).status_code == 200
    conf = (ROOT / "gunicorn.conf.py").read_text()
    (patience,) = map(int, re.findall(r"^graceful_timeout = (\d+)$", conf, re.MULTILINE))
    before = web["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before + patience
    # /ready answers within six seconds by itself.
    assert web["readinessProbe"]["timeoutSeconds"] >= 6
