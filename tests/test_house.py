"""The shape of the source tree: which rooms may import which, no import cycles, small folders and short files.

A room is a folder of one of the three packages, or a module that lies directly in a package. `TIERS` lists the rooms of
each package from the top to the ground. A room may import rooms of lower tiers only; rooms of one tier do not import
each other. `config.py` files are outside of this order: they import only each other and `rewards.strict`, so every room
may import them. `__init__.py` files are outside of it, too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.paths import REPOSITORY

TIERS: dict[str, list[set[str]]] = {
    "rl": [
        {"cli"},
        {"verbs"},
        {"evaluate_endpoint", "report", "doctor", "kubernetes", "planning"},
        {"run", "evaluate"},
        {"stages"},
        {"sft"},
        {"driver"},
        {"launch"},
        {"recipe"},
        {"learner", "losses"},
        {"weights", "zero", "advantages", "corrections"},
        {"families", "batch", "observe"},
        {"rundir", "processes"},
        {"paths", "exitcodes"},
    ],
    "rollout": [
        {"actors"},
        {"agent", "adapters", "proxy", "buffer", "tasks"},
        {"envs", "chat", "engine"},
        {"lora", "cpu"},
        {"transfer", "store"},
        {"contracts", "splits", "cards"},
        {"types", "ports", "plain", "clock"},
    ],
    "rewards": [
        {"scorers"},
        {"contracts"},
        {"judge"},
        {"sandbox", "host"},
        {"compose"},
        {"extension"},
        {"errors", "strict"},
    ],
}
MODULES = sorted(path.relative_to(REPOSITORY) for name in TIERS for path in (REPOSITORY / name).rglob("*.py"))
LINES = 350
FILES = 16


def dotted(module: Path) -> str:
    return ".".join(module.with_suffix("").parts).removesuffix(".__init__")


NAMES = {dotted(module): module for module in MODULES}


def imports(module: Path) -> Iterator[tuple[Path, int]]:
    """Yield each of our modules that `module` imports, inside functions too, with the line of the import."""
    for node in ast.walk(ast.parse((REPOSITORY / module).read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [part if part in NAMES else str(node.module) for part in parts]
        yield from ((NAMES[name], node.lineno) for name in names if name in NAMES)


def room(module: Path) -> str:
    return module.parts[1].removesuffix(".py")


def tier(module: Path) -> int:
    tiers = TIERS[module.parts[0]]
    found = [place for place, rooms in enumerate(tiers) if room(module) in rooms]
    assert found, f"{module}: the room {room(module)!r} has no place in TIERS; see the module's docstring"
    return found[0]


def outside_of_the_order(module: Path) -> bool:
    return module.name in ("config.py", "__init__.py")


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_room_imports_only_rooms_below_it(module: Path) -> None:
    if outside_of_the_order(module):
        return
    for other, line in imports(module):
        if other.parts[0] != module.parts[0] or outside_of_the_order(other) or room(other) == room(module):
            continue
        assert tier(other) > tier(module), f"{module}:{line} imports {other}, which is not below it"


@pytest.mark.parametrize("module", [module for module in MODULES if module.name == "config.py"], ids=str)
def test_a_config_imports_only_configs(module: Path) -> None:
    others = {str(other) for other, _ in imports(module) if other.name != "config.py"}
    assert others <= {"rewards/strict.py"}


def test_no_module_imports_itself_over_others() -> None:
    edges = {module: {other for other, _ in imports(module)} - {module} for module in MODULES}
    while free := [module for module, others in edges.items() if not others & edges.keys()]:
        for module in free:
            del edges[module]
    circle = {str(module): sorted(map(str, others & edges.keys())) for module, others in edges.items()}
    assert not circle, f"these import each other: {circle}"


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_a_file_is_short(module: Path) -> None:
    lines = len((REPOSITORY / module).read_text(encoding="utf-8").splitlines())
    assert lines <= LINES, f"{lines} lines: split it by idea"


@pytest.mark.parametrize("folder", sorted({module.parent for module in MODULES}), ids=str)
def test_a_folder_is_small(folder: Path) -> None:
    files = [path.name for path in (REPOSITORY / folder).iterdir() if path.is_file() and path.name != "__init__.py"]
    assert len(files) <= FILES, f"{len(files)} files: split the room by idea"


def test_the_loop_fits_on_a_few_screens() -> None:
    assert len((REPOSITORY / "rl" / "run.py").read_text(encoding="utf-8").splitlines()) < 200


def test_tests_lie_where_the_code_does() -> None:
    """tests/rl/batch/… tests rl/batch/…. Whole runs and recipes have folders of their own; tests of the repository lie
    directly in tests/."""
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(REPOSITORY / "tests")
        if folder.parts and folder.parts[0] in TIERS:
            assert (REPOSITORY / folder).is_dir(), f"{path}: there is no {folder}"
