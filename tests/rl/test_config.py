"""Every key of a recipe has a reader: an option that does nothing is worse than none."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
from mypy import build
from mypy.config_parser import parse_config_file
from mypy.find_sources import create_source_list
from mypy.nodes import MemberExpr
from mypy.options import Options
from mypy.types import Instance, Type, UnionType, get_proper_type

from rewards.extension import settings_class
from rewards.strict import StrictModel
from rl.config import Recipe
from rl.paths import REPOSITORY
from rl.recipe.extensions import KINDS
from rl.recipe.overrides import expand_shorthands
from rl.recipe.sections import section_of

NOT_READERS = {"rl/recipe/checks.py", "rl/recipe/check_sources.py", "rl/recipe/load.py", "rl/recipe/resolved.py"}
"""These modules only check keys or write them down. A reader is a module that acts on a key."""


READ_BEFORE_VALIDATION = {("rl.config.Recipe", "algorithm")}
"""`algorithm` names a preset that fills other sections before there is a `Recipe` (tests/rl/recipe/test_load.py)."""


def sections(model: type[StrictModel]) -> Iterator[type[StrictModel]]:
    """A section and all sections below it."""
    yield model
    for field in model.model_fields.values():
        if (below := section_of(field.annotation)) is not None:
            yield from sections(below)


def every_section() -> set[type[StrictModel]]:
    """The sections of a recipe, and the settings of every extension."""
    chosen = {settings_class(registry, name, base) for registry, base in KINDS.values() for name in registry}
    return {*sections(Recipe), *chosen}


def keys() -> list[tuple[str, str]]:
    """Every key with the class that declares it."""
    declared = {
        (f"{section.__module__}.{section.__qualname__}", name)
        for section in every_section()
        for name in section.__annotations__
        if name in section.model_fields
    }
    return sorted(declared - READ_BEFORE_VALIDATION)


@cache
def attributes_read() -> set[tuple[str, str]]:
    """Every attribute that our code reads, with the class that declares it, as mypy infers the types."""
    options = Options()
    parse_config_file(options, lambda: None, str(REPOSITORY / "pyproject.toml"))
    options.export_types, options.preserve_asts, options.incremental = True, True, False
    options.follow_imports, options.per_module_options = "skip", {}
    options.build_per_module_cache()
    paths = [path for package in ("rl", "rollout", "rewards") for path in (REPOSITORY / package).rglob("*.py")]
    readers = [str(path) for path in paths if str(path.relative_to(REPOSITORY)) not in NOT_READERS]
    inferred = build.build(create_source_list(readers, options), options).types
    read = set()
    for expression in inferred:
        if isinstance(expression, MemberExpr) and expression.expr in inferred:
            for owner in classes(inferred[expression.expr]):
                declaring = next((c.fullname for c in owner.type.mro if expression.name in c.names), None)
                read |= {(declaring, expression.name)} if declaring else set()
    return read


def classes(inferred: Type) -> list[Instance]:
    proper = get_proper_type(inferred)
    parts = proper.items if isinstance(proper, UnionType) else [proper]
    return [one for part in parts if isinstance(one := get_proper_type(part), Instance)]


@pytest.mark.parametrize(("section", "key"), keys())
def test_every_key_has_a_reader(section: str, key: str) -> None:
    assert (section, key) in attributes_read(), f"nothing reads {key} of {section}: give it a reader or remove it"


def test_a_reader_of_one_section_does_not_count_for_another() -> None:
    assert ("rl.learner.config.OptimizerConfig", "lr") in attributes_read()
    assert ("rl.sft.config.SftConfig", "lr") not in attributes_read()


def test_a_section_may_be_written_in_short() -> None:
    assert expand_shorthands(
        {"model": "some/model", "aggregation": "token", "tasks": {"sources": [{"rewards": ["code"]}]}}
    ) == {
        "model": {"path": "some/model"},
        "aggregation": {"over": "token"},
        "tasks": {"sources": [{"rewards": [{"name": "code"}]}]},
    }
