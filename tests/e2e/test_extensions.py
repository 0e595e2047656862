"""CONTRIBUTING's examples: one extension of each kind, with a setting of its own, from files outside of the repository.

One real run uses all of them, each in the process where it belongs. What the run leaves shows that each of them acted.
"""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from rl.observe.metrics_log import read_metrics
from rl.paths import REPOSITORY
from rollout.store import read
from rollout.types import Group, Trajectory
from tests.e2e.harness import QUICKSTART, Run, launch, weights_of
from tests.support import glm45

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

STEPS = 2
DECAY, SCALE, TIMES, PER_CHARACTER = 0.5, 2.0, 2, 0.01
KINDS = {"advantage", "loss", "correction", "reward", "environment", "chat", "transport", "family"}


@dataclass(frozen=True)
class Extended:
    """The run, and the folder with its recipe and the files that the recipe names."""

    run: Run
    folder: Path

    def groups(self, step: int) -> list[Group]:
        return [one.group for one in read(self.run.directory) if one.step == step]

    def metrics(self, step: int) -> dict[str, float]:
        """The metrics of a training step."""
        rows = read_metrics(self.run.directory / "metrics.jsonl")
        return next(values for number, values in rows if number == step and "time/step_s" in values)


def examples() -> dict[str, str]:
    """CONTRIBUTING's code blocks, each under the file name in its first line."""
    text = (REPOSITORY / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return dict(re.findall(r"```(?:python|yaml)\n# (\w+\.\w+)\n(.*?)```", text, flags=re.DOTALL))


@pytest.fixture(scope="module")
def extended(tmp_path_factory: pytest.TempPathFactory, cold_start: Path, cold_start_cache: Path) -> Extended:
    folder = tmp_path_factory.mktemp("own")
    written = examples()
    quickstart = yaml.safe_load((REPOSITORY / QUICKSTART).read_text(encoding="utf-8"))
    recipe = {**quickstart, **yaml.safe_load(written.pop("extensions.yaml")), "sft": None}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    for name, code in written.items():
        (folder / name).write_text(code, encoding="utf-8")
    overrides = (
        f"model.path={cold_start}",
        f"weight_sync.transport.folder={folder / 'weights'}",
        f"run.steps={STEPS}",
        "checkpoint.every=1000",
    )
    run = launch(folder / "run", cold_start_cache, *overrides, recipe=str(folder / "recipe.yaml"))
    assert run.code == 0, run.output[-4000:]
    return Extended(run, folder)


def test_there_is_one_example_of_each_kind_and_it_is_well_formed(tmp_path: Path) -> None:
    written = examples()
    assert {name.removesuffix(".py") for name in written if name.endswith(".py")} == KINDS
    for name, code in written.items():
        assert len(code.splitlines()) <= 66, f"{name} is longer than a page"
        if name.endswith(".py"):
            (tmp_path / name).write_text(code, encoding="utf-8")
    lint = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,B", "--line-length", "120", "."]
    subprocess.run(lint, cwd=tmp_path, check=True)


def test_the_environment_speaks_as_the_user_and_every_turn_is_a_sample_of_its_own(extended: Extended) -> None:
    """The chat format forks whenever the user speaks again; each token is trained once, in the sample of its turn. Now
    and then the model calls a tool, whose error goes on in the same sample: those are left out."""
    members = [t for t in usable(extended) if not t.metrics["tool_calls"]]
    whole = [t for t in members if t.stop_reason == "answered"]
    assert whole and all(len(t.samples) == len(t.turns) == TIMES + 1 for t in whole)
    for t in members:
        assert [turn.sample for turn in t.turns] == list(range(len(t.turns)))
        assert sum(len(turn) for turn in t.turns) == sum(sample.trained_tokens for sample in t.samples)
    states = [turn.state_key for turn in whole[0].turns]
    assert states == ["asked", "1 left", "0 left"]
    assert whole[0].turns[-1].reward is None and whole[0].turns[0].reward is not None


def test_the_reward_and_the_environments_own_are_added_up(extended: Extended) -> None:
    for t in usable(extended):
        said = sum(len(message["content"] or "") for message in t.messages if message["role"] == "assistant")
        assert t.reward_parts["brevity"] == pytest.approx(-PER_CHARACTER * said)
        assert t.reward == pytest.approx(sum(t.reward_parts.values()))
        assert t.success == (t.reward_parts["answered"] == 1.0)
    assert any(t.reward_parts["brevity"] < 0 for t in usable(extended))


def test_the_estimator_and_the_loss_see_the_same_turns(extended: Extended) -> None:
    """The mean advantage over trained tokens, recomputed from the trajectories, is what the loss reports."""
    for step in range(1, STEPS + 1):
        values = extended.metrics(step)
        total, tokens, largest = 0.0, 0, 0.0
        for group in extended.groups(step):
            returns = [discounted(t) for t in group.usable]
            mean = sum(map(sum, returns)) / max(sum(map(len, returns)), 1)
            for t, turns in zip(group.usable, returns, strict=True):
                for turn, value in zip(t.turns, turns, strict=True):
                    total, tokens = total + len(turn) * (value - mean), tokens + len(turn)
                    largest = max(largest, abs(value - mean))
        assert values["perf/trained_tokens"] == tokens and largest > 0
        assert values["loss/advantage"] == pytest.approx(total / tokens, abs=1e-5 * largest)
        assert values["loss/scale"] == SCALE


def test_the_correction_rejects_some_tokens(extended: Extended) -> None:
    """In step 1 every token is fresh, and only rounding differs between engine and trainer. Step 2 has stale tokens and
    rejects more, because the weights have moved."""
    first, second = (extended.metrics(step)["policy/rejected_fraction"] for step in (1, 2))
    assert 0 < first < 1 and first < second


def test_the_chat_format_marks_every_question(extended: Extended) -> None:
    for t in usable(extended):
        first, *others = (glm45().decode(sample.token_ids) for sample in t.samples)
        assert "<|user|>\nQuestion: How many digits has" in first
        assert all("<|user|>\nQuestion: Are you sure?" in other for other in others)


def test_the_transport_carries_every_push(extended: Extended) -> None:
    files = sorted((extended.folder / "weights").iterdir())
    buckets, rest = divmod(len(files), STEPS + 1)
    assert buckets > 1 and rest == 0
    pushed = {name: tensor for file in files[-buckets:] for name, tensor in load_file(file).items()}
    exported = weights_of(Path(extended.run.summary["hf_export"]))
    assert pushed.keys() == exported.keys()
    assert all(torch.equal(pushed[name], exported[name]) for name in exported)
    assert extended.run.summary["mismatch_logprob_abs_mean"] < 1e-5


def test_the_family_exports(extended: Extended) -> None:
    config = json.loads((Path(extended.run.summary["hf_export"]) / "config.json").read_text(encoding="utf-8"))
    assert config["trained_by"] == "somebody" and config["model_type"] == "glm4_moe"


def test_the_run_ends_like_any_other(extended: Extended) -> None:
    assert extended.run.leftovers == () and extended.run.summary["steps"] == STEPS
    assert math.isfinite(extended.run.summary["eval_success_after"])
    named = {"eval/infra_share", "eval/success", "eval/success_low", "eval/success_high", "eval/success/AskAgain"}
    assert set(extended.run.summary["eval_after"]) == named


def usable(extended: Extended) -> list[Trajectory]:
    return [t for step in range(1, STEPS + 1) for group in extended.groups(step) for t in group.usable]


def discounted(t: Trajectory) -> list[float]:
    values: list[float] = []
    for turn in reversed(t.turns):
        values.insert(0, (turn.reward or 0.0) + DECAY * (values[0] if values else 0.0))
    return values
