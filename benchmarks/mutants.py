"""Small mistakes in Python programs: the mutants with which the judge is compared with an ordinary check."""

from __future__ import annotations

import ast
import copy
import random
from collections.abc import Callable, Iterator

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
Change = Callable[[], None]


def mutants(source: str, function: str, count: int, seed: int) -> Iterator[str]:
    """At most `count` programs that differ from `source` in one place of a function each."""
    tree = ast.parse(source)
    places = len(list(_changes(_body(tree, function))))
    for place in random.Random(seed).sample(range(places), min(count, places)):
        mutant = copy.deepcopy(tree)
        list(_changes(_body(mutant, function)))[place]()
        yield ast.unparse(ast.fix_missing_locations(mutant))


def _body(tree: ast.Module, function: str) -> ast.AST:
    """The last definition of this name."""
    return [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function][-1]


def _changes(tree: ast.AST) -> Iterator[Change]:
    """The changes that can be made to a tree, each of which changes it in place."""
    for node in ast.walk(tree):
        if isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in SWAPS:
            yield _setting(node, "op", SWAPS[type(node.op)]())
        elif isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
            yield _setting(node, "ops", [SWAPS[type(node.ops[0])](), *node.ops[1:]])
        elif isinstance(node, ast.Constant) and type(node.value) is int:
            yield _setting(node, "value", node.value + 1)
        elif isinstance(node, ast.If | ast.While):
            yield _setting(node, "test", ast.UnaryOp(ast.Not(), node.test))
        elif isinstance(node, ast.Return) and node.value is not None:
            yield _setting(node, "value", ast.Constant(None))


def _setting(node: ast.AST, name: str, value: object) -> Change:
    return lambda: setattr(node, name, value)
