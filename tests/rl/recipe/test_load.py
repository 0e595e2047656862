"""Recipe files: what they may hold, and error messages with the file, line, value, nearest key and fix."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rl.advantages.config import GrpoSettings, ReinforceSettings
from rl.losses.config import ClippedSettings, LossSettings
from rl.observe.console import Console
from rl.paths import REPOSITORY
from rl.recipe.load import RecipeError, load_recipe
from rl.recipe.resolved import derived, own_settings, resolved_text, save_resolved
from rollout.chat.config import Glm45Settings, RendererSettings
from rollout.tasks.config import DatasetConfig

SMALL = """\
model:
  path: owner/name
  renderer: glm-4.5
sandbox: unsafe-none
tasks:
  sources:
    - environment: python
    - environment: store
      weight: 2
rollout:
  group_size: 4
  max_context: 512
trainer:
  groups_per_step: 6
  token_budget: 1024
  optimizer:
    lr: 1e-3
"""


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL, encoding="utf-8")
    return path


def messages(path: Path, *overrides: str) -> tuple[str, ...]:
    with pytest.raises(RecipeError) as caught:
        load_recipe(path, overrides)
    assert str(caught.value) == "\n".join(caught.value.messages)
    return caught.value.messages


def changed(path: Path, old: str, new: str) -> Path:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    return path


def test_values_defaults_and_short_forms(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file)
    assert recipe.model.path == "owner/name" and recipe.model.dtype == "bfloat16"
    assert recipe.sandbox.kind == "unsafe-none" and recipe.sandbox.wall_s == 10.0
    assert [source.weight for source in recipe.tasks.sources] == [1.0, 2.0]
    assert recipe.trainer.optimizer.lr == 1e-3 and recipe.sft is None


def test_an_unknown_key_names_file_line_and_the_nearest(recipe_file: Path) -> None:
    changed(recipe_file, "group_size", "group_sise")
    assert messages(recipe_file) == (
        f"{recipe_file}:11: unknown key 'rollout.group_sise'; the nearest is 'rollout.group_size'",
    )


def test_a_key_in_the_wrong_section_names_the_right_one(recipe_file: Path) -> None:
    changed(recipe_file, "  groups_per_step", "  max_staleness: 1\n  groups_per_step")
    assert messages(recipe_file) == (
        f"{recipe_file}:14: unknown key 'trainer.max_staleness'; the nearest is 'buffer.max_staleness'",
    )


def test_every_problem_is_reported_at_once(recipe_file: Path) -> None:
    changed(recipe_file, "group_size: 4", "group_size: four")
    changed(recipe_file, "lr: 1e-3", "lr: -1")
    changed(recipe_file, "weight: 2", "weigth: 2")
    assert messages(recipe_file) == (
        f"{recipe_file}:9: unknown key 'tasks.sources.1.weigth'; the nearest is 'tasks.sources.1.weight'",
        f'{recipe_file}:11: rollout.group_size: expected a valid integer, got "four"',
        f"{recipe_file}:17: trainer.optimizer.lr: expected greater than or equal to 0, got -1",
    )


def test_types_are_strict(recipe_file: Path) -> None:
    assert messages(recipe_file, "run.steps='3'")[0].endswith('run.steps: expected a valid integer, got "3"')
    assert messages(recipe_file, "run.steps=true")[0].endswith("expected a valid integer, got true")
    assert messages(recipe_file, "run.steps=2.5")[0].endswith("expected a valid integer, got 2.5")
    assert messages(recipe_file, "run.name=7")[0].endswith("expected a valid string, got 7 (put it in quotes)")
    assert messages(recipe_file, "rollout.thinking=yes")[0].endswith('expected a valid boolean, got "yes"')
    assert messages(recipe_file, "trainer.optimizer.lr=.inf")[0].endswith("expected a finite number, got Infinity")


def test_missing_keys_point_at_their_section(recipe_file: Path) -> None:
    changed(recipe_file, "  optimizer:\n    lr: 1e-3\n", "")
    assert messages(recipe_file) == (f"{recipe_file}:13: trainer needs the key 'optimizer'",)
    assert messages(recipe_file, "sft.steps=3")[0] == "override sft.steps=3: sft needs the key 'optimizer'"
    changed(recipe_file, "trainer:", "wandb: {}\nxtrainer:")
    assert messages(recipe_file)[0] == f"{recipe_file}:1: the recipe needs the key 'trainer'"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: 1\na: 2\n", ":2: key 'a' is written twice"),
        ("a: [1\n", ":2: not valid YAML"),
        ("- a\n", ":1: a recipe is a mapping"),
        ("", ":1: a recipe is a mapping"),
    ],
)
def test_files_that_are_no_recipe(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text, encoding="utf-8")
    assert words in messages(path)[0]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"run: {name: \xfc}")
    assert messages(tmp_path / "latin.yaml") == (
        f"{tmp_path}/latin.yaml: not UTF-8 text: invalid start byte at byte 12",
    )
    assert messages(tmp_path / "none.yaml") == (f"{tmp_path}/none.yaml: cannot be read: No such file or directory",)


WORDS = st.sampled_from(["run", "steps", "model", "tasks", "sources", "0", "9", "sft", "trainer", "optimizer", "betas"])
VALUES = st.sampled_from(["", "3", "x", "[1, 2]", "[]", "{a: 1}", "null", "{", "1e400", "&a [*a]", "!!set {a}", "[{}]"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=4).map(".".join), VALUES), min_size=1, max_size=3))
def test_whatever_is_overridden_the_answer_is_a_recipe_or_a_recipe_error(
    recipe_file: Path, written: list[tuple[str, str]]
) -> None:
    try:
        load_recipe(recipe_file, [f"{key}={value}" for key, value in written])
    except RecipeError as error:
        assert error.messages and all(message for message in error.messages)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.text())
def test_whatever_a_file_holds_the_answer_is_a_recipe_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    assert messages(path)


def test_overrides_win_in_order(recipe_file: Path) -> None:
    recipe = load_recipe(
        recipe_file,
        ["run.steps=3", "run.steps=4", "trainer.optimizer.betas=[0.8, 0.9]", "tasks.sources.1.weight=5"],
    )
    assert recipe.run.steps == 4 and recipe.trainer.optimizer.betas == (0.8, 0.9)
    assert recipe.tasks.sources[1].weight == 5.0


def test_an_override_in_a_short_section_expands_it(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["sandbox.wall_s=3"])
    assert (recipe.sandbox.kind, recipe.sandbox.wall_s) == ("unsafe-none", 3.0)


def test_a_short_override_keeps_the_rest_of_the_section(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["model.dtype=float32", "model=other/name", "sandbox=bubblewrap"])
    assert (recipe.model.path, recipe.model.dtype, recipe.sandbox.kind) == ("other/name", "float32", "bubblewrap")


def test_a_preset_fills_what_the_recipe_leaves_out_and_what_it_writes_wins(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["loss.clip_low=0.1", "advantage.normalize_std=false"])
    assert recipe.advantage == GrpoSettings(name="grpo", normalize_std=False)
    assert recipe.loss == ClippedSettings(name="clipped", clip_low=0.1, clip_high=0.28)
    assert recipe.correction.name == "none"
    assert load_recipe(recipe_file, ["algorithm=reinforce"]).advantage == ReinforceSettings(name="reinforce")
    mixed = load_recipe(recipe_file, ["algorithm=reinforce", "advantage=grpo"])
    assert mixed.advantage == GrpoSettings(name="grpo") and mixed.loss == recipe.loss.model_copy(
        update={"clip_low": 0.2}
    )


def test_another_extension_by_its_name_has_settings_of_its_own(recipe_file: Path) -> None:
    overrides = ["advantage.normalize_std=false", f"loss={__file__}:own_loss", "loss.limit=3"]
    recipe = load_recipe(recipe_file, overrides)
    assert isinstance(recipe.loss, LossSettings) and recipe.loss.model_dump() == {
        "name": f"{__file__}:own_loss",
        "limit": 3,
    }
    message = "unknown key 'loss.clip_low'; the nearest is"
    assert message in messages(recipe_file, f"loss={__file__}:own_loss", "loss.limit=3", "loss.clip_low=0.1")[0]
    assert "loss needs the key 'limit'" in messages(recipe_file, f"loss={__file__}:own_loss")[0]
    assert "must derive from rl.losses.config.LossSettings" in messages(recipe_file, f"loss={__file__}:no_settings")[0]


def own_loss() -> None:
    """Stands for a loss with one setting."""


class OwnSettings(LossSettings):
    limit: int


own_loss.Settings = OwnSettings  # type: ignore[attr-defined]


def no_settings() -> None:
    """Stands for a loss whose settings are of the wrong kind."""


no_settings.Settings = GrpoSettings  # type: ignore[attr-defined]


def test_an_extensions_file_is_found_from_the_recipe_then_from_the_caller(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (elsewhere / "mine.py").write_text("def loss(): ...", encoding="utf-8")
    assert load_recipe(recipe_file, ["loss=mine.py:loss"]).loss.name == f"{elsewhere}/mine.py:loss"
    (tmp_path / "mine.py").write_text("def loss(): ...", encoding="utf-8")
    assert load_recipe(recipe_file, ["loss=mine.py:loss"]).loss.name == f"{tmp_path}/mine.py:loss"
    (tmp_path / "play.py").write_text("from rollout.envs.store import StoreRequests as Mine", encoding="utf-8")
    source = load_recipe(recipe_file, ["tasks.sources.1.environment=play.py:Mine"]).tasks.sources[1]
    assert source.environment.name == f"{tmp_path}/play.py:Mine"


def test_a_family_brings_its_chat_format_and_one_without_a_format_says_so(recipe_file: Path) -> None:
    named = load_recipe(recipe_file, ["model.renderer=null", "model.family=glm4_moe"])
    assert named.model.renderer == Glm45Settings(name="glm-4.5")
    dense = load_recipe(recipe_file, ["model.renderer=null", "model.family=qwen3"])
    assert dense.model.renderer == RendererSettings(name="qwen3")
    assert "does not tell its family" in messages(recipe_file, "model.renderer=null")[0]
    assert "has none of its own; name one" in messages(recipe_file, "model.renderer=null", "model.family=dense")[0]


def test_keys_that_moved_are_refused_with_what_to_write_instead(recipe_file: Path) -> None:
    changed(recipe_file, "tasks:\n", "eval:\n  success_reward: 1.0\ntasks:\n  seed: 3\n")
    assert messages(recipe_file) == (
        f"{recipe_file}:6: eval.success_reward is gone; write tasks.sources.N.success.reward, for each source",
        f"{recipe_file}:8: tasks.seed is gone; run.seed decides which tasks are trained; the evaluation's tasks do "
        "not depend on a seed",
    )


def test_free_form_sections_take_any_key(recipe_file: Path) -> None:
    recipe = load_recipe(recipe_file, ["inference.engine_args.max_num_seqs=7", "tasks.sources.0.weights={code: 0.5}"])
    assert recipe.inference.engine_args == {"max_num_seqs": 7}
    assert recipe.tasks.sources[0].weights == {"code": 0.5}


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("steps", "write it as key=value"),
        ("=3", "write it as key=value"),
        ("run.stepz=3", "unknown key 'run.stepz'; the nearest is 'run.steps'"),
        ("modle=x", "unknown key 'modle'; the nearest is 'model'"),
        ("run.steps.x=3", "run.steps is a single value and has no key 'x'"),
        ("tasks.sources.2.weight=3", "tasks.sources.2 is not there to be changed"),
        ("tasks.sources.2={environment: a}", "tasks.sources has 2 entries, counted from 0"),
        ("run.steps=[1", "not valid YAML"),
        ("run.device=gpu", "run.device: expected 'auto', 'cpu' or 'cuda', got \"gpu\""),
        ("trainer.optimizer.betas=[0.9, 1.0]", "trainer.optimizer.betas.1: expected less than 1, got 1.0"),
        ("model.renderer=glm4.5", "model.renderer: there is no 'glm4.5': Sluice has 'chatml', 'glm-4.5', 'qwen3', 't"),
        ("model.renderer=glm4.5", "; did you mean 'glm-4.5'?"),
        ("tasks.sources.1.environment=stroe", "tasks.sources.1.environment: there is no 'stroe'"),
        ("tasks.sources.1.rewards=[coed]", "tasks.sources.1.rewards.0: there is no 'coed'"),
        ("loss.clip_lo=0.1", "unknown key 'loss.clip_lo'; the nearest is 'loss.clip_low'"),
        ("correction.clip_low=0.1", "unknown key 'correction.clip_low'; the nearest is"),
        ("algorithm=gspo", "algorithm='gspo' is no preset; there are 'grpo', 'reinforce'; did you mean 'grpo'?"),
        ("algorithm.name=grpo", "algorithm.name is gone; write algorithm: NAME"),
        ("rewards.weights.code=1", "rewards.weights.code is gone; write tasks.sources.N.weights"),
        ("loss=no/such.py:loss", "loss: no/such.py cannot be imported: FileNotFoundError"),
        ("loss=json:lods", "loss: json has no 'lods'; did you mean 'loads'?"),
        ("tasks.sources=[]", "tasks.sources: "),
        ("run.lr=1", "unknown key 'run.lr'; there are 'sft.optimizer.lr', 'trainer.optimizer.lr'"),
        ("run.weights=1", "unknown key 'run.weights'; the nearest is 'tasks.sources.N.weights'"),
        ("run.cache_dir.x=1", "run.cache_dir is a single value and has no key 'x'"),
        (
            "tasks.sources.0.environment.max_observatoin=1",
            "the nearest is 'tasks.sources.0.environment.max_observation'",
        ),
        ("trainer=3", "trainer: expected a mapping with the keys ranks, expert_parallel, zero_stage, "),
        ("inference.engine_args=3", "inference.engine_args: expected an object, got 3"),
        ("trainer.optimizer.betas=[0.9]", "trainer.optimizer.betas has too few entries"),
        ("trainer.optimizer.betas=[]", "trainer.optimizer.betas has too few entries"),
        ("run.steps=Jürgen", 'run.steps: expected a valid integer, got "Jürgen"'),
        ("run.steps=a=b", 'run.steps: expected a valid integer, got "a=b"'),
    ],
)
def test_a_bad_override_is_named(recipe_file: Path, override: str, words: str) -> None:
    (message,) = messages(recipe_file, override)
    assert message.startswith(f"override {override}: ") and words in message


def test_cross_field_problems_point_at_the_key(recipe_file: Path) -> None:
    changed(recipe_file, "group_size: 4", "group_size: 1")
    assert messages(recipe_file, "rollout.max_context=2048") == (
        f"{recipe_file}:11: rollout.group_size=1 gives GRPO zero advantages; use >= 2 or algorithm=reinforce",
        f"{recipe_file}:15: trainer.token_budget=1024 is smaller than rollout.max_context=2048, and a trajectory is "
        "never split; use trainer.token_budget>=2048",
    )


ROWS = [
    {"messages": [{"role": "user", "content": str(number)}], "payload": {"tests": "assert answer"}}
    for number in range(2)
]


def test_paths_are_found_from_the_caller_then_the_repository(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
    supervised = "sft={dataset: rows.jsonl, optimizer: {lr: 1e-3}}"
    recipe = load_recipe(
        recipe_file, ["model=recipes/models/tiny-glm4-moe", "tasks.sources.0.dataset=rows.jsonl", supervised]
    )
    assert recipe.model.path == str(REPOSITORY / "recipes" / "models" / "tiny-glm4-moe")
    assert recipe.sft is not None and recipe.sft.dataset == DatasetConfig(path=str(tmp_path / "rows.jsonl"))
    assert recipe.tasks.sources[0].dataset == DatasetConfig(path=str(tmp_path / "rows.jsonl"))


def test_a_path_may_begin_at_home(recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in ROWS), encoding="utf-8")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}', encoding="utf-8")
    overrides = ["model=~/model", "run.dir=~/run", "run.cache_dir=~/cache", "tasks.sources.0.dataset=~/rows.jsonl"]
    recipe = load_recipe(recipe_file, overrides)
    assert recipe.model.path == str(tmp_path / "model")
    assert (recipe.run.dir, recipe.run.cache_dir) == (str(tmp_path / "run"), str(tmp_path / "cache"))
    assert recipe.tasks.sources[0].dataset == DatasetConfig(path=str(tmp_path / "rows.jsonl"))


def test_the_resolved_recipe_loads_back_equal(recipe_file: Path, tmp_path: Path) -> None:
    overrides = ["run.name='1e-5'", "wandb.group='yes'", "trainer.optimizer.eps=1e-12", "trainer.deepspeed.aio.b=null"]
    recipe = load_recipe(recipe_file, overrides)
    save_resolved(recipe, tmp_path / "config.yaml")
    assert load_recipe(tmp_path / "config.yaml") == recipe


def test_the_resolved_recipe_says_what_follows_from_it(recipe_file: Path, tmp_path: Path) -> None:
    recipe = load_recipe(recipe_file, ["run.name=Jürgen"])
    save_resolved(recipe, tmp_path / "config.yaml")
    text = (tmp_path / "config.yaml").read_text(encoding="utf-8")
    assert text == resolved_text(recipe)
    assert "name: Jürgen\n" in text and 0 < text.index("run:") < text.index("model:") < text.index("tasks:")
    assert all(f"#   {name}: {value}\n" in text for name, value in derived(recipe).items())


def test_derived_arithmetic_by_hand(recipe_file: Path) -> None:
    overrides = ["buffer.max_staleness=2", "run.steps=10", "inference.replicas=3", "inference.tensor_parallel=2"]
    numbers = derived(load_recipe(recipe_file, [*overrides, "trainer.token_budget=1500"]))
    assert numbers == {
        "trajectories_per_step": 24,  # 6 groups × 4
        "tokens_per_step_max": 24 * 512,
        "micro_batches_per_rank_max": 6,  # 2 full trajectories in 1500 tokens, 2 ranks: 24 / 4
        "gate_groups": 18,  # 6 × (1 + 2)
        "trajectories_in_flight_max": 32,  # 1 worker × 8 groups × 4
        "trajectories_total": 240,
        "training_devices": 2,
        "inference_devices": 6,
        "object_store_mb": 101,  # 96 MiB and 18 × 4 × 512 tokens of 13 bytes, half as much again
    }
    odd = derived(load_recipe(recipe_file, ["trainer.token_budget=512", "trainer.groups_per_step=5"]))
    assert odd["micro_batches_per_rank_max"] == 10  # 20 of one trajectory each, on 2 ranks
    uneven = derived(load_recipe(recipe_file, ["trainer.token_budget=1536", "trainer.groups_per_step=5"]))
    assert uneven["micro_batches_per_rank_max"] == 4  # 20 / (2 × 3), rounded up


SHIPPED = sorted((REPOSITORY / "recipes").glob("*.yaml"))


def usable(path: Path) -> Path:
    """A shipped recipe; skip where its environment's library is not installed."""
    if "name: reasoning" in path.read_text(encoding="utf-8") and find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is not installed")
    return path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_recipes_resolve(path: Path) -> None:
    fetched = ["model.path=recipes/models/tiny-glm4-moe"] if "smollm2" in path.name else []
    load_recipe(usable(path), fetched)


def test_a_model_that_is_still_to_be_fetched_is_named_with_the_command(tmp_path: Path) -> None:
    if find_spec("reasoning_gym") is None:
        pytest.skip("reasoning-gym is not installed")
    with pytest.raises(ValueError, match=r"models/no-such is not there yet: run \./launch\.sh model no-such"):
        load_recipe(REPOSITORY / "recipes/smollm2_lora.yaml", ["model.path=models/no-such"])


def test_what_a_recipe_sets_itself_is_told_by_section() -> None:
    told = own_settings(load_recipe("recipes/quickstart.yaml", ["lora={}", "buffer.max_staleness=1"]))
    assert told["run"] == "name: quickstart, steps: 48"
    assert told["tasks"] == "sources: [{environment: python}, {environment: store}], eval_size: 96"
    assert told["trainer"] == "expert_parallel: 2, token_budget: 4096, optimizer: {lr: 0.0005}"
    assert told["lora"] == "all defaults"
    assert not {"buffer", "advantage", "loss", "correction", "algorithm"} & told.keys(), "they are the defaults"
    told = own_settings(load_recipe("recipes/quickstart.yaml", ["algorithm=reinforce", "loss.clip_high=0.5"]))
    assert (told["algorithm"], told["loss"]) == ("reinforce", "name: clipped, clip_high: 0.5")
    assert "advantage" not in told, "the preset says it"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_start_tells_less_than_a_screen_of_settings(path: Path) -> None:
    recipe = load_recipe(usable(path), ["model.path=owner/name", "model.renderer=chatml"])
    stream = io.StringIO()
    console = Console(steps=1, stream=stream)
    console.live, console._rich.width = True, 80
    console.sections(own_settings(recipe))
    assert stream.getvalue().count("\n") <= 24
