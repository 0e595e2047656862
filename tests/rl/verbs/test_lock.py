"""The lock files: complete, pinned, free of addresses, and made by the command they name."""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from rl.paths import REPOSITORY
from rl.recipe.machine import TORCH_LOCK
from rl.verbs import lock as lock_verb
from rl.verbs.lock import FOLDER, LOCKS, TORCH_HEADER, Lock, is_torch, lock, lock_header, read_pins
from tests.support import program

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


CPU_PINS = {"six": "2", "torch": "9", "nvidia-cublas": "1"}
GPU_PINS = {"six": "2", "torch": "9", "vllm": "3"}
Resolve = Callable[[dict[str, object]], int]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the lock files, with one older file in it."""
    monkeypatch.setattr(lock_verb, "FOLDER", tmp_path)
    (tmp_path / CPU.name).write_text("# older\nsix==1\n", encoding="utf-8")
    return tmp_path


@pytest.fixture
def resolve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Resolve:
    """Run `lock` with a uv that resolves by a table, see tests/rl/verbs/fake_uv.py."""

    def run(special: dict[str, object]) -> int:
        table = {"cpu * *": CPU_PINS, "gpu * *": GPU_PINS} | special
        (folder / "table.json").write_text(json.dumps(table), encoding="utf-8")
        monkeypatch.setenv("RESOLUTIONS", str(folder / "table.json"))
        command = f'#!/bin/sh\nexec {sys.executable} {Path(__file__).with_name("fake_uv.py")} "$@"\n'
        program(folder / "bin", "uv", command, monkeypatch)
        return lock([])

    return run


def test_lock_writes_the_pins_that_all_pythons_share_and_torch_apart(
    resolve: Resolve, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolve({"gpu * aarch64": "no wheel of vllm"}) == 0
    assert read_pins(folder / CPU.name) == {"six": "2"}
    assert read_pins(folder / TORCH_LOCK) == {"torch": "9", "nvidia-cublas": "1"}
    assert read_pins(folder / GPU.name) == GPU_PINS
    assert (folder / CPU.name).read_text(encoding="utf-8").splitlines() == [*lock_header(CPU), "six==2"]
    said = capsys.readouterr().out
    assert f"{CPU.name} has 3 pins, each with a wheel for Python 3.11, 3.12, 3.13, 3.14" in said
    assert "aarch64, for the record: the same pins" in said
    assert "aarch64, for the record: on aarch64 with Python 3.11 there is no solution" in said
    assert (folder / "table.before").read_text(encoding="utf-8").startswith("# older\nsix==1\n"), "uv keeps what fits"


@pytest.mark.parametrize(
    ("special", "reason"),
    [
        ({"cpu 3.13 x86_64": CPU_PINS | {"six": "3"}}, "a file of its own for Python 3.13, unlike 3.11: six==3"),
        ({"cpu 3.12 x86_64": {"torch": "9", "nvidia-cublas": "1"}}, "Python 3.12, unlike 3.11: without six"),
        ({"cpu 3.14 x86_64": "no wheel of six"}, "on x86_64 with Python 3.14 there is no solution\nno wheel of six"),
        ({"cpu * *": CPU_PINS | {"torch": "9+cpu"}}, "torch==9+cpu is no build of the package index"),
    ],
)
def test_lock_changes_no_file_that_not_every_python_could_use(
    special: dict[str, object], reason: str, resolve: Resolve, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert resolve(special) == 1
    said = capsys.readouterr().err
    assert f"{CPU.name} is unchanged: " in said and reason in said
    assert (folder / CPU.name).read_text(encoding="utf-8") == "# older\nsix==1\n"
    assert not (folder / GPU.name).exists()
