"""The cluster recipe: without its hardware it is refused and says what it wants; shrunk, it runs whole on two cores."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox
from rl.observe.evaluation import Evaluation
from rollout.store import read
from tests.e2e.harness import REPOSITORY, launch, weights_of
from tests.support import environment

RECIPE = "recipes/agent_rl.yaml"
ROWS = 100
SHRUNK = (
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
    without_gpus = os.environ | {"SLUICE_VENV": sys.prefix, "CUDA_VISIBLE_DEVICES": ""}
    command = ["./launch.sh", RECIPE, f"run.dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=REPOSITORY, env=without_gpus, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "wants 64 GPUs" in done.stderr and "run.device=cpu" in done.stderr
    assert not (tmp_path / "run").exists()


def write_demonstrations(path: Path) -> Path:
    """Write the oracles' conversations in the form of a user's dataset, and return the path."""
    sandbox = Sandbox(SandboxConfig())
    with path.open("w") as file:
        for index in range(ROWS):
            spec = environment(("python", "store")[index % 2])
            task = spec.generate(index, 1, "train")
            messages = spec.demonstrate(task, random.Random(index))
            row = {"messages": messages, "tools": json.dumps(spec.make(task, sandbox).tools)}
            file.write(json.dumps(row) + "\n")
    return path


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_shrunk_its_whole_path_runs(tmp_path: Path, cold_start: Path) -> None:
    """The run has two replicas that are compared after every push, two workers, gradient checkpointing and evaluations
    in between. A supervised stage on a file of messages comes first; it starts from a model that knows the tasks.
    """
    messages = write_demonstrations(tmp_path / "demonstrations.jsonl")
    sft = f"sft={{dataset: {messages}, rows: {ROWS}, steps: 5, tokens_per_step: 1200, optimizer: {{lr: 1e-4}}}}"
    run = launch(tmp_path / "run", tmp_path / "cache", *SHRUNK, f"model={cold_start}", sft, recipe=RECIPE)
    assert run.code == 0, run.output[-4000:]
    assert run.summary["steps"] == 2 and run.summary["staleness_max"] <= 2
    assert run.summary["trained_tokens"] > 0 and run.summary["mismatch_logprob_abs_mean"] < 1e-5
    assert run.column("policy/verified_engines") == [2.0, 2.0], "both engines, after every step, the last one too"
    tensors = len(weights_of(run.directory / "checkpoints" / "step-000002" / "hf"))
    assert run.column("policy/read_back_tensors") == [tensors] * 3, "all of them, in every version that engines had"
    assert len(run.column("eval/success")) == 3
    evaluations = [Evaluation.load(path) for path in sorted((run.directory / "evaluations").iterdir())]
    assert [one.version for one in evaluations] == [0, 1, 2], "each is of one version, also the one beside a step"
    assert {*evaluations[0].samples} == {*evaluations[2].samples} and "after − before" in run.output
    for stored in read(run.directory):
        if stored.split == "eval":
            version = int(stored.group.id.split("-")[1])
            assert {int(v) for t in stored.group.usable for s in t.samples for v in s.sampled_versions()} == {version}
    assert (Path(run.summary["best"]) / "hf" / "config.json").is_file()
    assert "supervised cold start 5/5" in run.output
    assert run.leftovers == ()
