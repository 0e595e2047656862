"""Everything that touches the library reasoning-gym: its import, its families, and which of them cannot be used.

The library imports three packages that are published as sources only, for four of its families (locks/overrides.txt).
While it is imported, empty modules stand in their places; the families that need a missing one are refused by name. So
are those whose graders are wrong, or would run what a model wrote.
"""

from __future__ import annotations

import difflib
import importlib.util
import random
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from types import ModuleType
from typing import Any

NEEDS: Mapping[str, str] = {
    "codeio": "zss",
    "game_of_life": "cellpylib",
    "game_of_life_halting": "cellpylib",
    "zebra_puzzles": "pycosat",
}
"""The package that a family needs and that Sluice does not install."""
GRADED_WRONGLY = frozenset({"boxnet", "graph_color", "propositional_logic", "rubiks_cube", "rush_hour"})
"""Their graders give their own answers no full score (reasoning-gym 0.1.25)."""
EVALUATES = frozenset(
    {
        *("binary_matrix", "n_queens", "spiral_matrix", "string_insertion"),
        *("countdown", "intermediate_integration", "polynomial_multiplication", "puzzle24", "simple_integration"),
    }
)
"""Their graders evaluate the answer as Python, with `eval` or through sympy's parser, outside of any sandbox."""
CHANGES = frozenset({"isomorphic_strings", "knight_swap", "list_functions", "ransom_note", "word_ladder"})
"""Their tasks depend on the order of a set, which is another one in every process."""
MADE_OF_OTHERS = frozenset({"composite"})


LARGEST = 2**31
"""Numbers of entries are below it."""


class Family:
    """A family with its parameters. Entry `number` is a pure function of the number.

    Each entry is the only one of a data set of its own, because some families make all entries of a data set at once.
    """

    def __init__(self, family_class: Any, config_class: Any, parameters: Mapping[str, Any]) -> None:
        self._family, self._config, self._parameters = family_class, config_class, dict(parameters)
        self._grader = self._data_set(0)

    def __getitem__(self, number: int) -> dict[str, Any]:
        entry: dict[str, Any] = self._data_set(number)[0]
        return entry

    def score_answer(self, answer: str, entry: dict[str, Any]) -> float:
        return float(self._grader.score_answer(answer, entry))

    def _data_set(self, seed: int) -> Any:
        return self._family(self._config(seed=seed, size=1, **self._parameters))


def make_family(name: str, parameters: Mapping[str, Any]) -> Family:
    """Make a family.

    Raises:
        ValueError: it does not exist or cannot be used, or a parameter is wrong.
    """
    if why := _refused(name):
        raise ValueError(f"family {name!r} cannot be used: {why}; use another")
    families = _families()
    if name not in families:
        near = difflib.get_close_matches(name, families, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(usable())}"
        raise ValueError(f"reasoning-gym has no family {name!r}{hint}")
    family_class, config_class = families[name]
    known = sorted({field.name for field in fields(config_class)} - {"seed", "size"})
    if unknown := sorted(set(parameters) - set(known)):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"family {name!r} has no parameter {unknown[0]!r}, only {', '.join(known) or 'none'}{hint}")
    return _made(name, family_class, config_class, parameters)


def usable() -> list[str]:
    """The names of the families that can be used here."""
    return [name for name in sorted(_families()) if not _refused(name)]


def _made(name: str, family_class: Any, config_class: Any, parameters: Mapping[str, Any]) -> Family:
    """Make a family and try it out: some parameters fail only when a task is generated."""
    try:
        family = Family(family_class, config_class, parameters)
        entry = family[random.Random(name).randrange(LARGEST)]
        family.score_answer(str(entry["answer"]), entry)
    except Exception as error:  # assertions mostly, which the library checks its parameters with
        told = str(error) or type(error).__name__
        raise ValueError(f"family {name!r} does not take the parameters {dict(parameters)}: {told}") from error
    return family


def _refused(name: str) -> str | None:
    """Why a family cannot be used; None if it can, or is not known."""
    if name in GRADED_WRONGLY:
        return "its grader gives its own answers no full score"
    if name in EVALUATES:
        return "its grader evaluates what the model wrote as Python, outside of the sandbox"
    if name in CHANGES:
        return "its tasks differ from process to process"
    if name in MADE_OF_OTHERS:
        return "it mixes other families, which task sources do"
    if name in NEEDS and _missing(NEEDS[name]):
        return f"it needs the package {NEEDS[name]}, which has no wheels: pip install {NEEDS[name]}"
    return None


@cache
def _families() -> Mapping[str, tuple[Any, Any]]:
    """The classes of each family and of its configuration."""
    with _stand_ins():
        from reasoning_gym.factory import DATASETS
    return dict(DATASETS)


@contextmanager
def _stand_ins() -> Iterator[None]:
    """Put an empty module in the place of each missing package, as long as the library is imported."""
    absent = [package for package in sorted(set(NEEDS.values())) if _missing(package)]
    sys.modules.update({package: ModuleType(package) for package in absent})
    try:
        yield
    finally:
        for package in absent:
            del sys.modules[package]


def _missing(package: str) -> bool:
    return package not in sys.modules and importlib.util.find_spec(package) is None
