"""The commands that README and CONTRIBUTING show, as they stand there, but for what makes them short."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.scale import DOCUMENT, SIZES, row
from benchmarks.scale_cluster import GROUP, MAX_STALENESS
from rl.paths import REPOSITORY
from tests.e2e.harness import COLD_START, ONE_RANK, Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ELSEWHERE = {
    "./launch.sh recipes/quickstart.yaml": "the fixture `quickstart` runs it, with fewer steps",
    "SLUICE_DEVICE=cpu ./launch.sh recipes/quickstart.yaml": "the same on a machine with GPUs: tests/test_launch.py",
    "./launch.sh eval recipes/quickstart.yaml model=ADAPTER against=runs/eval-quickstart-…": "tests/e2e/test_eval.py",
    "./launch.sh report runs/quickstart-…": "tests/e2e/test_quickstart.py, tests/rl/report/",
    "./launch.sh recipes/agent_rl.yaml run.hostfile=HOSTS run.dir=SHARED/run": "tests/e2e/test_hostfile.py",
    "./launch.sh node": "tests/e2e/test_hostfile.py, test_slurm.py: it is started over ssh or with srun",
    "./launch.sh lock": "needs a package index and minutes; its own logic: tests/rl/verbs/test_lock.py",
    "./launch.sh test": "runs this",
    "./launch.sh model smollm2-135m": "downloads 93 MB: tests/rl/verbs/test_model.py",
    "./launch.sh recipes/smollm2_lora.yaml": "takes minutes: tests/e2e/test_lora.py runs it with a tiny model",
}
SMALLEST = " ".join(("run.steps=1", "tasks.eval_size=4", COLD_START, *ONE_RANK))
COLLECT = "--collect-only -q tests/rollout/transfer"
SHORT = {
    "./launch.sh --help": ("", "./launch.sh RECIPE [key=value …]"),
    "./launch.sh plan recipes/agent_rl.yaml": ("", "this recipe wants 64 GPUs"),
    "./launch.sh new reward brevity": ("{temp}", "test_brevity.py"),
    "./launch.sh check": ("", "check: all clean"),
    './launch.sh test -n 2 -m "not slow"': (COLLECT, "tests collected"),
    "./launch.sh test tests/rl/batch/test_packing.py": ("", " passed in "),
    './launch.sh test -m "slurm or hosts"': ("--collect-only -q tests/e2e", "test_slurm.py::"),
    "SLUICE_DEVICE=cuda ./launch.sh test -m gpu": (COLLECT, "tests/rollout/transfer/test_nccl.py::"),
    "./launch.sh recipes/quickstart.yaml run.steps=4 run.dir=runs/mine": (
        f"run.dir={{temp}}/run run.cache_dir={{cache}} {SMALLEST}",
        "finished in",
    ),
    "./launch.sh eval recipes/quickstart.yaml model=runs/quickstart-…/best/hf eval.samples_per_task=4": (
        "model={temp}/quickstart/best/hf run.dir={temp}/eval tasks.eval_size=4",
        "maj@4",
    ),
    "./launch.sh recipes/quickstart.yaml run.dir=DIR resume=auto": (
        "run.dir={temp}/quickstart run.cache_dir={cache} run.steps=20",
        "this run is finished: there is nothing to resume",
    ),
}
"""By command: what is added, and a part of what it must print."""


def documented() -> set[str]:
    """Every launch.sh command in a block or span of code, without comments."""
    found = set()
    for name in ("README.md", "CONTRIBUTING.md"):
        text = (REPOSITORY / name).read_text(encoding="utf-8")
        lines = re.findall(r"^((?:[A-Z_]+=\S+ )?\./launch\.sh .*)$", text, flags=re.MULTILINE)
        spans = re.findall(r"`((?:[A-Z_]+=\S+\s)?\./launch\.sh\s[^`]*)`", text)
        found |= {" ".join(line.partition(" #")[0].partition("`")[0].split()) for line in lines} | {
            " ".join(span.split()) for span in spans
        }
    return {command for command in found if "RECIPE" not in command}


def test_every_command_is_run_here_or_elsewhere() -> None:
    assert documented() == SHORT.keys() | ELSEWHERE.keys()


@pytest.mark.parametrize("command", SHORT)
def test_a_command_does_what_it_says(command: str, tmp_path: Path, quickstart: Run, cold_start_cache: Path) -> None:
    added, printed = SHORT[command]
    if "{temp}/quickstart" in added:
        shutil.copytree(quickstart.directory, tmp_path / "quickstart")
    words = shlex.split(f"{command} {added.format(temp=tmp_path, cache=cold_start_cache)}")
    settings = dict(word.split("=", 1) for word in words if re.fullmatch(r"[A-Z_]+=\S+", word))
    environment = os.environ | {"SLUICE_VENV": sys.prefix} | settings
    done = subprocess.run(
        [word for word in words if word not in {f"{name}={value}" for name, value in settings.items()}],
        cwd=REPOSITORY,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert printed in done.stdout


def test_the_table_of_clusters_is_what_the_simulation_predicts() -> None:
    """One row is simulated again, as `python -m benchmarks.scale table --write` does with all of them."""
    document = DOCUMENT.read_text(encoding="utf-8")
    assert row(128, 1536, 7) in document
    for size in SIZES.split(","):
        gpus, trajectories = map(int, size.split(":"))
        a_step = trajectories // (GROUP * (MAX_STALENESS + 1))
        begin = rf"^\| {gpus:,}( \(.+?\))? \| {a_step * GROUP * (MAX_STALENESS + 1):,} \| {a_step:,} \|"
        assert re.search(begin, document, flags=re.MULTILINE), f"{size} is missing: write the table again"
