"""Requests that are generated from the document, sent to the running service."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from tests.conftest import ROOT
from tests.contract.conftest import DOCUMENT
from tests.contract.test_document import operations

pytestmark = pytest.mark.slow


class Run(NamedTuple):
    report: dict[str, Any]
    output: str


def run(server: str, folder: Path, phases: str) -> Run:
    """Run schemathesis with every check it has. Fails the test that calls it if one fails."""
    report = folder / "report.json"
    process = subprocess.run(
        [
            Path(sys.executable).parent / "schemathesis",
            f"--config-file={Path(__file__).with_name('schemathesis.toml')}",
            "run",
            DOCUMENT,
            f"--url={server}",
            f"--phases={phases}",
            f"--report-json-path={report}",
            "--no-color",
        ],
        cwd=folder,
        env=os.environ
        | {
            "PYTHONPATH": str(ROOT),
            # With the seed in schemathesis.toml, it makes every run send the same requests.
            "PYTHONHASHSEED": "0",
            "SCHEMATHESIS_SERVER": server,
            "SCHEMATHESIS_USER": f"schemathesis-{uuid4()}",
        },
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    return Run(json.loads(report.read_text()), process.stdout)


def test_generated_requests_get_what_the_document_says(
    server: str, document: dict[str, Any], tmp_path: Path
) -> None:
    report, _ = run(server, tmp_path, "examples,coverage,fuzzing")

    assert report["test_cases"]["generated"] >= 500
    assert [kind for kind, found in report["warnings"].items() if found] == []
    # The checks would also pass if all requests were refused.
    documented = [f"{method} {path}" for method, path, _ in operations(document)]
    assert sorted(report["valid_rates"]) == sorted(documented)
    for operation in documented:
        assert report["valid_rates"][operation]["fuzzing"]["accepted"] >= 10, operation


def test_sequences_of_requests_get_what_the_document_says(server: str, tmp_path: Path) -> None:
    # A run of its own: next to the other phases, this one gives up early.
    report, output = run(server, tmp_path, "stateful")

    assert report["test_cases"]["generated"] >= 200
    links = re.search(r"API Links: +(\d+) covered / (\d+) selected", output)
    assert links is not None, output
    covered, documented = map(int, links.groups())
    assert covered > documented / 2
