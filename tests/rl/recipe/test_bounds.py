"""Values that no setting can mean are refused with the recipe, in a line, and within a second."""

from __future__ import annotations

from pathlib import Path

import pytest

from rl.recipe.load import RecipeError, load_recipe
from rl.recipe.marked_yaml import YamlError, parse

QUICKSTART = "recipes/quickstart.yaml"


def message(*overrides: str) -> str:
    with pytest.raises(RecipeError) as refused:
        load_recipe(QUICKSTART, overrides)
    assert all(len(text) <= 700 and text.isprintable() for text in refused.value.messages)
    return "\n".join(refused.value.messages)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("run.seed=-1", "greater than or equal to 0"),
        ("run.seed=4294967296", "less than 4294967296"),
        ("run.name=../../x", "run.name"),
        ("run.name=", "run.name"),
        ('run.name=""', "run.name"),
        ("run.dir=''", "an empty text"),
        ("model=''", "an empty text"),
        (r'run.name="a\0b"', "a NUL character"),
        (r'wandb.project="\ud800"', "half of a surrogate pair"),
        ("tasks.train_size=10000000000000000000", "beyond the limit of 1e+12"),
        ("tasks.train_size=" + "9" * 5000, "tasks.train_size"),
        ("trainer.timeout_s=1e30", "1e+30 is too large: the limit is 1e+09"),
        ("trainer.optimizer.lr=1e30", "too large"),
        ("trainer.ranks=1000000000000000", "beyond the limit"),
        ("inference.engine_args.x=" + "9" * 4000, "beyond the limit"),
        ("inference.engine_args.x=.inf", "no usable number"),
        ("inference.engine_args={a: [1, {b: .nan}]}", "no usable number"),
        ("rollout.sampling.temperature=0.005", "greater than or equal to 0.01"),
        ("eval.temperature=0.005", "neither 0 (greedy) nor at least 0.01"),
        ("run.ray_address=ray://head:10001", "an address of Ray Client"),
        ("run.ray_address=nonsense", "nonsense is no HOST:PORT"),
        ("run.ray_address=127.0.0.1:22x", "127.0.0.1:22x is no HOST:PORT"),
        ("run.ray_address=local", "local is no HOST:PORT"),
        ("run.ray_address=[::1]:6379", "goes into quotes"),
        ("--run.steps=4", "write it without dashes: run.steps=4"),
        ("tasks.sources.².weight=1", "unknown key"),
        ("run.name=!!int x", "is not supported here"),
        ("run.steps=" + "x" * 100_000, "run.steps"),
        ("model=/" + "x" * 300, "does not exist"),
        ("sft.dataset=/" + "x" * 300, "does not exist"),
        ("tasks.sources.0.dataset=" + "x/" * 3000, "does not exist"),
        ("tasks.sources.0.environment=" + "x" * 300 + ".py:X", "x.py"),
        ("run.steps='\x1b[31m'", r"\x1b[31m"),
    ],
)
def test_a_value_that_cannot_be_meant(override: str, reason: str) -> None:
    assert reason in message(override)


def test_a_divisor_is_not_looked_for_one_by_one() -> None:
    assert "does not divide" in message("trainer.ranks=999999999999", "trainer.expert_parallel=2")


@pytest.mark.parametrize("text", ["exp #1", "exp#1", "#1", "a # b"])
def test_an_override_keeps_its_hash_sign(text: str) -> None:
    assert load_recipe(QUICKSTART, [f"run.name={text}"]).run.name == text
    assert load_recipe(QUICKSTART, [f"run.name='{text}'"]).run.name == text


def test_an_ipv6_address_in_quotes_is_kept() -> None:
    assert load_recipe(QUICKSTART, ['run.ray_address="[::1]:6379"']).run.ray_address == "[::1]:6379"
    assert load_recipe(QUICKSTART, ["eval.temperature=0"]).eval.temperature == 0


def bomb() -> str:
    lines = ["x0: &a0 [1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"x{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 8)}]" for i in range(1, 14)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (bomb(), "more than 50,000 values"),
        ("x: " + "[" * 500, "nested deeper than 32 levels"),
        ("x: " + "[" * 100_000, "nested deeper than 32 levels"),
        ("a: &a {b: *a}", "nested deeper than 32 levels|not valid YAML"),
        ("x" * 3_000_000, "is no recipe"),
        ("x: 0x" + "f" * 5000 + "\ny: !!float abc", "is not supported here"),
    ],
)
def test_documents_that_are_no_recipes(text: str, reason: str) -> None:
    with pytest.raises(YamlError, match=reason):
        parse(text)


def test_a_recipe_that_is_no_recipe_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(bomb(), encoding="utf-8")
    with pytest.raises(RecipeError, match=r"bomb\.yaml:1: more than"):
        load_recipe(path)
