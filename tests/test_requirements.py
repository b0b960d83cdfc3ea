"""What is installed: the ranges of pyproject.toml, and the files that are made of them."""

from __future__ import annotations

import re
import tomllib
from typing import NamedTuple

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement

from tests.conftest import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PRODUCTION = PROJECT["project"]["dependencies"]
DEVELOPMENT = PROJECT["dependency-groups"]["dev"]


class Pin(NamedTuple):
    name: str
    version: str
    marker: Marker | None
    hashes: frozenset[str]


def pins(file: str) -> list[Pin]:
    """The packages that a file of requirements names. Any other line, such as the address of an
    index, is an error."""
    found = []
    for line in (ROOT / file).read_text().replace("\\\n", "").splitlines():
        if line.lstrip().startswith("#"):
            continue
        text, *hashes = re.split(r"\s+--hash=", line.strip())
        requirement = Requirement(text)
        (exactly,) = requirement.specifier
        assert exactly.operator == "==", text
        found.append(Pin(requirement.name, exactly.version, requirement.marker, frozenset(hashes)))
    return found


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_each_package_is_named_with_the_hashes_of_its_files(file: str) -> None:
    for pin in pins(file):
        assert pin.hashes, pin.name
        assert all(re.fullmatch("sha256:[0-9a-f]{64}", value) for value in pin.hashes), pin.name


@pytest.mark.parametrize(
    ("file", "ranges"),
    [("requirements.txt", PRODUCTION), ("requirements-dev.txt", PRODUCTION + DEVELOPMENT)],
)
def test_each_range_of_the_project_holds_the_version_that_is_installed(
    file: str, ranges: list[str]
) -> None:
    versions = {pin.name: pin.version for pin in pins(file)}

    for wanted in map(Requirement, ranges):
        assert versions[wanted.name] in wanted.specifier, wanted


def test_development_installs_what_production_does() -> None:
    development = {(pin.name, pin.version, pin.hashes) for pin in pins("requirements-dev.txt")}

    for pin in pins("requirements.txt"):
        assert (pin.name, pin.version, pin.hashes) in development, pin.name


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_the_page_for_contributors_has_the_command_that_makes_the_file(file: str) -> None:
    _, command, _ = (ROOT / file).read_text().split("\n", 2)

    page = (ROOT / "CONTRIBUTING.md").read_text().replace("\\\n", "")
    assert command.lstrip("# ") in re.sub(" +", " ", page)
