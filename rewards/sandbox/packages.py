"""The Python packages that programs in the sandbox may import: which files they are, and where the sandbox shows them.

A recipe names distributions that are installed beside Sluice (`sandbox.packages`), which come with all that they
require, or an environment of its own (`sandbox.environment`), of which everything may be imported.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

PLACE = "/packages"


def package_binds(packages: Sequence[str], environment: str | None) -> dict[str, str]:
    """Paths of this machine by their places in the sandbox.

    Raises:
        ValueError: a package is not installed here, or the environment has none for this version of Python.
    """
    if environment is not None:
        return {PLACE: str(_site_packages(Path(environment).expanduser()))}
    found: dict[str, Distribution] = {}
    for name in packages:
        for package in _with_requirements(name, found):
            found[package.metadata["Name"]] = package
    return {f"{PLACE}/{path.name}": str(path) for package in found.values() for path in _tops(package)}


def _site_packages(environment: Path) -> Path:
    place = environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    if not place.is_dir():
        raise ValueError(
            f"sandbox.environment={environment}: there is no {place}; programs run under Python "
            f"{sys.version_info.major}.{sys.version_info.minor}, so make it with `python -m venv` of that version"
        )
    return place


def _with_requirements(name: str, known: dict[str, Distribution]) -> Iterator[Distribution]:
    try:
        package = distribution(Requirement(name).name)
    except (PackageNotFoundError, InvalidRequirement):
        raise ValueError(
            f"sandbox.packages: there is no package {name!r} in Sluice's environment; install it there, or give an "
            "environment of its own with sandbox.environment"
        ) from None
    wanted = Requirement(name).specifier
    if not wanted.contains(package.version, prereleases=True):
        raise ValueError(f"sandbox.packages: {name} is wanted, and {package.version} is installed")
    if package.metadata["Name"] in known:
        return
    yield package
    for line in package.requires or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield from _with_requirements(requirement.name, known | {package.metadata["Name"]: package})


def _tops(package: Distribution) -> list[Path]:
    """The files and folders that a package puts directly into site-packages."""
    names = {file.parts[0] for file in package.files or () if file.parts and not file.parts[0].startswith(("..", "__"))}
    places = [Path(str(package.locate_file(name))) for name in sorted(names)]
    return [place for place in places if place.exists()]
