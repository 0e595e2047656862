"""What the text of tests tells before they run: the names that they define, and whether they run what they define."""

from __future__ import annotations

import ast
import functools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

RUNS_CASES = ("unittest.main", "TextTestRunner", "TestResult", "TestSuite", "debug()")


@dataclass(frozen=True, slots=True)
class Reading:
    """`names` are those that the tests or the prompt bind anywhere. `waits` are the kinds of tests that are defined and
    not run: "check", "cases"."""

    names: frozenset[str]
    waits: tuple[str, ...]


@functools.lru_cache(maxsize=1024)
def reading(tests: str, prompt: str) -> Reading:
    """Read tests, which are a program, and a prompt, which may be any text."""
    tree = _parsed(tests)
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    waits = [] if "check" in called or "check" not in defined else ["check"]
    waits += [] if any(word in tests for word in RUNS_CASES) else ["cases"]
    return Reading(frozenset([*_bound(tree), *_bound(_parsed(prompt))]), tuple(waits))


def _parsed(source: str) -> ast.Module:
    try:
        with warnings.catch_warnings(action="ignore"):
            return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return ast.Module(body=[], type_ignores=[])


def _bound(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            yield node.id
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.alias):
            yield (node.asname or node.name).partition(".")[0]
        elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
            yield node.name
