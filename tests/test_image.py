"""What Dockerfile and compose.yaml say, run without Docker; the workflow runs it with Docker.

The image's files, packages, user and command, on a PostgreSQL with the roles of compose.yaml.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
import pytest
import yaml

from tests.conftest import ENVIRON, NO_TLS, ROOT, SECRET, Server, assert_tasks_work, start_cluster
from todo_service import embedded

pytestmark = pytest.mark.slow

DOCKERFILE = re.findall(r"^([A-Z]+) (.+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
INSTRUCTIONS = dict(DOCKERFILE)
USER = int(INSTRUCTIONS["USER"].partition(":")[0])
COMPOSE = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
GIVEN = {"OWNER_PASSWORD": "0wner", "WEB_PASSWORD": "w3b", "JWT_SECRET": SECRET}


def environment_of(service: str) -> dict[str, str]:
    """What compose puts into the environment of a service, with the given variables."""
    return {
        name: re.sub(r"\$\{(\w+):\?\}", lambda found: GIVEN[found[1]], value)
        if value is not None
        else GIVEN.get(name, "")
        for name, value in SERVICES[service]["environment"].items()
    }


def test_the_image_runs_the_python_of_the_other_platforms() -> None:
    version = (ROOT / ".python-version").read_text().strip()

    pattern = rf"python:{re.escape(version)}-slim-[a-z]+@sha256:[0-9a-f]{{64}}"
    assert re.fullmatch(pattern, INSTRUCTIONS["FROM"])


def test_signals_go_to_gunicorn_which_is_not_root() -> None:
    assert INSTRUCTIONS["USER"] == f"{USER}:{USER}" and USER > 0
    assert "ENTRYPOINT" not in INSTRUCTIONS
    # A list is run as it is, a string by a shell.
    assert json.loads(INSTRUCTIONS["CMD"])[0] == "gunicorn"


@pytest.fixture(scope="module")
def image(environment: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the image's files that nobody may write to, in byte code, too."""
    folder = tmp_path_factory.mktemp("image") / "app"
    folder.mkdir()
    nothing, *rules, last = (ROOT / ".dockerignore").read_text().splitlines()[1:]
    assert (nothing, last) == ("*", "**/__pycache__")
    for rule in rules:
        assert rule.startswith("!")
        if (ROOT / rule[1:]).is_dir():
            left_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / rule[1:], folder / rule[1:], ignore=left_out)
        else:
            shutil.copy(ROOT / rule[1:], folder)
    (compiled,) = (what for name, what in DOCKERFILE if name == "RUN" and what.startswith("python"))
    subprocess.run([environment / "bin" / "python", *compiled.split()[1:]], cwd=folder, check=True)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)


@pytest.fixture(scope="module")
def postgres() -> str:
    """The host of a PostgreSQL 18 that has run what compose gives it, and asks for passwords."""
    environ = environment_of("postgres")
    owner, password, name = (environ[f"POSTGRES_{what}"] for what in ("USER", "PASSWORD", "DB"))
    with psycopg.connect(start_cluster(), autocommit=True) as connection:
        # What the image does with its variables.
        connection.execute(f"CREATE ROLE {owner} SUPERUSER LOGIN PASSWORD '{password}'")
        connection.execute(f"CREATE DATABASE {name} OWNER {owner}")
        host = connection.info.host
        subprocess.run(
            [embedded.binaries() / "psql", "-X", "-v", "ON_ERROR_STOP=1"],
            env=environ | {"PGHOST": host, "PGUSER": owner, "PGDATABASE": name},
            input=COMPOSE["configs"]["role"]["content"],
            text=True,
            check=True,
        )
        (rules,) = connection.execute("SHOW hba_file").fetchone()
        Path(rules).write_text(f"local {name} all scram-sha-256\n" + Path(rules).read_text())
        connection.execute("SELECT pg_reload_conf()")
    return host


@pytest.fixture(scope="module")
def variables(environment: Path, postgres: str) -> dict[str, dict[str, str]]:
    """The environment of each service, with this PostgreSQL in the place of compose's."""
    return {
        service: {"PATH": f"{environment / 'bin'}:{os.defpath}"}
        | {
            name: value.replace("@postgres/todo?", f"@/todo?host={postgres}&")
            for name, value in environment_of(service).items()
        }
        for service in ("init-db", "web")
    }


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


def run(command: list[str], image: Path, environ: dict[str, str]) -> str:
    """What a command says that ends by itself."""
    return subprocess.check_output(
        as_its_user(command), cwd=image, env=ENVIRON | environ, text=True, timeout=60
    )


@pytest.fixture(scope="module")
def initialized(image: Path, variables: dict[str, dict[str, str]]) -> str:
    return run(SERVICES["init-db"]["command"], image, variables["init-db"])


@pytest.fixture(scope="module")
def served(
    image: Path,
    variables: dict[str, dict[str, str]],
    initialized: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("image") / "log"
    server = Server(log, as_its_user(json.loads(INSTRUCTIONS["CMD"])), image, **variables["web"])
    server.wait("/ready")
    yield server
    assert server.stop() == 0
    assert "Shutting down: Master" in log.read_text()


def test_compose_applies_the_schema_as_the_owner(
    initialized: str, variables: dict[str, dict[str, str]]
) -> None:
    assert initialized == "The schema is in place.\n"
    with psycopg.connect(variables["web"]["DATABASE_URL"]) as connection:
        owners = connection.execute(
            "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
        ).fetchall()
    assert owners == [("owner",)]


def test_the_role_of_the_service_has_no_other_rights(
    initialized: str, variables: dict[str, dict[str, str]]
) -> None:
    with psycopg.connect(variables["web"]["DATABASE_URL"], autocommit=True) as connection:
        for statement in ("TRUNCATE tasks", "DROP TABLE tasks", "CREATE TABLE mine ()"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(statement)


def test_every_route_of_a_task_works_as_compose_runs_it(
    served: Server, variables: dict[str, dict[str, str]]
) -> None:
    assert_tasks_work(served.url, variables["init-db"]["OWNER_DATABASE_URL"])


def test_doctor_finds_nothing_wrong_with_what_compose_runs(
    served: Server, image: Path, variables: dict[str, dict[str, str]]
) -> None:
    said = run(["flask", "--app", "wsgi", "doctor"], image, variables["web"])

    assert {line.split()[0] for line in said.splitlines()} == {"ok"}


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


def test_the_kubernetes_snippet_fits_the_service(
    served: Server, initialized: str, image: Path, variables: dict[str, dict[str, str]]
) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    (snippet,) = re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    objects = list(yaml.safe_load_all(snippet))
    secrets = {
        each["metadata"]["name"]: each["stringData"] for each in objects if each["kind"] == "Secret"
    }
    deployment, service, budget = (
        next(each["spec"] for each in objects if each["kind"] == kind)
        for kind in ("Deployment", "Service", "PodDisruptionBudget")
    )
    pod = deployment["template"]["spec"]
    (schema,) = pod["initContainers"]
    (web,) = pod["containers"]

    def given(container: dict[str, Any]) -> set[str]:
        return {
            name for each in container["envFrom"] for name in secrets[each["secretRef"]["name"]]
        }

    assert given(schema) - given(web) == {"OWNER_DATABASE_URL"}
    # With those names and no others both of them run.
    environ = variables["init-db"]
    named = {name: environ[name] for name in [*given(schema), "PATH"] if name in environ}
    assert run(schema["args"], image, named) == initialized
    assert given(web) <= set(variables["web"])
    labels = deployment["template"]["metadata"]["labels"]
    assert labels == deployment["selector"]["matchLabels"] == service["selector"]
    assert labels == budget["selector"]["matchLabels"]
    assert budget["maxUnavailable"] < deployment["replicas"]
    assert [port["targetPort"] for port in service["ports"]] == [
        port["name"] for port in web["ports"]
    ]

    for probe in ("livenessProbe", "readinessProbe"):
        path = web[probe]["httpGet"]["path"]
        assert httpx.get(served.url + path, verify=NO_TLS).status_code == 200
    conf = (ROOT / "gunicorn.conf.py").read_text()
    (patience,) = map(int, re.findall(r"^graceful_timeout = (\d+)$", conf, re.MULTILINE))
    before = web["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] > before + patience
    assert int(SERVICES["web"]["stop_grace_period"].rstrip("s")) > patience
    # /ready answers within six seconds by itself.
    assert web["readinessProbe"]["timeoutSeconds"] >= 6
