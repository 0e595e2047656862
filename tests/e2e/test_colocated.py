"""Trainer and engines that take turns: the two recipes that want it, shrunk to tiny models, and a death in a turn."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch

from tests.e2e.dense import overrides
from tests.e2e.harness import check_end, launch, launched, weights_of
from tests.rollout.engine.inference_support import PARITY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NOTHING_FREED = "placement=colocated on CPU: turns are taken in their order, and no memory is freed by them"
ON_CPU = (
    "run.device=cpu",
    "run.stall_s=300",
    "model.dtype=float32",
    "model.renderer=glm-4.5",
    "inference.engine_args={enforce_eager: true}",
)


def test_a_model_with_experts_and_its_engines_take_turns(
    cold_start: Path, cold_start_cache: Path, tmp_path: Path
) -> None:
    """All weights are pushed: the adapter of a model with experts is merged into them. It is trained by a supervised
    stage first."""
    run = launch(
        tmp_path / "run",
        cold_start_cache,
        *ON_CPU,
        f"model.path={cold_start}",
        "lora={rank: 8, targets: [q_proj, o_proj, shared_experts.down_proj]}",
        "kl={coef: 0.001, estimator: unbiased, place: loss}",
        "sft={dataset: oracle, rows: 100, steps: 10, tokens_per_step: 1200, optimizer: {lr: 1e-3}}",
        "run.steps=3",
        "tasks.eval_size=8",
        "rollout.workers=1",
        "rollout.group_size=8",
        "rollout.max_context=256",
        "rollout.max_turns=4",
        "rollout.sampling.max_tokens=40",
        "inference.replicas=2",
        "inference.tensor_parallel=1",
        "trainer.ranks=2",
        "trainer.expert_parallel=2",
        "trainer.groups_per_step=4",
        "trainer.token_budget=4096",
        "trainer.optimizer.lr=3e-3",
        "weight_sync.bucket_mb=1",
        "weight_sync.verify_every=1",
        "checkpoint.every=2",
        recipe="recipes/moe_one_node.yaml",
    )
    assert run.code == 0, run.output[-4000:]
    assert NOTHING_FREED in run.output
    assert run.summary["mismatch_logprob_abs_mean"] < PARITY
    assert set(run.column("policy/verified_engines")) == {2.0}
    assert max(run.column("staleness/max")) == 0
    assert len(run.column("time/turns_s")) >= 3
    assert "parameters are trained, in down_proj (1), o_proj (2), q_proj (2)" in run.output
    before, after = weights_of(cold_start), weights_of(Path(run.summary["hf_export"]))
    changed = {name.rpartition("layers.")[2] for name in before if not torch.equal(before[name], after[name])}
    attention = {f"{layer}.self_attn.{leaf}.weight" for layer in (0, 1) for leaf in ("q_proj", "o_proj")}
    assert changed == {*attention, "1.mlp.shared_experts.down_proj.weight"}
    for replica in range(2):
        log = (run.directory / "logs" / f"engine-{replica}.log").read_text()
        turns = log.count("sleep mode is not supported on CPU")
        # The trainer has a turn at the start, for each step, for the checkpoints after steps 2 and 3, and to merge the
        # adapter. vLLM's worker warns of each sleep, and of both parts of each waking.
        assert turns == 3 * (1 + 3 + 2 + 1)


def test_a_death_during_the_trainers_turn_ends_the_run_which_is_resumed(
    dense: Path, cold_start_cache: Path, tmp_path: Path
) -> None:
    recipe, directory = "recipes/lora_single_gpu.yaml", tmp_path / "run"
    settings = (
        *ON_CPU,
        *overrides(dense),
        "rollout.groups_per_worker=8",
        "rollout.sampling.max_tokens=32",
        "trainer.groups_per_step=8",
        "trainer.token_budget=1024",
    )
    with launched(directory, cold_start_cache, "run.steps=500", *settings, recipe=recipe) as first:
        first.wait_until((directory / "checkpoints" / "step-000002").is_dir, "the first checkpoint")
        os.kill(first.pid_of("trainer-0"), signal.SIGSTOP)
        time.sleep(5)  # by now the trainer is waited for: the engine is asleep, or has no KV cache
        os.kill(first.pid_of("engine-0"), signal.SIGKILL)
        check_end(first, 1, "process engine-0 died")
    run = launch(directory, cold_start_cache, "run.steps=4", "resume=must", *settings, recipe=recipe)
    assert run.code == 0, run.output[-4000:]
    assert "resuming after step" in run.output
    assert run.summary["steps"] == 4
    assert run.summary["mismatch_logprob_abs_mean"] < PARITY
    assert Path(run.summary["hf_export"]).is_dir(), "the merged adapter"
