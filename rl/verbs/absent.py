"""What to tell about a first argument of launch.sh that is neither a verb nor a recipe.

launch.sh runs this file before there is an environment, so it imports the standard library only.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

VERBS = (
    *("plan", "eval", "rollout", "play", "model", "reward-test", "report", "new"),
    *("test", "check", "lock", "node", "doctor", "k8s"),
)
"""The names of rl.cli's verbs."""
RECIPES = Path(__file__).parents[2] / "recipes"
_CHARACTERS = 300


def is_file(path: str) -> bool:
    """Whether there is such a file. A name that is too long, or holds a NUL byte, names none."""
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def no_such(name: str) -> str:
    """The message: what it is instead, or the nearest verb or recipe."""
    shown = f"{name!r:.{_CHARACTERS}}"
    path = Path(name[:_CHARACTERS].replace("\0", ""))
    with suppress(OSError):
        if path.is_dir():
            return f"{shown} is a directory; give a recipe file (in it are: {', '.join(_recipes([path])) or 'none'})"
    known = [*VERBS, *_recipes([path.parent, RECIPES])]
    near = difflib.get_close_matches(name[:_CHARACTERS], known, n=1) or [k for k in known if Path(k).name == path.name]
    hint = f"; did you mean {near[0]!r}?" if near else "; ./launch.sh --help lists the verbs"
    return f"no recipe file and no verb is called {shown}{hint}"


def _recipes(folders: Iterable[Path]) -> list[str]:
    """The recipes of folders, as one would write them here."""
    files: list[str] = []
    for folder in folders:
        with suppress(OSError):
            files += sorted(os.path.relpath(file) for file in folder.glob("*.yaml"))
    return list(dict.fromkeys(files))


if __name__ == "__main__":
    sys.exit(f"launch: error: {no_such(sys.argv[1])}")
