"""The lock files: complete, pinned, free of addresses, and made by the command they name."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from rl.tooling import LOCKS, Lock

REPOSITORY = Path(__file__).parents[2]


def pins(lock: Lock) -> dict[str, str]:
    lines = (REPOSITORY / lock.name).read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if not line.startswith("#"))


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_line_is_one_pin_and_no_address(lock: Lock) -> None:
    lines = (REPOSITORY / lock.name).read_text(encoding="utf-8").splitlines()
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[^\s;]+", line) for line in lines if not line.startswith("#"))
    assert not any("://" in line or "--index" in line or "--find-links /" in line for line in lines)
    assert "./launch.sh lock" in lines[0] and lines[1].startswith("#   uv pip compile pyproject.toml")


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_requirement_of_pyproject_is_pinned_as_it_asks(lock: Lock) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [r for extra in lock.extras for r in project["optional-dependencies"][extra]]
    pinned = pins(lock)
    for requirement in wanted:
        name, exact = re.fullmatch(r"([A-Za-z0-9._-]+)(?:==(\S+)|[<>].*)?", requirement).groups()
        assert name in pinned, f"{requirement} is not in {lock.name}: run ./launch.sh lock"
        assert exact is None or pinned[name].split("+")[0] == exact.split("+")[0]


def test_the_cpu_lock_leaves_out_what_breaks_it() -> None:
    cpu = pins(LOCKS[0])
    assert cpu["torch"].endswith("+cpu") and not {"torchvision", "torchaudio", "torchcodec", "vllm"} & cpu.keys()
