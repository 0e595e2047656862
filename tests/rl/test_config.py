"""Invariant 10: every key of a recipe has a reader; an option that does nothing is worse than none."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from rewards.strict import StrictModel
from rl.config import Recipe
from rl.learner.config import ModelConfig
from rl.recipe.load import section_of

REPOSITORY = Path(__file__).parents[2]
NOT_READERS = {
    "rl/config.py",
    "rollout/agent/config.py",
    "rewards/sandbox/config.py",
    "rl/recipe/checks.py",
    "rl/recipe/load.py",
}
"""These declare or validate keys; a reader is a module that acts on one."""


def leaves(model: type[StrictModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            yield prefix + name
        else:
            yield from leaves(section, f"{prefix}{name}.")


@cache
def attributes_read() -> set[str]:
    read: set[str] = set()
    for package in ("rl", "rollout", "rewards"):
        for path in (REPOSITORY / package).rglob("*.py"):
            if str(path.relative_to(REPOSITORY)) not in NOT_READERS:
                tree = ast.parse(path.read_text(encoding="utf-8"))
                read |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    return read


@pytest.mark.parametrize("key", sorted(leaves(Recipe)))
def test_every_key_has_a_reader(key: str) -> None:
    assert key.rpartition(".")[2] in attributes_read(), f"nothing reads {key}: give it a reader or remove it"


def test_the_search_is_not_satisfied_by_anything() -> None:
    assert "no_such_key" not in attributes_read()


def test_a_section_may_be_written_in_short() -> None:
    assert ModelConfig.model_validate("some/model") == ModelConfig(path="some/model")
