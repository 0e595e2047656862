"""Runs the tests that need no torch under every other supported Python that this machine has.

Each Python gets an environment of its own with the few packages that these tests need, at the versions of the lock. The
rest of the suite runs under one Python only.
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

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

THIS = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHERS = [version for version in SUPPORTED_PYTHONS["cpu"] if version != THIS]
PACKAGES = (
    *("pydantic", "numpy", "pyarrow", "pyyaml", "rich", "psutil", "jsonschema"),
    *("pytest", "pytest-timeout", "hypothesis", "uvloop"),
)
TESTS = ("tests/rewards", "tests/rl", "tests/rollout")
NEED_MORE = (
    *(
        "rl/learner",
        "rl/losses",
        "rl/families",
        "rl/weights",
        "rl/zero",
        "rl/sft",
        "rl/report",
        "rl/driver",
        "rl/doctor",
        "rl/planning",
        "rl/recipe/test_hardware.py",
        "rl/verbs",
        "rl/test_cli.py",
        "rl/test_config.py",
    ),
    *("rl/observe/test_tracking.py", "rl/observe/test_workspace.py", "rollout/chat", "rollout/cpu", "rollout/engine"),
    *("rollout/lora", "rollout/transfer", "rl/launch/test_own_ray.py"),
    *("rollout/agent/test_replay.py", "rollout/agent/test_deadline.py", "rollout/tasks/test_stream.py"),
    *("rollout/envs/test_reasoning.py", "rollout/tasks/test_hub.py"),
    *("rewards/scorers/test_remote.py", "rollout/envs/test_plain.py", "rollout/agent/test_endpoint.py"),
    *("rollout/agent/test_compare.py", "rollout/agent/test_orchestration.py"),
)
"""Tests that are left out, as paths under tests/. They need torch, transformers, Ray, wandb, datasets or mypy, look at
the whole environment, or wait for deadlines."""


def interpreter(version: str) -> Path | None:
    """Return a Python of this version that starts, from PATH or from pyenv; None if there is none."""
    found = shutil.which(f"python{version}")
    candidates = [Path(found)] if found else []
    candidates += sorted((Path.home() / ".pyenv" / "versions").glob(f"{version}.*/bin/python{version}"))
    return next((one for one in candidates if subprocess.run([one, "-V"], capture_output=True).returncode == 0), None)


def pinned_closure() -> list[str]:
    """Return pins of the CPU lock (`name==version`) for PACKAGES and everything they depend on."""
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
    """The ended pytest process of each other Python that is here, by version. All of them run at the same time."""
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
    # pytest removes the temporary folders of earlier sessions, and would remove this session's. Hence --basetemp.
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
