"""kill -9 in the middle of a step, then `resume=auto`: the run goes on, no task is lost and none is trained twice."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path

import pytest
import torch

from rl.observe.metrics_log import read_metrics
from rl.rundir.checkpoint import CheckpointStore
from rl.rundir.runstate import read_buffer
from rollout.store import read
from rollout.store.eventlog import read_events
from tests.e2e.harness import ONE_RANK, check_end, in_the_loop, launch, launched, weights_of

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

OVERRIDES = ("tasks.eval_size=8", "checkpoint.every=2")


def test_kill_9_in_the_middle_of_a_step_and_resume(tmp_path: Path, cold_start_cache: Path) -> None:
    directory = tmp_path / "run"
    with launched(directory, cold_start_cache, "run.steps=500", *OVERRIDES) as run:
        run.wait_until(lambda: run.steps_done() >= 3, "step 3")
        os.kill(run.pid_of("trainer-0"), signal.SIGSTOP)  # the step under way can't end before the kill
        os.kill(run.driver_pid(), signal.SIGKILL)
        run.process.wait(60)
        assert run.leftovers() == ()
    done_before = max(step for step, _ in read_metrics(directory / "metrics.jsonl"))

    refused = launch(directory, cold_start_cache, "run.steps=6", *OVERRIDES)
    assert refused.code == 2 and "resume=auto" in refused.output

    saved = CheckpointStore(directory / "checkpoints", keep=2).latest()
    assert saved is not None
    buffer = read_buffer(saved)
    allowed = range(buffer.version - 1, buffer.version + 1)
    stored = list(read(directory))
    before = {one.group.id for one in stored if one.step is not None and one.step <= buffer.version}
    finished = {
        one.group.id
        for one in stored
        if one.split == "train"
        and one.group.id not in before
        and {int(v) for t in one.group.usable for s in t.samples for v in s.sampled_versions()} <= set(allowed)
    }
    print(f"{len(finished)} finished groups can be trained after {saved.name}")

    run = launch(directory, cold_start_cache, "run.steps=6", "resume=auto", *OVERRIDES)
    assert run.code == 0, run.output[-4000:]
    assert "resuming after step" in run.output
    assert run.summary["steps"] == run.summary["policy_version"] == 6 >= done_before
    steps = [step for step, values in read_metrics(directory / "metrics.jsonl") if "time/step_s" in values]
    assert steps == [1, 2, 3, 4, 5, 6], "every step once, whichever session did it"

    trained = [one.group for one in read(directory) if one.step is not None]
    assert len({g.id for g in trained}) == len(trained) == run.summary["tasks_trained"]
    assert finished <= {g.id for g in trained}, "a finished group was thrown away, or made again"
    assert f"{len(finished)} finished groups wait again" in run.output
    tasks = [g.task.id for g in trained]
    assert len(set(tasks)) == len(tasks), "a task was trained twice"
    ledger = run.state["buffer"]["ledger"]
    assert ledger["reissued"].get("interrupted", 0) > 0, "what was in flight at the kill was handed out again"
    events = read_events(directory / "ledger.log")
    assert [e["step"] for e in events if e["event"] == "trained"] == [1, 2, 3, 4, 5, 6]
    assert all(g.id.startswith(("g1-", "g2-")) for g in trained) and any(g.id.startswith("g2-") for g in trained)


def test_an_engine_dies_in_the_last_evaluation_and_the_run_is_finished_and_then_continued(
    tmp_path: Path, cold_start_cache: Path
) -> None:
    """The engine's death costs no step. A resumed run goes on from the checkpoint's weights: with a learning rate of 0
    it exports the same weights, and over many pushes engine and trainer agree on every fresh token.
    """
    directory = tmp_path / "run"
    overrides = ("tasks.eval_size=48", "checkpoint.every=1000", "inference.restarts=0", *ONE_RANK)
    overrides = (*overrides, "trajectories.segment_mb=0.001")
    with launched(directory, cold_start_cache, "run.steps=2", *overrides) as run:
        in_the_loop(run)
        engine = run.pid_of("engine-0")
        run.wait_until((directory / "checkpoints" / "step-000002").exists, "the last checkpoint")
        os.kill(engine, signal.SIGKILL)
        broken = check_end(run, 1, "engine-0", "logs/engine-0.log").summary
    assert broken["steps"] == 2 and broken["checkpoint"].endswith("step-000002")
    assert broken["eval_success_after"] is None
    trained = weights_of(Path(broken["hf_export"]))
    for start in cold_start_cache.glob("sft-*"):
        assert any(not torch.equal(trained[name], tensor) for name, tensor in weights_of(start).items())

    finished = launch(directory, cold_start_cache, "run.steps=2", "resume=auto", *overrides)
    assert finished.code == 0, finished.output[-3000:]
    ended = finished.summary
    assert ended["steps"] == 2 and 0 <= ended["eval_success_after"] <= 1
    for key in ("tasks_trained", "trained_tokens", "checkpoint", "eval_success_before"):
        assert ended[key] == broken[key]
    assert finished.column("eval/success") == [ended[f"eval_success_{when}"] for when in ("before", "after")]
    assert len(finished.column("time/step_s")) == 2

    again = launch(directory, cold_start_cache, "run.steps=2", "resume=auto", *overrides)
    assert again.code == 0 and "nothing to resume" in again.output
    for key in ("exit_reason", "steps", "eval_success_after", "tasks_trained", "trained_tokens", "hf_export"):
        assert again.summary[key] == ended[key]

    # As if the evaluation after step 2 had been interrupted, and one after step 7 were of weights that are lost.
    evaluations = directory / "evaluations"
    (evaluations / "step-000002.json").rename(evaluations / "step-000007.json")
    more = ("run.steps=8", "resume=auto", "trainer.optimizer.lr=0", "tasks.eval_size=8", "eval.every=2")
    more = (*more, "trajectories.keep_gb=1e-9")
    second = launch(directory, cold_start_cache, *overrides, *more)
    assert second.code == 0, second.output[-4000:]
    assert {path.name for path in evaluations.iterdir()} == {f"step-{step:06d}.json" for step in (0, 2, 4, 6, 8)}
    exported = weights_of(Path(second.summary["hf_export"]))
    assert second.summary["hf_export"] != ended["hf_export"] and exported.keys() == trained.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in trained.items())
    gaps = second.column("mismatch/logprob_abs_mean")
    assert len(gaps) >= 5
    assert max(gaps) < 2e-6, f"the engine/trainer gap does not stay flat over pushes: {gaps}"
    assert second.summary["eval_success_before"] == ended["eval_success_before"]
    assert "files of trajectories: trajectories.keep_gb is 1e-09" in second.output
    left = Counter(one.step for one in read(directory) if one.step is not None)
    assert {3, 4, 5, 6, 7, 8} <= left.keys(), "the checkpoint of step 2 may still be gone on from"
