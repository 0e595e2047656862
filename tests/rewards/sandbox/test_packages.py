"""Packages that programs may import: read-only, with what they require, and refused by name where they are missing."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.packages import package_binds
from rewards.sandbox.sandbox import Outcome, Sandbox

SITE = f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"


def environment(folder: Path) -> Path:
    """A virtual environment with one package."""
    (folder / SITE / "shapes").mkdir(parents=True)
    (folder / SITE / "shapes" / "__init__.py").write_text("AREA = 42\n")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_programs_import_what_the_recipe_names() -> None:
    sandbox = Sandbox(SandboxConfig(packages=("numpy", "pandas>=2")))
    sandbox.require()
    code = (
        "import numpy, pandas, dateutil\nprint(pandas.DataFrame({'a': numpy.arange(3)}).a.sum())\n"
        "try: open('/packages/numpy/__init__.py', 'a')\nexcept OSError: print('held')\n"
        "import ray"
    )
    done = asyncio.run(sandbox.run(code))
    assert done.stdout.splitlines() == ["3", "held"], done
    assert done.outcome is Outcome.FAILED and "No module named 'ray'" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_an_environment_of_its_own(tmp_path: Path) -> None:
    sandbox = Sandbox(SandboxConfig(environment=str(environment(tmp_path))))
    assert asyncio.run(sandbox.run("import shapes\nprint(shapes.AREA)")).stdout == "42\n"
    assert "No module named" in asyncio.run(sandbox.run("import numpy")).stderr


@pytest.mark.skipif(find_spec("pandas") is None, reason="pandas is not installed")
def test_what_a_package_requires_comes_with_it() -> None:
    places = package_binds(["pandas"], None)
    assert {"/packages/pandas", "/packages/numpy", "/packages/dateutil", "/packages/tzdata"} <= set(places)
    assert all(Path(path).exists() for path in places.values())
    assert package_binds([], None) == {}


@pytest.mark.parametrize(
    ("packages", "folder", "message"),
    [
        (["nosuch"], None, "there is no package 'nosuch' in Sluice's environment"),
        (["pytest>99"], None, "pytest>99 is wanted, and .* is installed"),
        (["not a name!"], None, "there is no package 'not a name!'"),
        ([], "/nowhere", "sandbox.environment=/nowhere: there is no /nowhere/lib/python"),
    ],
)
def test_what_is_missing_is_refused_by_name(packages: list[str], folder: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        package_binds(packages, folder)
    with pytest.raises(ValueError, match=message):
        Sandbox(SandboxConfig(packages=tuple(packages), environment=folder)).require()
