"""Engines that die in a run are started again, get the version that the others hold, and the run goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.dense import overrides as dense_overrides
from tests.e2e.harness import ONE_RANK, QUICKSTART, Launched, check_end, in_the_loop, launched
from tests.rollout.engine.inference_support import PARITY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ENDLESS = ("run.steps=500", "checkpoint.every=1000", "tasks.eval_size=4", "trainer.groups_per_step=2")
FEW = ("rollout.group_size=4", "weight_sync.verify_every=1", *ONE_RANK)


def kill(run: Launched, *engines: int) -> None:
    for pid in [run.pid_of(f"engine-{number}") for number in engines]:
        os.kill(pid, signal.SIGKILL)


def back(run: Launched, engine: int, times: int) -> None:
    told = f"engine-{engine} serves from now on"
    run.wait_until(lambda: run.output.count(told) == times, f"engine-{engine}, started again {times} times")


def two_more_steps(run: Launched) -> None:
    done = run.steps_done()
    run.wait_until(lambda: run.steps_done() >= done + 2, "two more steps")


@pytest.mark.parametrize("pushed", ["weights", pytest.param("adapters", marks=pytest.mark.long)])
def test_the_other_engine_goes_on_alone_and_then_both_are_lost(
    tmp_path: Path, cold_start_cache: Path, dense: Path, pushed: str
) -> None:
    """Whole weights over gloo, whose group is another one each time; or adapters, before which an engine gets the base
    model."""
    recipe = QUICKSTART if pushed == "weights" else "recipes/smollm2_lora.yaml"
    more = (*FEW, "weight_sync.transport.name=gloo") if pushed == "weights" else dense_overrides(dense)
    with launched(tmp_path / "run", cold_start_cache, *more, *ENDLESS, "inference.replicas=2", recipe=recipe) as run:
        in_the_loop(run)
        kill(run, 1)
        two_more_steps(run)
        back(run, 1, times=1)
        two_more_steps(run)
        kill(run, 0, 1)
        back(run, 0, times=1)
        back(run, 1, times=2)
        two_more_steps(run)
        kill(run, 0)
        ended = check_end(run, 1, "engine-0 died", "logs/engine-0.log")
    assert max(ended.column("policy/engines_restarted")) == 3
    assert {1.0, 2.0} <= set(ended.column("policy/verified_engines"))
    assert max(ended.column("mismatch/logprob_abs_mean")) < PARITY, "each token is of the weights that it says"
    assert max(ended.column("staleness/max")) <= 1
