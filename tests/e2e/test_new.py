"""A run with what `./launch.sh new` writes: one extension of each kind, unchanged, as a newcomer tries them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rl.paths import REPOSITORY
from rl.verbs.new import KINDS, attribute_of
from rollout.store import read
from tests.e2e.harness import ONE_RANK, Run, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS = 2
SECTIONS = ("advantage", "loss", "correction")
"""The kinds that are sections of a recipe. Environments and rewards belong to a task source."""


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The generated extensions' names in a recipe, by kind."""
    folder = tmp_path_factory.mktemp("own")
    environment = os.environ | {"SLUICE_VENV": sys.prefix}
    for kind in KINDS:
        command = ["./launch.sh", "new", kind, f"own_{kind}", str(folder)]
        subprocess.run(command, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.DEVNULL)
    return {kind: f"{folder}/own_{kind}.py:{attribute_of(kind, f'own_{kind}')}" for kind in KINDS}


@pytest.fixture(scope="module")
def run(names: dict[str, str], tmp_path_factory: pytest.TempPathFactory, cold_start_cache: Path) -> Run:
    folder = tmp_path_factory.mktemp("run") / "run"
    rewards = f"[environment, {names['reward']}]"
    source = f"{{environment: {names['environment']}, rewards: {rewards}, success: {{found: 1.0}}}}"
    overrides = [f"{kind}={names[kind]}" for kind in SECTIONS]
    short = (f"run.steps={STEPS}", "sft.steps=40", "tasks.eval_size=8", *ONE_RANK)
    return launch(folder, cold_start_cache, *short, f"tasks.sources=[{source}]", *overrides)


def test_the_run_finishes_with_all_of_them(run: Run, names: dict[str, str]) -> None:
    assert run.code == 0, run.output[-4000:]
    assert run.summary["exit_reason"] == "finished" and run.leftovers == ()
    resolved = yaml.safe_load((run.directory / "config.yaml").read_text(encoding="utf-8"))
    assert all(resolved[kind]["name"] == names[kind] for kind in SECTIONS)


def test_each_of_them_has_acted(run: Run) -> None:
    """Environment and reward give their parts to every trajectory, loss and correction their metrics to every step."""
    trained = [t for stored in read(run.directory) if stored.step for t in stored.group.usable]
    assert trained and all(t.reward_parts.keys() == {"found", "own_reward"} for t in trained)
    assert any(t.metrics["tool_calls"] for t in trained), "the model has learned to look"
    assert len(run.column("loss/truncated")) == len(run.column("policy/rejected_fraction")) == STEPS


def test_every_step_tells_what_is_left(run: Run) -> None:
    lines = [line for line in run.output.splitlines() if f"/{STEPS}  reward" in line]
    assert len(lines) == STEPS and all(re.search(r"  ~\d+ (s|min) left  · ", line) for line in lines)
    assert run.column("time/left_s") == sorted(run.column("time/left_s"), reverse=True)
