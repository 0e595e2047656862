"""Extensions by name: Sluice's own from a registry, a user's from a package or from a file.

A registry maps a name to an `Entry` of two strings: the `module:attribute` of the code and of its settings class. So a
recipe can be read without importing the code that it names; each process of a run imports only the code that it uses.
A user writes `package.module:attribute` or `file.py:attribute` instead of a name. The settings class of such an
extension is the attribute `Settings` of the named object, if it has one.

A user's file becomes the module `rewards.extension.file_<its path in hexadecimal digits>`. The name alone says where
the file lies, so any process can import it. That matters because objects travel between processes as pickles, which
hold only the name of an object's class and the name of its module.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

from rewards.strict import Named


@dataclass(frozen=True, slots=True)
class Entry:
    """One of Sluice's own extensions. Both strings are `module:attribute`; None: it has no settings of its own."""

    code: str
    settings: str | None = None


Registry = Mapping[str, Entry]


def load(registry: Registry, name: str) -> Any:
    """Import the code of an extension and return it.

    Raises:
        ValueError: there is no such extension, or it cannot be imported.
    """
    return _attribute(code_of(registry, name))


def make(registry: Registry, name: str, *arguments: Any) -> Any:
    """Make an instance of an extension that is a class, from these arguments.

    Raises:
        ValueError: there is no such extension, it cannot be imported, or making the instance fails.
    """
    code = load(registry, name)
    try:
        return code(*arguments)
    except ValueError:
        raise
    except Exception as error:  # a user's class may raise anything
        raise ValueError(f"{name} cannot be made: {type(error).__name__}: {error}") from error


def settings_class(registry: Registry, name: str, base: type[Named]) -> type[Named]:
    """The class of an extension's settings; `base`, which has only the name, if it has no settings of its own.

    Raises:
        ValueError: there is no such extension, it cannot be imported, or its settings do not derive from `base`.
    """
    if _is_own(name):
        settings = base.settings_of(_attribute(name))
    else:
        target = _entry(registry, name).settings
        settings = base if target is None else _attribute(target)
    if not (isinstance(settings, type) and issubclass(settings, base)):
        raise ValueError(f"the Settings of {name} must derive from {base.__module__}.{base.__name__}")
    return settings


def located(name: str, folders: Iterable[Path]) -> str:
    """Make the path of a user's `file.py:attribute` absolute. It is searched in `folders`; if it is not found there, or
    for any other name, the name is returned unchanged."""
    file, colon, attribute = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        return name
    found = (folder / Path(file).expanduser() for folder in folders)
    return next((f"{path.resolve()}:{attribute}" for path in found if os.path.isfile(path)), name)


def code_of(registry: Registry, name: str) -> str:
    """The `module:attribute` or `file.py:attribute` of an extension's code. Raises ValueError as `load`."""
    return name if _is_own(name) else _entry(registry, name).code


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint to append to the error for an unknown name; empty if no known name is similar."""
    similar = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {similar[0]!r}?" if similar else ""


def _is_own(name: str) -> bool:
    return ":" in name


def _entry(registry: Registry, name: str) -> Entry:
    if name not in registry:
        known = ", ".join(repr(one) for one in sorted(registry))
        raise ValueError(
            f"there is no {name!r}: Sluice has {known}, and your own is named package.module:attribute or "
            f"file.py:attribute{nearest(name, list(registry))}"
        )
    return registry[name]


def _attribute(target: str) -> Any:
    place, _, attribute = target.rpartition(":")
    module = _module(place)
    if not hasattr(module, attribute):
        public = [name for name in vars(module) if not name.startswith("_")]
        raise ValueError(f"{place} has no {attribute!r}{nearest(attribute, public)}")
    return getattr(module, attribute)


def _module(place: str) -> ModuleType:
    name = _FILE_MODULE + str(Path(place).absolute()).encode().hex() if place.endswith(".py") else place
    try:
        return importlib.import_module(name)
    except Exception as error:  # a user's module may raise anything
        raise ValueError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error


__path__: list[str] = []
"""Makes the import system treat this module as a package, so that the modules of users' files can be its submodules."""

_FILE_MODULE = f"{__name__}.file_"


class _FileFinder:
    """Finds the modules of users' files by their names."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not name.startswith(_FILE_MODULE):
            return None
        return spec_from_file_location(name, bytes.fromhex(name.removeprefix(_FILE_MODULE)).decode())


if not any(isinstance(finder, _FileFinder) for finder in sys.meta_path):
    sys.meta_path.append(_FileFinder())
