"""The cluster recipe: refused with what it wants where that is missing, and its whole path on two cores when shrunk."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.sandbox.sandbox import Sandbox
from rl.recipe.load import load_recipe
from rollout.envs.registry import ENVIRONMENTS
from rollout.tasks.stream import task_stream
from tests.e2e.harness import REPOSITORY, launch

RECIPE = "recipes/agent_rl.yaml"
SFT_OPTIMIZER = "optimizer: {lr: 1.5e-2, warmup_steps: 10, decay: linear, clip_norm: 0.5}"
SHRUNK = (
    "model=recipes/models/tiny-glm4-moe",
    "model.dtype=float32",
    "run.device=cpu",
    "run.steps=2",
    "run.stall_s=300",
    "tasks.eval_size=8",
    "rollout.workers=2",
    "rollout.groups_per_worker=2",
    "rollout.group_size=4",
    "rollout.max_context=256",
    "rollout.sampling.max_tokens=40",
    "inference.replicas=2",
    "inference.tensor_parallel=1",
    "inference.engine_args={enforce_eager: true}",
    "trainer.ranks=2",
    "trainer.expert_parallel=2",
    "trainer.groups_per_step=4",
    "trainer.token_budget=4096",
    "weight_sync.bucket_mb=1",
    "weight_sync.verify_every=1",
    "eval.every=1",
    "eval.samples_per_task=2",
    "checkpoint.every=1",
)


def test_without_its_hardware_it_says_what_it_wants_and_starts_nothing(tmp_path: Path) -> None:
    environment = os.environ | {"SLUICE_VENV": sys.prefix, "CUDA_VISIBLE_DEVICES": ""}
    command = ["./launch.sh", RECIPE, f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "wants 64 GPUs" in done.stderr and "run.device=cpu" in done.stderr
    assert not (tmp_path / "run").exists()


def write_demonstrations(path: Path) -> Path:
    """The oracles' conversations as anybody's dataset would hold them."""
    recipe = load_recipe("recipes/quickstart.yaml", ["tasks.train_size=1500"])
    sandbox = Sandbox(recipe.sandbox)
    with path.open("w") as file:
        for index, task in enumerate(task_stream(recipe.tasks, "train")[:1500]):
            spec = ENVIRONMENTS[task.environment]
            row = {
                "messages": spec.demonstrate(task, random.Random(index)),
                "tools": json.dumps(spec.make(task, sandbox).tools),
            }
            file.write(json.dumps(row) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_shrunk_its_whole_path_runs(tmp_path: Path, cold_start_cache: Path) -> None:
    """Two replicas that are compared after every push, two workers, gradient checkpointing, evaluation in between;
    before it a supervised stage on a file of messages.
    """
    messages = write_demonstrations(tmp_path / "demonstrations.jsonl")
    sft = f"sft={{dataset: {messages}, rows: 1500, steps: 300, tokens_per_step: 1200, {SFT_OPTIMIZER}}}"
    run = launch(tmp_path / "run", cold_start_cache, *SHRUNK, sft, recipe=RECIPE)
    assert run.code == 0, run.output[-4000:]
    assert run.summary["steps"] == 2 and run.summary["staleness_max"] <= 2
    assert run.summary["trained_tokens"] > 0 and run.summary["mismatch_logprob_abs_mean"] < 1e-5
    assert len(run.column("eval/success")) == 3
    assert run.leftovers == ()
