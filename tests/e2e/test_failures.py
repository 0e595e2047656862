"""Runs that break or are stopped: each ends with a message that says why, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.harness import ONE_RANK, SHORT, check_end, in_the_loop, launch, launched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

SMALL = ("tasks.eval_size=4", "trainer.groups_per_step=2", "rollout.group_size=4")
ENDLESS = ("run.steps=500", "checkpoint.every=1000", *SMALL)


def test_ctrl_c(tmp_path: Path, cold_start_cache: Path) -> None:
    with launched(tmp_path / "run", cold_start_cache, *ENDLESS, *ONE_RANK) as run:
        in_the_loop(run)
        run.process.send_signal(signal.SIGINT)
        check_end(run, 130, "SIGINT")


def test_sigterm_while_ray_is_starting(tmp_path: Path, cold_start_cache: Path) -> None:
    with launched(tmp_path / "run", cold_start_cache, *ENDLESS) as run:
        run.wait_until(lambda: "starting Ray" in run.output, "Ray to be started")
        run.process.send_signal(signal.SIGTERM)
        check_end(run, 143, "SIGTERM")


@pytest.mark.parametrize("role", ["worker-0", "trainer-1"])
def test_a_process_is_killed(tmp_path: Path, cold_start_cache: Path, role: str) -> None:
    ranks = ONE_RANK if role == "worker-0" else ()
    with launched(tmp_path / "run", cold_start_cache, *ENDLESS, *ranks) as run:
        in_the_loop(run)
        os.kill(run.pid_of(role), signal.SIGKILL)
        check_end(run, 1, role, f"logs/{role}.log")


def test_a_stall_dumps_all_stacks_and_says_who_waits(tmp_path: Path, cold_start_cache: Path) -> None:
    """The engine is halted as soon as it does what it was called for. (Halted before Ray has connected to it, it would
    count as unreachable.) Wherever the run then waits for it, the watchdog ends the run."""
    with launched(tmp_path / "run", cold_start_cache, *ENDLESS, *ONE_RANK, "run.stall_s=25") as run:
        run.wait_until(lambda: run.has_role("engine-0") and run.has_role("worker-0"), "the processes")
        log = tmp_path / "run" / "logs" / "engine-0.log"
        run.wait_until(lambda: log.exists() and log.stat().st_size > 0, "the engine's first line")
        os.kill(run.pid_of("engine-0"), signal.SIGSTOP)
        ended = run.finish()
        assert ended.code == 75 and "no progress for" in ended.output and "Waiting for:" in ended.output
        stacks = next((ended.directory / "logs").glob("stacks-*.txt")).read_text()
        assert "worker-0" in stacks and "trainer-0" in stacks and "Thread" in stacks
        assert ended.leftovers == ()


def test_a_step_that_is_not_finite_ends_the_run_and_its_model_is_not_kept(tmp_path: Path) -> None:
    overrides = ("sft.optimizer.lr=1e15", "sft.optimizer.warmup_steps=0", "sft.rows=50")
    run = launch(tmp_path / "run", tmp_path / "cache", *overrides, *SHORT, *ONE_RANK)
    assert run.code == 1, run.output[-3000:]
    assert "supervised step" in run.output and "lower sft.optimizer.lr" in run.output
    assert run.summary["exit_reason"] in run.output
    assert list((tmp_path / "cache").glob("*sft-*")) == []
    assert run.leftovers == ()


BROKEN = """
from rollout.envs.store import StoreRequests

class Broken(StoreRequests):
    name = "broken"

    def make(self, task, sandbox):
        raise ConnectionError("the back end does not answer")
"""


def test_a_row_that_is_no_task_is_refused_before_anything_starts(tmp_path: Path, cold_start_cache: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps({"messages": [{"role": "user", "content": "Set slot 1."}]}) + "\n")
    run = launch(tmp_path / "run", cold_start_cache, f"tasks.sources=[{{environment: store, dataset: {rows}}}]")
    assert run.code == 2 and not run.directory.exists()
    assert "rows.jsonl:1: field 'payload.state': Field required" in run.output


def test_an_environment_that_always_fails_stops_the_run(tmp_path: Path, cold_start_cache: Path) -> None:
    (tmp_path / "broken.py").write_text(BROKEN, encoding="utf-8")
    broken = f"tasks.sources=[{{environment: '{tmp_path / 'broken.py'}:Broken'}}]"
    run = launch(tmp_path / "run", cold_start_cache, broken, "sft=null", *SHORT, *ONE_RANK)
    assert run.code == 1
    assert "lost to infrastructure failures" in run.output and "failure_share_limit" in run.output
    assert run.leftovers == ()
