"""A resumed run may change what says how it goes on, and nothing that says what it has saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.recipe.changes import ChangedRecipe, check_resumable
from rl.recipe.load import load_recipe
from rl.recipe.resolved import save_resolved

QUICKSTART = "recipes/quickstart.yaml"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    save_resolved(load_recipe(QUICKSTART), tmp_path / "config.yaml")
    return tmp_path / "config.yaml"


def test_an_unchanged_recipe_has_no_changes(config: Path) -> None:
    assert check_resumable(config, load_recipe(QUICKSTART, [])) == []
    resumed = load_recipe(QUICKSTART, ["resume=auto", "run.dir=runs/one"])
    assert [str(change) for change in check_resumable(config, resumed)] == ['run.dir was null and is "runs/one"']
    assert check_resumable(config, load_recipe(config)) == []


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("run.steps=90", "run.steps was 48 and is 90"),
        ("trainer.optimizer.lr=0", "trainer.optimizer.lr was 0.0005 and is 0.0"),
        ("tasks.eval_size=8", "tasks.eval_size was 96 and is 8"),
        ("buffer.max_staleness=2", "buffer.max_staleness was 1 and is 2"),
        ("sft=null", "sft was {"),
    ],
)
def test_what_may_change_is_told(config: Path, override: str, told: str) -> None:
    (change,) = check_resumable(config, load_recipe(QUICKSTART, [override]))
    assert str(change).startswith(told)


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("model.dtype=bfloat16", 'model.dtype was "float32" and is "bfloat16"'),
        ("model.renderer={name: glm-4.5, calls_in_reasoning: true}", "model.renderer.calls_in_reasoning was false and"),
        ("rollout.sampling.temperature=0.5", "rollout.sampling.temperature was 1.0 and is 0.5"),
        ("rollout.thinking=false", "rollout.thinking was true and is false"),
        ("tasks.train_size=7", "tasks.train_size was 100000 and is 7"),
        ("tasks.sources.1.weight=2", "tasks.sources.1.weight was 1.0 and is 2.0"),
        ("tasks.sources=[{environment: python}]", "tasks.sources was ["),
        ("run.seed=5", "run.seed was 0 and is 5"),
        ("tasks.sources.0.weights={code: 0.25}", 'tasks.sources.0.weights was {} and is {"code": 0.25}'),
        ("loss.clip_low=0.1", "loss.clip_low was 0.2 and is 0.1"),
        ("lora={}", "lora was null and is {"),
    ],
)
def test_what_must_not_change_is_refused_with_both_values(config: Path, override: str, told: str) -> None:
    with pytest.raises(ChangedRecipe) as refused:
        check_resumable(config, load_recipe(QUICKSTART, [override, "run.steps=90"]))
    assert told in str(refused.value) and str(config) in str(refused.value) and "run.steps" not in str(refused.value)


def test_a_config_of_another_version_or_none_says_nothing(config: Path) -> None:
    text = config.read_text(encoding="utf-8").replace("  thinking: true\n", "")
    config.write_text(text + "gone: 1\n", encoding="utf-8")
    assert check_resumable(config, load_recipe(QUICKSTART, ["rollout.thinking=false"])) == []
    config.write_text("[", encoding="utf-8")
    assert check_resumable(config, load_recipe(QUICKSTART, ["run.seed=5"])) == []
    config.unlink()
    assert check_resumable(config, load_recipe(QUICKSTART, ["run.seed=5"])) == []
