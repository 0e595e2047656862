"""`new`: write a small working extension and its test, to be changed into one's own.

The starting points are real modules, one folder of rl/verbs/templates for each kind, which the type checker and a test
look at like any others; `example` and `Example` in them become the new name. Standard library only, so that the answer
comes at once, and before there is an environment.
"""

from __future__ import annotations

import difflib
import importlib.util
import json
import keyword
import re
import shlex
import symtable
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rl.paths import REPOSITORY
from rl.verbs.usage import refuse

TEMPLATES = Path(__file__).with_name("templates")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of extension: how its code is named, and how a recipe and an override choose it.

    In `recipe` and `override`, `{}` stands for the name that a recipe uses, `file.py:attribute`.
    """

    is_class: bool = False
    """Whether the extension is a class, whose name is in CamelCase, or else a function."""
    recipe: tuple[str, ...]
    override: str


KINDS: Mapping[str, Kind] = {
    "environment": Kind(
        is_class=True,
        recipe=("tasks:", "  sources:", "    - environment: {{name: {}, looks: 2}}"),
        override="tasks.sources=[{{environment: {}}}]",
    ),
    "reward": Kind(
        is_class=True,
        recipe=(
            "tasks:",
            "  sources:",
            "    - environment: python",
            "      rewards: [environment, {{name: {}, length: 20}}]",
            "      success: {{code: 1.0}}",
        ),
        override="tasks.sources=[{{environment: python, rewards: [environment, {}], success: {{code: 1.0}}}}]",
    ),
    "advantage": Kind(recipe=("advantage: {{name: {}, limit: 5.0}}",), override="advantage={}"),
    "loss": Kind(recipe=("loss: {{name: {}, limit: 2.0}}",), override="loss={}"),
    "correction": Kind(recipe=("correction: {{name: {}, limit: 0.1}}",), override="correction={}"),
}
USAGE = f"./launch.sh new {'|'.join(KINDS)} NAME [DIRECTORY]"


def new(argv: Sequence[str]) -> int:
    """Write NAME.py and test_NAME.py into a directory, and print how to use them. `argv` is the kind, the name and
    optionally the directory, which is the working directory otherwise."""
    if problem := _usage_problem(argv):
        return refuse(problem)
    kind, name, folder = argv[0], argv[1], Path(argv[2] if len(argv) > 2 else ".")
    if problem := name_problem(kind, name):
        return refuse(f"{kind} {name!r}: {problem}")
    try:
        code, test = _write(folder.resolve(), _contents(kind, name))
    except OSError as error:
        return refuse(f"nothing is written: {error.filename}: {error.strerror}; give another NAME or DIRECTORY")
    print(_told(KINDS[kind], f"{_shown(code)}:{attribute_of(kind, name)}", _shown(code), _shown(test)))
    return 0


def attribute_of(kind: str, name: str) -> str:
    """What the extension is called in its file: `my_reward` is the class `MyReward`, a function keeps its name."""
    return "".join(part[:1].upper() + part[1:] for part in name.split("_")) if KINDS[kind].is_class else name


def name_problem(kind: str, name: str) -> str | None:
    """Why a name cannot be that of a new extension; None if it can."""
    attribute = attribute_of(kind, name)
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        return "a NAME begins with a letter and has letters, digits and underscores only, like my_first"
    if keyword.iskeyword(name) or keyword.iskeyword(attribute):
        return "that is a keyword of Python; choose another NAME"
    if _is_module(name):
        return f"{name}.py would hide a module of that name, which is there already; choose another NAME"
    if attribute in _names(kind):
        return f"the code of this kind uses the name {attribute} itself; choose another NAME"
    return None


def _is_module(name: str) -> bool:
    """Whether Python, pytest, Sluice or a package of its lock files has a module of that name."""
    known = name == "conftest" or name in sys.stdlib_module_names or importlib.util.find_spec(name) is not None
    locks = [path.read_text(encoding="utf-8") for path in (REPOSITORY / "locks").glob("*.txt")]
    return known or any(re.search(rf"^{name.replace('_', '[-_]')}==", text, re.MULTILINE) for text in locks)


def _usage_problem(argv: Sequence[str]) -> str | None:
    if options := [argument for argument in argv if argument.startswith("-")]:
        return f"new takes no options, got {options[0]!r}; write {USAGE}"
    if argv and argv[0] not in KINDS:
        near = difflib.get_close_matches(argv[0], KINDS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(KINDS)}"
        return f"no kind of extension that `new` can write is called {argv[0]!r}; {hint}"
    if not 2 <= len(argv) <= 3:
        return f"new takes a kind, a name and at most a directory, got {list(argv)}; write {USAGE}"
    if len(argv) > 2 and not argv[2].isprintable():
        return f"the directory {argv[2]!r} has signs that no recipe can hold; choose another DIRECTORY"
    return None


def _contents(kind: str, name: str) -> dict[str, str]:
    """The text of the new files, by file name: the extension first, then its test."""
    texts = {}
    for template in ("example.py", "test_example.py"):
        text = (TEMPLATES / kind / template).read_text(encoding="utf-8")
        text = re.sub(r"\bExample\b", attribute_of(kind, name), text)
        texts[template.replace("example", name)] = re.sub(r"\bexample\b", name, text)
    return texts


def _names(kind: str) -> set[str]:
    """The module-level and built-in names that a kind's templates use: one of them, defined anew, would break them."""
    texts = [path.read_text(encoding="utf-8") for path in (TEMPLATES / kind).glob("*example.py")]
    found = set().union(*(_globals(symtable.symtable(text, kind, "exec")) for text in texts))
    return found - {"example", "Example"}


def _globals(table: symtable.SymbolTable) -> set[str]:
    names = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_global() or symbol.is_imported()}
    return names.union(*map(_globals, table.get_children()))


def _write(folder: Path, texts: Mapping[str, str]) -> list[Path]:
    """Write new files, all or none, and return their paths.

    Raises:
        OSError: one of them is there already, or cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    try:
        for name, text in texts.items():
            with (folder / name).open("x", encoding="utf-8") as file:
                written.append(folder / name)
                file.write(text)
    except OSError:
        for path in written:
            path.unlink()
        raise
    return written


def _shown(path: Path) -> str:
    """A path as one writes it in the working directory: relative to Sluice's folder only where that is the working
    directory, because `./launch.sh test` runs there."""
    below = Path.cwd() == REPOSITORY and path.is_relative_to(REPOSITORY)
    return str(path.relative_to(REPOSITORY) if below else path)


def _told(kind: Kind, target: str, code: str, test: str) -> str:
    launch = "./launch.sh" if Path.cwd() == REPOSITORY else shlex.quote(str(REPOSITORY / "launch.sh"))
    quickstart = shlex.quote(_shown(REPOSITORY / "recipes" / "quickstart.yaml"))
    name = target if re.fullmatch(r"[\w./:-]+", target) else json.dumps(target, ensure_ascii=False)
    override = shlex.quote(kind.override.format(name))
    lines = [
        f"wrote {code} and {test}",
        "",
        "In a recipe (the file is looked up from the recipe's folder, then from the working directory):",
        *(f"  {line}".format(name) for line in kind.recipe),
        "",
        "Its test, what a recipe with it resolves to, and a short run:",
        f"  {launch} test {shlex.quote(test)}",
        f"  {launch} plan {quickstart} {override}",
        f"  {launch} {quickstart} run.steps=4 {override}",
    ]
    return "\n".join(lines)
