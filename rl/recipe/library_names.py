"""The names of the settings that installed libraries take, read from their source.

A name that a library does not know is refused with the recipe, though importing the library would take seconds: vLLM
refuses it only when an engine starts, and DeepSpeed ignores it without a word. Where the source cannot be read, no
name is known, and the library decides.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path

_NAME = re.compile("[a-z][a-z0-9_]*")


@cache
def vllm_arguments() -> frozenset[str]:
    """The engine arguments of vLLM."""
    source = _package("vllm") / "engine" / "arg_utils.py"
    classes = [node for node in _tree(source).body if isinstance(node, ast.ClassDef) and node.name == "EngineArgs"]
    return frozenset(name for found in classes for name in _fields(found))


@cache
def deepspeed_settings() -> frozenset[str]:
    """The names that DeepSpeed's modules of configuration and of constants mention: its settings, and some more."""
    package = _package("deepspeed")
    sources = [*package.glob("**/constants.py"), *package.glob("**/*config*.py")]
    return frozenset(name for source in sources for name in _mentioned(_tree(source)))


def _mentioned(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            yield from _fields(node)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _NAME.fullmatch(node.value):
            yield node.value


def _fields(found: ast.ClassDef) -> Iterator[str]:
    for node in found.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id


def _package(name: str) -> Path:
    found = find_spec(name)
    return Path(found.origin).parent if found and found.origin else Path("absent")


def _tree(source: Path) -> ast.Module:
    try:
        return ast.parse(source.read_bytes())
    except (OSError, SyntaxError):
        return ast.Module(body=[], type_ignores=[])
