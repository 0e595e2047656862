"""Extensions by name: Sluice's own from a registry, a user's from a package or from a file.

A registry maps a name to an `Entry`, which is two strings: `module:attribute` of the code and of the class of its
settings. So a recipe can be read without importing what it names; the code is imported where it is used, in whichever
process of a run that is. A user writes `package.module:attribute` or `file.py:attribute` in place of a name; the
settings class of such an extension is the attribute `Settings` of what is named, if it has one.

A user's file becomes the module `rewards.extension.file_<its path in hexadecimal digits>`. The name alone says where
the file lies, so any process can import it. That matters because objects travel between processes as pickles, which
hold no more of a class than the names of its module and itself.
"""

from __future__ import annotations

import difflib
import importlib
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
    """One extension of Sluice's own. Both strings are `module:attribute`; `settings` None: it has none."""

    code: str
    settings: str | None = None


Registry = Mapping[str, Entry]


def load(registry: Registry, name: str) -> Any:
    """The code of an extension.

    Raises:
        ValueError: there is no such extension, or it cannot be imported.
    """
    return _attribute(code_of(registry, name))


def make(registry: Registry, name: str, *arguments: Any) -> Any:
    """What an extension's code makes of these arguments, for one that is a class.

    Raises:
        ValueError: there is no such extension, or it cannot be imported or made.
    """
    code = load(registry, name)
    try:
        return code(*arguments)
    except ValueError:
        raise
    except Exception as error:  # whatever a user's class raises
        raise ValueError(f"{name} cannot be made: {type(error).__name__}: {error}") from error


def settings_class(registry: Registry, name: str, base: type[Named]) -> type[Named]:
    """The class of an extension's settings; `base`, which has nothing but the name, where there are none.

    Raises:
        ValueError: there is no such extension, it cannot be imported, or its settings do not derive from `base`.
    """
    if _is_own(name):
        settings = getattr(_attribute(name), "Settings", base)
    else:
        target = _entry(registry, name).settings
        settings = base if target is None else _attribute(target)
    if not (isinstance(settings, type) and issubclass(settings, base)):
        raise ValueError(f"the Settings of {name} must derive from {base.__module__}.{base.__name__}")
    return settings


def located(name: str, folders: Iterable[Path]) -> str:
    """A user's `file.py:attribute` with an absolute path, looked up from `folders`; any other name unchanged."""
    file, colon, attribute = name.rpartition(":")
    if not colon or not file.endswith(".py"):
        return name
    found = (folder / Path(file).expanduser() for folder in folders)
    return next((f"{path.resolve()}:{attribute}" for path in found if path.is_file()), name)


def code_of(registry: Registry, name: str) -> str:
    """The `module:attribute` or `file.py:attribute` of an extension's code. Raises ValueError as `load`."""
    return name if _is_own(name) else _entry(registry, name).code


def nearest(name: str, known: Sequence[str]) -> str:
    """A hint for an unknown name, to be put behind an error: empty where nothing is similar."""
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
    except Exception as error:  # whatever a user's module raises
        raise ValueError(f"{place} cannot be imported: {type(error).__name__}: {error}") from error


__path__: list[str] = []
"""Makes the import system treat this module as a package, so that the modules of users' files can lie in it."""

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
