"""The commit hook, the requirements in pyproject.toml, and pytest's settings."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

from rl.paths import REPOSITORY
from rl.verbs import develop
from rl.verbs.develop import PACKAGES, WHOLE_SUITE


def test_the_commit_hook_is_the_check_verb_and_downloads_nothing() -> None:
    (repository,) = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    (hook,) = repository["hooks"]
    assert repository["repo"] == "local" and hook["language"] == "system"
    assert hook["entry"] == "./launch.sh check" and hook["pass_filenames"] is False


def test_every_import_is_a_package_that_pyproject_names() -> None:
    """A package that is installed only because another one wants it may go with that package's next version."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    requirements = sum(project["optional-dependencies"].values(), project["dependencies"])
    named = {re.split(r"[=<>]", requirement)[0].lower().replace("_", "-") for requirement in requirements}
    installed = packages_distributions()
    for path in (path for folder in (*PACKAGES, "tests", "recipes", "benchmarks") for path in sources(folder)):
        for module in imported(path) - sys.stdlib_module_names - {*PACKAGES, "tests", "recipes", "benchmarks"}:
            packages = {name.lower().replace("_", "-") for name in installed.get(module, [module])}
            assert packages & named, f"{path} imports {module}: name its package in pyproject.toml, with the reason"


def sources(folder: str) -> list[Path]:
    return sorted((REPOSITORY / folder).rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Top-level names of the modules that a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def test_a_test_that_hangs_fails_alone(tmp_path: Path) -> None:
    """With pyproject.toml's settings the next test runs, and pytest prints its closing line."""
    hangs = "import time\ndef test_hangs():\n    time.sleep(600)\ndef test_next():\n    pass\n"
    (tmp_path / "test_two.py").write_text(hangs, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-c",
        REPOSITORY / "pyproject.toml",
        "--rootdir",
        tmp_path,
        "--timeout=1",
    ]
    done = subprocess.run([*command, "test_two.py"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "1 failed, 1 passed" in done.stdout.splitlines()[-1]


def test_the_whole_suite_runs_in_two_processes_and_a_folder_stays_in_one(tmp_path: Path) -> None:
    """Tests of one folder share what they have started. Arguments are pytest's own, and one process is its default."""
    text = "from tests.conftest import pytest_xdist_make_scheduler\n__all__ = ['pytest_xdist_make_scheduler']\n"
    (tmp_path / "conftest.py").write_text(text, encoding="utf-8")
    notes = "import os, pathlib\ndef test_one():\n    place = pathlib.Path(__file__).parent\n"
    notes += "    (place / os.environ['PYTEST_XDIST_WORKER']).touch()\n"
    for name in ("a/test_1.py", "a/test_2.py", "a/test_3.py", "b/test_1.py", "b/test_2.py", "b/test_3.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(notes, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-c", REPOSITORY / "pyproject.toml", "--rootdir", tmp_path]
    done = subprocess.run(
        [*command, *WHOLE_SUITE, tmp_path / "a", tmp_path / "b"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0 and "6 passed" in done.stdout.splitlines()[-1], done.stdout + done.stderr
    ran_by = [[path.name for path in (tmp_path / folder).glob("gw*")] for folder in "ab"]
    assert sorted(ran_by) == [["gw0"], ["gw1"]]


def test_without_arguments_the_test_verb_runs_the_whole_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: started.append(command))
    monkeypatch.chdir(REPOSITORY)
    develop.test([])
    develop.test(["-x", "tests/rl"])
    pytest_command = [sys.executable, "-m", "pytest"]
    assert started == [[*pytest_command, *WHOLE_SUITE], [*pytest_command, "-x", "tests/rl"]]
