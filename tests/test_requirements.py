"""What is installed: the ranges of pyproject.toml, and the files that are made of them.

That each package has one version and its hashes is what pip sees to.
"""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PRODUCTION = PROJECT["project"]["dependencies"]
GROUPS = PROJECT["dependency-groups"]
RUN = PRODUCTION + GROUPS["run"]
DEVELOPMENT = RUN + [wanted for wanted in GROUPS["dev"] if isinstance(wanted, str)]
FILES = ["requirements.txt", "requirements-run.txt", "requirements-dev.txt"]


def versions(file: str) -> dict[str, str]:
    pins = re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==(\S+)", (ROOT / file).read_text(), re.MULTILINE)
    return dict(pins)


@pytest.mark.parametrize(
    ("file", "ranges"), list(zip(FILES, [PRODUCTION, RUN, DEVELOPMENT], strict=True))
)
def test_each_range_of_the_project_holds_the_version_that_is_installed(
    file: str, ranges: list[str]
) -> None:
    installed = versions(file)

    for wanted in map(Requirement, ranges):
        assert installed[wanted.name] in wanted.specifier, wanted


def test_each_file_has_the_versions_of_the_one_before() -> None:
    production, run, development = map(versions, FILES)

    assert production.items() < run.items() < development.items()


@pytest.mark.parametrize("file", FILES)
def test_the_page_for_contributors_has_the_command_that_makes_the_file(file: str) -> None:
    _, command, _ = (ROOT / file).read_text().split("\n", 2)

    page = (ROOT / "CONTRIBUTING.md").read_text().replace("\\\n", "")
    assert command.lstrip("# ") in re.sub(" +", " ", page)
