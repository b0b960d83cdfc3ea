"""What the pages and comments name exists."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT

PAGES = [
    *ROOT.glob("*.md"),
    # The diff of that page adds a test.
    *(page for page in (ROOT / "docs").glob("*.md") if page.name != "add-a-field.md"),
    ROOT / "todo_service" / "serving" / "worker.py",
]
TESTS = {path.stem: path.read_text() for path in (ROOT / "tests").rglob("*.py")}
NAMES = {
    *TESTS,
    *re.findall(r"^def (test_\w+)", "\n".join(TESTS.values()), re.MULTILINE),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_is_named_exists(page) -> None:
    assert set(re.findall(r"\btest_\w+", page.read_text())) - NAMES == set()
