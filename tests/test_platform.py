"""A Heroku-like platform: a slug, an environment from requirements.txt alone, release, then web.

Nothing else of this machine is used: the processes get the platform's variables and no others, and
run in a copy of the repository without .env, tests and development requirements.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import ROOT, SECRET, Server, User, assert_tasks_work

pytestmark = pytest.mark.slow

PROCFILE = dict(line.split(": ", 1) for line in (ROOT / "Procfile").read_text().splitlines())
APP = json.loads((ROOT / "app.json").read_text())


@pytest.fixture(scope="module")
def slug(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that are deployed."""
    left_out = shutil.ignore_patterns(".*", "__pycache__", "tests", "bench")
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("platform") / "app", ignore=left_out)


@pytest.fixture(scope="module")
def database(new_database: Callable[..., str]) -> str:
    """An empty database, as a URL of the form that platforms still give."""
    return urlsplit(new_database(schema=False))._replace(scheme="postgres").geturl()


@pytest.fixture(scope="module")
def variables(environment: Path, database: str) -> dict[str, str]:
    """All that a process on the platform has in its environment."""
    return {
        "PATH": f"{environment / 'bin'}:{os.defpath}",
        "DATABASE_URL": database,
        "WEB_CONCURRENCY": "2",
        "GUNICORN_CMD_ARGS": "--access-logfile -",
        "FORWARDED_ALLOW_IPS": "*",
        "JWT_SECRET": SECRET,
    }


def run(command: str, slug: Path, variables: dict[str, str]) -> tuple[int, str]:
    """Exit status and output of a command that ends by itself."""
    finished = subprocess.run(
        shlex.split(command),
        cwd=slug,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=30,
    )
    return finished.returncode, finished.stdout


@pytest.fixture(scope="module")
def released(slug: Path, variables: dict[str, str]) -> str:
    """What the release process says; it has to succeed before the platform starts web."""
    status, output = run(PROCFILE["release"], slug, variables)
    assert status == 0, output
    return output


@pytest.fixture(scope="module")
def web(
    slug: Path,
    variables: dict[str, str],
    released: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The web process, which has to end on SIGTERM by itself."""
    log = tmp_path_factory.mktemp("platform") / "web.log"
    server = Server(log, shlex.split(PROCFILE["web"]), slug, **variables)
    server.wait("/ready")
    yield server
    assert server.stop() == 0, log.read_text()


def test_release_applies_the_schema_and_may_be_repeated(
    slug: Path, variables: dict[str, str], released: str
) -> None:
    assert released == "The schema is in place.\n"
    assert run(PROCFILE["release"], slug, variables) == (0, released)


def test_every_route_of_a_task_works_on_the_platform(web: Server, database: str) -> None:
    assert_tasks_work(web.url, database)


@pytest.mark.parametrize("path", ["/", "/openapi.yaml", "/docs/", "/docs/swagger-ui-bundle.js"])
def test_the_contract_and_its_page_are_served_on_the_platform(web: Server, path: str) -> None:
    assert httpx.get(web.url + path).status_code == 200


def test_a_request_is_logged_once_and_by_the_service(web: Server) -> None:
    with User(web.url, "alice") as alice:
        alice.get(alice.tasks, headers={"X-Request-ID": "the-only-one"})

    text = web.log.read_text()
    (line,) = [line for line in text.splitlines() if "the-only-one" in line]
    assert "route=/api/{user_id}/tasks status=200" in line
    # The request line, which gunicorn's own access log quotes.
    assert "HTTP/1.1" not in text


def test_web_starts_as_many_workers_as_the_platform_says(web: Server) -> None:
    assert web.log.read_text().count("Booting worker") == 2


@pytest.mark.parametrize("process", ["release", "web"])
@pytest.mark.parametrize("name", ["DATABASE_URL", "JWT_SECRET"])
def test_a_missing_variable_stops_the_start_in_one_line_that_names_it(
    slug: Path, variables: dict[str, str], process: str, name: str
) -> None:
    given = {key: value for key, value in variables.items() if key != name}

    status, output = run(PROCFILE[process], slug, given)

    assert status == 1
    assert output.count("\n") == 1
    assert output.startswith("todo-service cannot start: ")
    assert name in output


def test_gunicorn_takes_what_app_json_sets(slug: Path, variables: dict[str, str]) -> None:
    arguments = APP["env"]["GUNICORN_CMD_ARGS"]["value"]
    # An empty value would not do: the platform puts its default in the place of one.
    assert arguments

    status, output = run(
        "gunicorn --check-config wsgi:app", slug, variables | {"GUNICORN_CMD_ARGS": arguments}
    )

    assert (status, output) == (0, "")


def test_tls_to_clients_which_the_worker_does_not_speak_stops_the_start(
    slug: Path, variables: dict[str, str]
) -> None:
    status, output = run("gunicorn --certfile cert.pem --keyfile key.pem wsgi:app", slug, variables)

    assert status == 1
    assert output.splitlines()[-1].startswith("todo-service cannot start: TLS ends at the router")
