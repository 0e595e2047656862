"""The lock files: complete, pinned, free of addresses, and made by the command they name."""

from __future__ import annotations

import re
import tomllib

import pytest

from rl.paths import REPOSITORY
from rl.recipe.machine import TORCH_LOCK
from rl.verbs.lock import FOLDER, LOCKS, TORCH_HEADER, Lock, is_torch, lock_header, read_pins

CPU, GPU = LOCKS
HEADERS = {CPU.name: lock_header(CPU), GPU.name: lock_header(GPU), TORCH_LOCK: TORCH_HEADER}


def package(pin: str) -> str:
    return pin.partition("==")[0]


@pytest.mark.parametrize("name", HEADERS)
def test_every_line_is_one_pin_and_no_address(name: str) -> None:
    lines = (FOLDER / name).read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9._-]*==[^\s;]+", line) for line in pins) and pins == sorted(
        pins, key=package
    )
    assert not any("://" in line or "--index" in line or "--find-links /" in line for line in lines)
    assert [line for line in lines if line.startswith("#")] == HEADERS[name], "run ./launch.sh lock"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_requirement_of_pyproject_is_pinned_as_it_asks(lock: Lock) -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = project["dependencies"] + [r for extra in lock.extras for r in project["optional-dependencies"][extra]]
    pinned = read_pins(FOLDER / lock.name) | (read_pins(FOLDER / TORCH_LOCK) if lock.splits_torch else {})
    for requirement in wanted:
        name, exact = re.fullmatch(r"([A-Za-z0-9._-]+)(?:==(\S+)|[<>].*)?", requirement).groups()
        assert name in pinned, f"{requirement} is not in {lock.name}: run ./launch.sh lock"
        assert exact is None or pinned[name] == exact


def test_the_cpu_lock_leaves_out_what_breaks_it_and_torch() -> None:
    cpu, torch = read_pins(FOLDER / CPU.name), read_pins(FOLDER / TORCH_LOCK)
    assert not {"torchvision", "torchaudio", "torchcodec", "vllm", "triton"} & (cpu.keys() | torch.keys())
    assert not any(map(is_torch, cpu)) and all(map(is_torch, torch))


def test_both_environments_have_the_same_torch() -> None:
    assert read_pins(FOLDER / TORCH_LOCK)["torch"] == read_pins(FOLDER / GPU.name)["torch"]


def test_pyproject_names_the_pythons_of_the_locks() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.15"
    assert CPU.pythons == ("3.11", "3.12", "3.13", "3.14") and set(GPU.pythons) < set(CPU.pythons)
