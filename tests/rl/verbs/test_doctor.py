"""The report on the machine, with small real programs in the place of nvidia-smi and bwrap."""

from __future__ import annotations

import os
import shutil
import sys
from importlib import metadata
from pathlib import Path

import pytest

from rl.recipe.machine import chosen_device, cpu_count, environment_error, gpu_names, sandbox_error
from rl.verbs.doctor import doctor, lock_differences, wanted_pins
from tests.support import program

TWO_GPUS = "#!/bin/sh\necho 'GPU 0: NVIDIA H200 (UUID: GPU-a)'\necho 'GPU 1: NVIDIA H200 (UUID: GPU-b)'\n"


@pytest.fixture(autouse=True)
def no_gpu_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_those_nvidia_smi_lists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", TWO_GPUS, monkeypatch)
    assert [name.split(":")[0] for name in gpu_names()] == ["GPU 0", "GPU 1"]


@pytest.mark.parametrize(("visible", "count"), [("", 0), ("-1", 0), ("-1,0", 0), ("1", 1), ("0,1", 2)])
def test_hidden_gpus_do_not_count(visible: str, count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", TWO_GPUS, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert len(gpu_names()) == count


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 9\n", "#!/bin/sh\necho 'No devices were found'\n"])
def test_a_driver_that_sees_nothing_means_no_gpus(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "nvidia-smi", script, monkeypatch)
    assert gpu_names() == []


def test_the_environment_is_for_the_device_that_was_chosen_else_for_what_is_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path, "nvidia-smi", TWO_GPUS, monkeypatch)
    monkeypatch.delenv("SLUICE_DEVICE", raising=False)
    assert chosen_device() == "cuda"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert chosen_device() == "cpu"
    monkeypatch.setenv("SLUICE_DEVICE", "cuda")
    assert chosen_device() == "cuda"


def test_an_environment_for_the_other_device_names_the_start_that_builds_the_right_one() -> None:
    errors = {device: environment_error(device) for device in ("cpu", "cuda")}
    ((device, text),) = ((device, text) for device, text in errors.items() if text)
    assert f"SLUICE_DEVICE={device} ./launch.sh" in text


def test_a_sandbox_that_is_missing_or_broken_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "not installed" in str(sandbox_error())
    program(tmp_path, "bwrap", "#!/bin/sh\necho 'no namespaces here' >&2\nexit 1\n", monkeypatch)
    assert "no namespaces here" in str(sandbox_error()) and "sandbox: unsafe-none" in str(sandbox_error())


def test_what_is_probed_is_what_the_sandbox_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A simpler probe would not do: it may work where the seccomp filter or the dropped user does not."""
    program(tmp_path, "bwrap", f'#!/bin/sh\necho "$@" >{tmp_path}/arguments\n', monkeypatch)
    assert sandbox_error() is None
    arguments = (tmp_path / "arguments").read_text()
    assert "--seccomp" in arguments and "--die-with-parent" in arguments and "-I -S -c" in arguments


def test_lock_differences_name_both_versions() -> None:
    pins = {"pytest": metadata.version("pytest"), "pydantic": "0.1", "no-such-package": "1.0+x"}
    assert lock_differences(pins) == [
        f"pydantic: {metadata.version('pydantic')}, pinned 0.1",
        "no-such-package: missing, pinned 1.0+x",
    ]


def test_on_cpus_either_build_of_torch_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pins = {"cpu.txt": "six==1\n", "gpu.txt": "six==2\n", "torch.txt": "nvidia-x==1\ntorch==9.9\n"}
    for name, text in pins.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert wanted_pins("cuda", tmp_path) == {"six": "2"}
    ordinary = {"six": "1", "nvidia-x": "1", "torch": "9.9"}
    for installed, wanted in (
        ("9.9+cpu", {"six": "1", "torch": "9.9+cpu"}),
        ("9.9", ordinary),
        ("9.8+cpu", ordinary),
    ):
        monkeypatch.setattr(metadata, "version", {"torch": installed}.__getitem__)
        assert wanted_pins("cpu", tmp_path) == wanted


def test_a_machine_says_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Check every line of `doctor`, on a machine whose nvidia-smi lists two GPUs and whose sandbox is broken."""
    program(tmp_path, "nvidia-smi", TWO_GPUS, monkeypatch)
    program(tmp_path, "bwrap", "#!/bin/sh\necho 'no namespaces here' >&2\nexit 1\n", monkeypatch)
    monkeypatch.setenv("SLUICE_DEVICE", "cuda")
    assert doctor([]) == 1
    said = {line.split()[1]: line for line in capsys.readouterr().out.splitlines()}
    version = ".".join(map(str, sys.version_info[:3]))
    assert f"{version} at {sys.executable}" in said["python"]
    assert "differ from locks/gpu.txt: " in said["packages"] and said["packages"].startswith("FAIL")
    assert said["cpus"].split()[2] == str(len(os.sched_getaffinity(0)))
    assert "GPU 0: NVIDIA H200" in said["gpus"] and "GPU 1" in said["gpus"]
    assert said["sandbox"].startswith("FAIL") and "no namespaces here" in said["sandbox"]
    assert said["git"].endswith(str(shutil.which("git"))) and "GB free in" in said["disk"]


def test_a_sound_machine_has_no_complaint(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On this machine, in the environment that launch.sh built for it, `doctor` finds nothing wrong."""
    monkeypatch.setenv("SLUICE_DEVICE", "cpu")
    if environment_error("cpu"):
        pytest.skip("this is the GPU environment")
    code, said = doctor([]), capsys.readouterr().out
    assert code == 0 and all(line.startswith("ok  ") for line in said.splitlines()), said


def test_the_cpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 5})
    assert cpu_count() == 3
