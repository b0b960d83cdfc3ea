"""Whose code is served: today's tree, or that of a git reference."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from packaging.requirements import Requirement

from bench.load import Invalid

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Tree:
    name: str
    root: Path
    programs: Path  # where its environment has gunicorn and flask

    def program(self, name: str) -> str:
        return str(self.programs / name)


TODAY = Tree("ours", ROOT, Path(sys.executable).parent)


def at(reference: str, folder: Path) -> Tree:
    """The tree of a git reference, named by its commit, with an environment that suits it.

    Written below the folder, and gone with it: an archive, because a worktree would also have to be
    taken out of the repository's list. Raises Invalid.
    """
    commit = run("git", "rev-parse", "--verify", f"{reference}^{{commit}}").strip()
    name = run("git", "rev-parse", "--short", commit).strip()
    root, archive = folder / name, folder / f"{name}.tar"
    root.mkdir()
    run("git", "archive", "--output", str(archive), commit)
    run("tar", "--extract", "--file", str(archive), "--directory", str(root))
    requirements = root / "requirements.txt"
    if is_installed(requirements.read_text()):
        return Tree(name, root, TODAY.programs)
    print(f"Installing the requirements of {name}, which are not today's.", file=sys.stderr)
    home = folder / f"{name}-environment"
    run(sys.executable, "-m", "venv", str(home))
    pip = str(home / "bin" / "pip")
    run(pip, "install", "--disable-pip-version-check", "--requirement", str(requirements))
    return Tree(name, root, home / "bin")


def describe_today() -> str:
    """The commit of today's tree, and whether it has been changed since."""
    found = run("git", "describe", "--always", "--dirty", "--exclude=*").strip()
    return found.replace("-dirty", " with changes that are not committed")


def is_installed(requirements: str) -> bool:
    """Whether the environment that this runs in holds all that a requirements.txt asks for."""
    for line in requirements.splitlines():
        # Neither comments nor the hashes that may follow on the same line or on lines of their own.
        text = line.partition("#")[0].partition("--")[0].strip(" \\")
        if not text:
            continue
        wanted = Requirement(text)
        if wanted.marker and not wanted.marker.evaluate():
            continue
        try:
            if not wanted.specifier.contains(version(wanted.name), prereleases=True):
                return False
        except PackageNotFoundError:
            return False
    return True


def environ(**variables: str) -> dict[str, str]:
    """The environment of a program that is measured: a developer's .env is no part of it."""
    return {"PATH": os.environ["PATH"], "PYTHON_DOTENV_DISABLED": "1"} | variables


def run(*command: str, cwd: Path = ROOT, env: dict[str, str] | None = None) -> str:
    """Run a program and return what it says. Raises Invalid if it fails."""
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    if done.returncode:
        raise Invalid(f"{shlex.join(command)}: {done.stderr.strip()}")
    return done.stdout
