"""The code of ours that runs in the sandboxes of a verdict, compiled once: nothing of ours can be imported in there."""

from __future__ import annotations

import functools
from pathlib import Path
from types import CodeType

SHARED = ("wire", "encode", "decode", "proxy", "peer", "answer_side")
MODULES = {"answer_side": SHARED, "tests_side": (*SHARED, "tests_side")}
ENTRY = """
import sys

ModuleType = type(sys)

def start(sources, name, argument, as_a_script):
    for package in ("rewards", "rewards.judge"):
        sys.modules[package] = ModuleType(package)
        sys.modules[package].__path__ = []
    for module, code in sources:
        sys.modules[module] = ModuleType(module)
        exec(code, sys.modules[module].__dict__)
    main = as_a_script()
    sys.modules[name].main(argument, main)

start(*ARGUMENT, as_a_script)
"""


@functools.cache
def entry() -> CodeType:
    """What the runner executes. ARGUMENT is the modules of `sources`, the name of one, and what its main gets."""
    return compile(ENTRY, "<judge>", "exec", dont_inherit=True)


@functools.cache
def sources(name: str) -> tuple[str, tuple[tuple[str, CodeType], ...]]:
    """The full name of the module that is started, and the modules that it needs, compiled, in the order of imports."""
    names = [f"rewards.judge.{module}" for module in MODULES[name]]
    return names[-1], tuple((module, _compiled(module.rpartition(".")[2])) for module in names)


def _compiled(module: str) -> CodeType:
    source = Path(__file__).with_name(f"{module}.py").read_bytes()
    return compile(source, "<judge>", "exec", dont_inherit=True)
