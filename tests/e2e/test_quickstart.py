"""The quickstart, shortened: it learns, and everything a run promises holds on real components."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest

from rl.observe.timeline import read_timeline
from rl.paths import REPOSITORY
from rollout.cards import samples_of
from rollout.store import Stored, read
from rollout.store.trained import read_trained
from rollout.types import OBSERVED
from tests.e2e.harness import Run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SUMMARY_KEYS = {
    "exit_reason",
    "steps",
    "policy_version",
    "wall_s",
    "eval_success_before",
    "eval_success_after",
    "staleness_max",
    "mismatch_logprob_abs_mean",
    "trained_tokens",
    "tasks_issued",
    "tasks_trained",
    "tasks_dropped",
    "checkpoint",
    "hf_export",
}


def test_it_learns_and_says_so(quickstart: Run) -> None:
    summary = quickstart.summary
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["exit_reason"] == "finished" and summary["steps"] == summary["policy_version"] == 20
    gain = summary["eval_success_after"] - summary["eval_success_before"]
    assert gain >= 0.15, f"held-out success rose by {gain:.2f}"
    assert "held-out success" in quickstart.output and summary["hf_export"] in quickstart.output


def test_the_engine_samples_from_what_the_trainer_trains(quickstart: Run) -> None:
    assert quickstart.summary["mismatch_logprob_abs_mean"] < 1e-5
    per_step = quickstart.column("mismatch/logprob_abs_mean")
    assert len(per_step) >= 8 and max(per_step) < 1e-5


def test_no_trained_token_is_older_than_the_bound(quickstart: Run) -> None:
    assert quickstart.summary["staleness_max"] <= 1
    assert max(quickstart.column("staleness/max")) == quickstart.summary["staleness_max"]
    samples = [(one.step, s) for one in trained(quickstart) for t in one.group.usable for s in t.samples]
    for step, sample in samples:
        ages = step - 1 - sample.sampled_versions()
        assert ages.size == 0 or (ages.min() >= 0 and ages.max() <= 1)
    straddling = [sample for _, sample in samples if len({*sample.versions} - {OBSERVED}) > 1]
    assert straddling, "no trajectory was in flight across a weight push: the run was not asynchronous"


def test_the_ledger_balances_and_no_group_is_trained_twice(quickstart: Run) -> None:
    summary = quickstart.summary
    ids = [one.group.id for one in trained(quickstart)]
    assert len(ids) == len(set(ids)) == summary["tasks_trained"]
    ledger = quickstart.state["buffer"]["ledger"]
    ended = ledger["trained"] + sum(ledger["dropped"].values()) + sum(ledger["reissued"].values())
    assert ledger["issued"] == ended + len(ledger["open"])


def test_tools_really_ran_and_rewards_came_from_them(quickstart: Run) -> None:
    groups = [one.group for one in trained(quickstart) if one.step == 20]
    assert any(message["role"] == "tool" for g in groups for t in g.usable for message in t.messages)
    parts = {name for g in groups for t in g.usable for name in t.reward_parts}
    assert parts == {"code", "state"}
    assert {g.task.environment for g in groups} == {"python", "store"}


def test_the_export_is_what_was_trained(quickstart: Run) -> None:
    """AutoModelForCausalLM loads the export and computes the logprobs that the engine gave in the last evaluation."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(quickstart.summary["hf_export"], dtype=torch.float32).eval()
    last = [one.group for one in read(quickstart.directory) if one.group.id.startswith("eval-20-")]
    worst = 0.0
    for group in last[:8]:
        sample = group.trajectories[0].samples[0]
        ids = torch.tensor(sample.token_ids[None])
        with torch.no_grad():
            logprobs = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
        for position, mask in enumerate(sample.loss_mask[1:]):
            if mask:
                worst = max(worst, abs(logprobs[position].item() - sample.logprobs[position + 1]))
    assert 0 < worst < 1e-4


def test_metrics_are_there_for_people_and_for_wandb(quickstart: Run) -> None:
    assert [line["step"] for line in lines(quickstart) if "time/step_s" in line] == list(range(1, 21))
    assert list((quickstart.directory / "wandb").glob("offline-run-*/*.wandb"))
    assert "20/20" in quickstart.output and "→" in quickstart.output
    assert (quickstart.directory / "config.yaml").exists()


def test_the_record_of_trained_tokens_is_what_the_metrics_say(quickstart: Run) -> None:
    steps = {one.step: one.group for one in trained(quickstart)}
    samples = {(one.step, one.address): samples_of(one.group) for one in trained(quickstart)}
    ratios: dict[int, list[float]] = {step: [] for step in steps if step}
    fresh: dict[int, list[float]] = {step: [] for step in steps if step}
    for one in read_trained(quickstart.directory):
        stored = samples[one.step, one.address][one.sample]
        sampled = stored.loss_mask == 1
        gap = one.logprobs.astype(float) - stored.logprobs[sampled]
        ratios[one.step] += np.exp(gap).tolist()
        fresh[one.step] += np.abs(gap[stored.versions[sampled] == one.step - 1]).tolist()
        assert np.isfinite(one.advantages).all() and len({*one.advantages}) == 1
    logged = {values["step"]: values for values in lines(quickstart) if "perf/trained_tokens" in values}
    assert logged.keys() == {step for step, found in ratios.items() if found}
    for step, values in logged.items():
        assert len(ratios[step]) == values["perf/trained_tokens"]
        assert len(fresh[step]) == values["mismatch/fresh_tokens"]
        assert np.mean(ratios[step]) == pytest.approx(values["policy/ratio_mean"], rel=1e-4)
        if fresh[step]:
            assert np.mean(fresh[step]) == pytest.approx(values["mismatch/logprob_abs_mean"], rel=1e-2, abs=1e-9)


def test_the_timeline_is_where_the_time_of_the_steps_went(quickstart: Run) -> None:
    events = read_timeline(quickstart.directory / "timeline.jsonl")
    for values in lines(quickstart):
        if "time/step_s" in values:
            for name in ("wait_rollouts", "train", "weight_sync"):
                spent = sum(e.end - e.start for e in events if (e.step, e.name) == (values["step"], name))
                assert spent == pytest.approx(values[f"time/{name}_s"], rel=1e-6, abs=1e-3)
    spans = [span for one in trained(quickstart) for t in one.group.usable for span in t.spans]
    assert min(e.start for e in events) < min(s.start for s in spans)
    assert max(s.end for s in spans) < max(e.end for e in events)


def test_its_report_shows_it(quickstart: Run, tmp_path: Path) -> None:
    assert f"./launch.sh report {quickstart.directory}" in quickstart.output
    page = tmp_path / "report.html"
    done = subprocess.run(
        ["./launch.sh", "report", str(quickstart.directory), f"out={page}"],
        cwd=REPOSITORY,
        env=os.environ | {"SLUICE_VENV": sys.prefix},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert f"{page}: " in done.stdout and page.stat().st_size > 1e5


def lines(run: Run) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run.directory / "metrics.jsonl").read_text().splitlines()]


def test_nothing_is_left_behind(quickstart: Run) -> None:
    assert quickstart.leftovers == ()


def test_what_was_trained_is_sealed_for_pandas(quickstart: Run) -> None:
    sealed = [pandas.read_parquet(path) for path in (quickstart.directory / "trajectories").glob("*.parquet")]
    rows = pandas.concat(sealed)
    assert set(rows["split"]) == {"train", "eval"}
    assert {one.group.id for one in trained(quickstart)} <= set(rows["group_id"])


def trained(run: Run) -> list[Stored]:
    """The groups that a step trained."""
    return [one for one in read(run.directory) if one.step is not None]
