"""What needs no torch, under every other Python that Sluice accepts and this machine has.

Each gets an environment of its own with the few packages that these tests need, at the versions of the lock. The rest
of the suite runs under one Python.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest

from rl.paths import REPOSITORY
from rl.recipe.machine import LOCKS, SUPPORTED_PYTHONS
from rl.verbs.lock import FOLDER, read_pins

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

THIS = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHERS = [version for version in SUPPORTED_PYTHONS["cpu"] if version != THIS]
PACKAGES = (
    *("pydantic", "numpy", "pyyaml", "rich", "psutil", "jsonschema"),
    *("pytest", "pytest-timeout", "hypothesis", "uvloop"),
)
TESTS = ("tests/rewards", "tests/rl", "tests/rollout")
NEED_MORE = (
    *(
        "rl/learner",
        "rl/losses",
        "rl/weights",
        "rl/sft",
        "rl/driver",
        "rl/verbs",
        "rl/test_cli.py",
        "rl/test_config.py",
    ),
    *("rl/observe/test_tracking.py", "rollout/engine", "rollout/transfer", "rollout/chat"),
    *("rollout/agent/test_replay.py", "rollout/agent/test_deadline.py", "rollout/tasks/test_stream.py"),
)
"""These need torch, transformers, Ray, wandb, datasets or mypy, look at the whole environment, or wait."""


def interpreter(version: str) -> Path | None:
    """A Python of this version that runs: on PATH, or one of pyenv's."""
    found = shutil.which(f"python{version}")
    candidates = [Path(found)] if found else []
    candidates += sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"))
    return next((one for one in candidates if subprocess.run([one, "-V"], capture_output=True).returncode == 0), None)


def pinned_closure() -> list[str]:
    """The packages, and what they need, as pins of the lock."""
    pins, waiting, found = read_pins(FOLDER / LOCKS["cpu"]), list(PACKAGES), set()
    while waiting:
        name = waiting.pop()
        if name in found or name not in pins:
            continue
        found.add(name)
        try:
            wanted = requires(name) or []
        except PackageNotFoundError:
            continue
        waiting += [
            re.split(r"[^A-Za-z0-9._-]", one)[0].lower().replace("_", "-") for one in wanted if "extra ==" not in one
        ]
    return [f"{name}=={pins[name]}" for name in sorted(found)]


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, subprocess.CompletedProcess[str]]:
    """What pytest said under each other Python that is here; they run side by side."""
    here = {version: python for version in OTHERS if (python := interpreter(version)) is not None}
    with ThreadPoolExecutor() as pool:
        folders = (tmp_path_factory.mktemp(version) for version in here)
        return dict(zip(here, pool.map(run_under, here.values(), folders), strict=True))


def run_under(python: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    own = folder / "venv" / "bin" / "python"
    install = [own, "-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", *pinned_closure()]
    subprocess.run(install, check=True)
    ignored = [f"--ignore=tests/{path}" for path in NEED_MORE]
    # A folder of its own for what pytest keeps: it removes the folders of earlier sessions, this one's among them.
    command = [own, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--basetemp={folder / 'temp'}", "-m", "not slow"]
    return subprocess.run(
        [*command, *TESTS, *ignored],
        cwd=REPOSITORY,
        env=os.environ | {"HYPOTHESIS_PROFILE": "few"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("version", OTHERS)
def test_what_needs_no_torch_runs_under_it(version: str, ended: dict[str, subprocess.CompletedProcess[str]]) -> None:
    if version not in ended:
        pytest.skip(f"there is no Python {version} here")
    done = ended[version]
    *_, closing = done.stdout.splitlines()
    print(closing)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
