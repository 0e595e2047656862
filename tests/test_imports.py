"""Import rules and forbidden calls, checked in the source: packages import in one direction, few modules import a heavy
library, and no untrusted text is evaluated or unpickled."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from rewards.sandbox.spec import BOOT
from rl.paths import REPOSITORY

PACKAGES = ("rl", "rollout", "rewards")
MODULES = sorted(path.relative_to(REPOSITORY) for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))

ALLOWED_IMPORTERS = {
    "deepspeed": ("rl/learner/*.py", "rl/weights/*.py", "rl/zero/*.py"),
    "vllm": ("rollout/engine/*.py", "rollout/cpu/*.py", "rollout/lora/*.py", "rollout/transfer/*.py"),
    "ray": ("rl/driver/*.py", "rl/doctor/*.py", "rl/launch/*.py", "rollout/actors/*.py"),
}
FORBIDDEN_PACKAGES = {"rewards": {"rl", "rollout"}, "rollout": {"rl"}, "rl": set()}
UNPICKLERS = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"}
RUNS_UNTRUSTED_CODE = {
    "rewards/sandbox/child.py",
    "rewards/judge/answer_side.py",
    "rewards/judge/tests_side.py",
}
"""What runs inside a sandbox."""


def tree_of(module: Path) -> ast.Module:
    return ast.parse((REPOSITORY / module).read_text(encoding="utf-8"))


def imported(module: Path) -> Iterator[str]:
    """Yield the full name of every imported module, of imports inside functions too."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            yield node.module or ""


def untrusted_evaluation(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of every call that evaluates or unpickles text, or hands it to a shell."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        if isinstance(node.func, ast.Name) and node.func.id in ("eval", "exec", "__import__"):
            yield node.lineno, node.func.id
        if isinstance(node.func, ast.Attribute) and ast.unparse(node.func) in ("os.system", "os.popen", "yaml.load"):
            yield node.lineno, ast.unparse(node.func)
        for keyword in node.keywords:
            if ast.unparse(keyword) in ("shell=True", "weights_only=False"):
                yield node.lineno, ast.unparse(keyword)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_packages_import_in_one_direction(module: Path) -> None:
    forbidden = FORBIDDEN_PACKAGES[module.parts[0]]
    assert not {name for name in imported(module) if name.split(".")[0] in forbidden}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_each_heavy_library_has_few_importers(module: Path) -> None:
    for library, importers in ALLOWED_IMPORTERS.items():
        if not any(fnmatch(str(module), pattern) for pattern in importers):
            assert not {name for name in imported(module) if name.split(".")[0] == library}


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_untrusted_text_is_evaluated(module: Path) -> None:
    if str(module) in RUNS_UNTRUSTED_CODE:
        return
    assert not list(untrusted_evaluation(tree_of(module)))
    unpicklers = {name for name in imported(module) if name.split(".")[0] in UNPICKLERS}
    if str(module) == "rewards/sandbox/spec.py":  # writes what the interpreter in a sandbox reads
        unpicklers -= {"marshal"}
        assert "marshal.load" not in ast.unparse(tree_of(module)).replace(BOOT, "")
    assert not unpicklers


def test_the_search_for_evaluation_finds_it() -> None:
    source = "eval(a)\nexec(b)\nmodel.eval()\nsubprocess.run(c, shell=True)\ntorch.load(d, weights_only=False)\n"
    assert [line for line, _ in untrusted_evaluation(ast.parse(source))] == [1, 2, 4, 5]


@pytest.mark.parametrize(
    "module",
    [
        "rl.config",
        "rl.recipe.load",
        "rl.recipe.checks",
        "rollout.types",
        "rollout.agent.config",
        "rewards.sandbox.config",
    ],
)
def test_types_and_config_import_no_heavy_library(module: str) -> None:
    heavy = {"torch", "vllm", "deepspeed", "ray", "transformers", "datasets", "wandb"}  # NumPy takes 0.04 s
    assert not heavy & modules_after(f"import {module}")


def test_help_imports_the_standard_library_only() -> None:
    loaded = modules_after("from rl.cli import main; main(['--help'])")
    assert not loaded & {"torch", "vllm", "deepspeed", "ray", "pydantic", "yaml", "numpy", "transformers", "rich"}


def modules_after(code: str) -> set[str]:
    """Top-level names in sys.modules of a fresh interpreter after running `code`."""
    script = f"{code}\nimport sys\nprint('\\n' + ' '.join(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", script], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())
