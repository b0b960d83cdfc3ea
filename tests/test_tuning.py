"""serving/tuning.py is there for speed: without it, everything works the same."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT, SECRET, Server, assert_tasks_work


@pytest.mark.parametrize("tuned", [True, False], ids=["with it", "without it"])
def test_tasks_work_with_the_line_that_applies_it_and_without(
    database_url: str, tmp_path: Path, tuned: bool
) -> None:
    conf = (ROOT / "gunicorn.conf.py").read_text()
    before, after = conf.split("post_fork = tuning.apply\n")
    served = tmp_path / "gunicorn.conf.py"
    served.write_text(conf if tuned else before + after)
    gunicorn = Path(sys.executable).parent / "gunicorn"

    server = Server(
        tmp_path / "log",
        [gunicorn, f"--config={served}", "wsgi:app"],
        DATABASE_URL=database_url,
        JWT_SECRET=SECRET,
    )
    server.wait("/ready")
    assert_tasks_work(server.url, database_url)

    assert server.stop() == 0
