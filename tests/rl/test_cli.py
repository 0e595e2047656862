"""The verbs as a user calls them: exit codes, what is printed where, and that a refusal starts nothing."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rl.cli import TRAIN, VERBS, main
from rl.exitcodes import DONE, FAILED, NOTHING_STARTED, STALLED
from rl.paths import REPOSITORY
from rl.recipe.machine import environment_error

CLUSTER = str(REPOSITORY / "recipes" / "agent_rl.yaml")


@pytest.mark.parametrize("argv", [[], ["--help"], ["help"], ["plan", "--help"], [CLUSTER, "-h"]])
def test_help(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 0
    assert "./launch.sh RECIPE" in capsys.readouterr().out


def test_every_verb_of_the_help_page_exists(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    documented = {line.split()[1] for line in capsys.readouterr().out.splitlines() if line.startswith("  ./launch.sh")}
    assert documented - {"RECIPE", "--help"} == set(VERBS)


@pytest.mark.parametrize("target", [TRAIN, *VERBS.values()])
def test_every_verb_of_the_table_is_there(target: str) -> None:
    module, _, name = target.partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_the_help_page_names_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    explained = capsys.readouterr().out.partition("Exit codes:")[2]
    codes = (DONE, FAILED, NOTHING_STARTED, STALLED, 128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert [int(word) for word in re.findall(r"\b\d+\b", explained)] == list(codes)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["no/such.yaml"], "no recipe file and no verb is called 'no/such.yaml'"),
        (["plan"], "plan needs a recipe"),
        (["plan", "no/such.yaml"], "no/such.yaml: cannot be read"),
        (["plan", CLUSTER, "run.stepz=1"], "the nearest is 'run.steps'"),
        ([CLUSTER, "run.stepz=1"], "the nearest is 'run.steps'"),
        (["check", "now"], "check takes no arguments"),
        (["lock", "now"], "lock takes no arguments"),
        (["doctor", "now"], "no recipe file and no verb is called 'now'"),
        (["doctor", CLUSTER, "limit_s=soon"], "limit_s=soon: give whole seconds"),
        (["doctor", CLUSTER, "run.hostfile=no/such"], "run.hostfile=no/such cannot be read"),
        (["k8s"], "k8s needs a recipe"),
        (["k8s", CLUSTER, "gpus=some"], "gpus=some: give the number of GPUs in one machine"),
        (["k8s", CLUSTER, "run.dir=runs/mine"], "the shared volume is at /shared"),
    ],
)
def test_what_cannot_start_exits_with_2(argv: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and words in said.err and said.out == ""


def test_the_cluster_recipe_without_its_hardware_starts_nothing(tmp_path: Path) -> None:
    script = (
        "import sys; from rl.cli import main; code = main(sys.argv[1:]); "
        "assert not {'ray', 'vllm', 'deepspeed', 'torch'} & set(sys.modules); sys.exit(code)"
    )
    command = [sys.executable, "-c", script, CLUSTER, f"run.dir={tmp_path / 'run'}"]
    without_gpus = {"PATH": "/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=without_gpus, timeout=60)
    assert done.returncode == 2, done.stderr
    assert "error: this recipe wants 64 GPUs and 68 CPU cores; here are 0 GPUs" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_sandbox_that_cannot_isolate_is_told_before_anything_starts(tmp_path: Path) -> None:
    bwrap = tmp_path / "bwrap"
    bwrap.write_text("#!/bin/sh\necho 'no namespaces here' >&2\nexit 1\n", encoding="utf-8")
    bwrap.chmod(0o755)
    (tmp_path / "file").touch()
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "CUDA_VISIBLE_DEVICES": ""}

    def start(*overrides: str) -> subprocess.CompletedProcess[str]:
        # The run directory is a file, which is refused after the sandbox is checked. So nothing is ever started.
        recipe = ["recipes/quickstart.yaml", f"run.dir={tmp_path / 'file'}", *overrides]
        command = [sys.executable, "-m", "rl.cli", *recipe]
        return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, env=environment, timeout=120)

    refused = start()
    assert refused.returncode == 2 and "no namespaces here" in refused.stderr
    assert "sandbox: unsafe-none" in refused.stderr
    # Nothing is isolated by request, or nothing runs code.
    for overrides in ("sandbox=unsafe-none", "tasks.sources=[{environment: store}]"):
        passed = start(overrides)
        assert "namespaces" not in passed.stderr and "is a file" in passed.stdout + passed.stderr


def test_a_run_on_gpus_from_the_cpu_environment_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if environment_error("cpu"):
        pytest.skip("this is the GPU environment")
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\nfor i in 0 1 2; do echo "GPU $i: NVIDIA H200"; done\n', encoding="utf-8")
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert main([str(REPOSITORY / "recipes" / "quickstart.yaml"), f"run.dir={tmp_path / 'run'}"]) == 2
    assert "SLUICE_DEVICE=cuda ./launch.sh" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
