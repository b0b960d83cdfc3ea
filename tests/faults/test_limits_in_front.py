"""The lines for nginx in docs/deploy.md, in front of the service."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from tests.conftest import NO_TLS, ROOT, Server, free_port
from tests.faults.conftest import serving
from tests.faults.test_clients import until

pytestmark = pytest.mark.slow

CONFIGURATION = """
daemon off;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {zones}
    server {{
        listen 127.0.0.1:{port};
        {limits}
        location / {{
            proxy_pass {service};
        }}
    }}
}}
"""


@pytest.fixture
def serve(database_url: str, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    yield from serving(database_url, tmp_path)


def test_an_address_gets_so_many_answers_and_connections(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    server = serve()
    server.wait()
    page = (ROOT / "docs" / "deploy.md").read_text()
    section = page.partition("### Limits in front")[2].partition("\n## ")[0]
    zones, limits = re.findall("```nginx\n(.*?)```", section, re.DOTALL)
    port, configuration = free_port(), tmp_path / "nginx.conf"
    configuration.write_text(
        CONFIGURATION.format(
            folder=tmp_path, port=port, service=server.url, zones=zones, limits=limits
        )
    )
    command = ["nginx", "-c", str(configuration), "-p", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as nginx:
        try:

            def ask(_: int) -> int:
                url = f"http://127.0.0.1:{port}/health"
                return httpx.get(url, timeout=20, verify=NO_TLS).status_code

            until(lambda: is_up(port))
            with ThreadPoolExecutor(8) as pool:
                statuses = list(pool.map(ask, range(400)))
        finally:
            nginx.terminate()

    assert set(statuses) == {200, 429}
    assert statuses.count(200) >= 100


def is_up(port: int) -> bool:
    try:
        httpx.get(f"http://127.0.0.1:{port}/health", verify=NO_TLS)
    except httpx.TransportError:
        return False
    return True
