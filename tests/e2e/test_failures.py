"""Every way a run can break ends in a message that names the process and its log, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from tests.e2e.harness import SHORT, Launched, Run, launch, launched

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

ENDLESS = ("run.steps=500", "tasks.eval_size=8", "checkpoint.every=1000")
STALL_S = 120
"""Longer than any stage of a start-up on a busy machine."""
END_S = 120.0
"""The promise is 30 s on a quiet machine, which nobody can assert on a busy one: `Launched.finish` prints the time."""


def in_the_loop(run: Launched) -> None:
    run.wait_until(lambda: run.steps_done() >= 1, "the first step")


def check_end(run: Launched, code: int, *texts: str) -> Run:
    ended = run.finish(END_S)
    assert ended.code == code, ended.output[-3000:]
    for text in texts:
        assert text in ended.output, f"{text!r} is not in:\n{ended.output[-3000:]}"
    assert ended.summary["exit_reason"] != "finished"
    assert ended.leftovers == ()
    return ended


def test_ctrl_c(tmp_path: Path, cold_start_cache: Path) -> None:
    with launched(tmp_path / "run", cold_start_cache, *ENDLESS) as run:
        in_the_loop(run)
        run.process.send_signal(signal.SIGINT)
        check_end(run, 130, "SIGINT")


def test_sigterm_while_ray_is_starting(tmp_path: Path, cold_start_cache: Path) -> None:
    with launched(tmp_path / "run", cold_start_cache, *ENDLESS) as run:
        run.wait_until(lambda: "starting Ray" in run.output, "Ray to be started")
        run.process.send_signal(signal.SIGTERM)
        check_end(run, 143, "SIGTERM")


@pytest.mark.parametrize("role", ["worker-0", "engine-0", "trainer-1"])
def test_a_process_is_killed(tmp_path: Path, cold_start_cache: Path, role: str) -> None:
    with launched(tmp_path / "run", cold_start_cache, *ENDLESS) as run:
        in_the_loop(run)
        os.kill(run.pid_of(role), signal.SIGKILL)
        check_end(run, 1, role, f"logs/{role}.log")


def test_an_engine_that_dies_in_the_last_evaluation_costs_no_step(tmp_path: Path, cold_start_cache: Path) -> None:
    overrides = ("run.steps=2", "tasks.eval_size=96", "checkpoint.every=1000")
    directory = tmp_path / "run"
    with launched(directory, cold_start_cache, *overrides) as run:
        in_the_loop(run)
        engine = run.pid_of("engine-0")
        run.wait_until((directory / "checkpoints" / "step-000002").exists, "the last checkpoint")
        os.kill(engine, signal.SIGKILL)
        ended = check_end(run, 1, "engine-0", "logs/engine-0.log")
    broken = ended.summary
    assert broken["steps"] == 2 and broken["checkpoint"].endswith("step-000002")
    assert broken["eval_success_after"] is None

    again = launch(directory, cold_start_cache, *overrides, "resume=auto")
    assert again.code == 0, again.output[-3000:]
    assert again.summary["steps"] == 2 and 0 <= again.summary["eval_success_after"] <= 1
    for key in ("tasks_trained", "trained_tokens", "checkpoint", "eval_success_before"):
        assert again.summary[key] == broken[key]
    assert again.column("eval/success") == [again.summary[f"eval_success_{when}"] for when in ("before", "after")]
    assert len(again.column("time/step_s")) == 2


def test_a_stall_dumps_all_stacks_and_says_who_waits(tmp_path: Path, cold_start_cache: Path) -> None:
    with launched(tmp_path / "run", cold_start_cache, *ENDLESS, f"run.stall_s={STALL_S}") as run:
        in_the_loop(run)
        os.kill(run.pid_of("engine-0"), signal.SIGSTOP)
        ended = run.finish(STALL_S + 60 + END_S)
        assert ended.code == 75 and "no progress for" in ended.output and "Waiting for:" in ended.output
        stacks = next((ended.directory / "logs").glob("stacks-*.txt")).read_text()
        assert "worker-0" in stacks and "trainer-0" in stacks and "Thread" in stacks
        assert ended.leftovers == ()


def test_a_step_that_is_not_finite_ends_the_run_and_its_model_is_not_kept(tmp_path: Path) -> None:
    overrides = ("sft.optimizer.lr=1e30", "sft.optimizer.warmup_steps=0", "sft.rows=50")
    run = launch(tmp_path / "run", tmp_path / "cache", *overrides, *SHORT)
    assert run.code == 1, run.output[-3000:]
    assert "supervised step" in run.output and "lower sft.optimizer.lr" in run.output
    assert run.summary["exit_reason"] in run.output
    assert list((tmp_path / "cache").glob("*sft-*")) == []
    assert run.leftovers == ()


def test_an_environment_that_always_fails_stops_the_run(tmp_path: Path, cold_start_cache: Path) -> None:
    rows = tmp_path / "broken.jsonl"
    message = {"role": "user", "content": "Please set slot 1 to 2."}
    rows.write_text(
        "".join(
            json.dumps({"id": f"t{i}", "messages": [message | {"content": f"Set slot {i}."}]}) + "\n" for i in range(64)
        )
    )
    broken = f"tasks.sources=[{{environment: store, dataset: {rows}}}]"
    run = launch(tmp_path / "run", cold_start_cache, broken, "sft=null", *SHORT)
    assert run.code == 1
    assert "lost to infrastructure failures" in run.output and "failure_share_limit" in run.output
    assert run.leftovers == ()
