"""YAML with line numbers: a document as plain data, and the line of each of its values.

Scalars follow YAML 1.2's core schema (`1e-5` is a number; `yes`, `on` and `2020-01-01` are strings), which is what
people mean in a recipe; only its octal integers are strings. Keys that are not scalars and keys written twice are
refused. This module knows nothing of recipes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]
"""Where a value stands in a document: keys, and positions in lists counted from 0."""

MAX_DEPTH = 32
MAX_VALUES = 50_000
"""A recipe has a few hundred values; aliases of aliases would be billions."""
MAX_CHARACTERS = 2_000_000

_SCALARS: dict[str, tuple[str, str, Callable[[str], Any]]] = {
    "null": (r"~|null|Null|NULL|", "~nN\0", lambda text: None),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF", lambda text: text.lower() == "true"),
    "int": (r"[-+]?[0-9]+|0x[0-9a-fA-F]+", "-+0123456789", lambda text: int(text, 16 if text[:2] == "0x" else 10)),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
        lambda text: float(re.sub(r"\.(?=[inIN])", "", text)),
    ),
}
_TAGS = "tag:yaml.org,2002:"
_STRING = _TAGS + "str"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own interface)


class _Dumper(yaml.SafeDumper):
    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # In plain and single-quoted style PyYAML writes some line breaks unescaped (U+0085 for one) and reads back spaces.
    return dumper.represent_scalar(_STRING, text, style=None if text.isprintable() else '"')


_Dumper.add_representer(str, _represent_text)
for _name, (_pattern, _first, _) in _SCALARS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(
            _TAGS + _name,
            re.compile(rf"^(?:{_pattern})$"),
            [character.replace("\0", "") for character in _first],
        )


class YamlError(ValueError):
    """The text is not a usable document. `line` counts from 1."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True, slots=True)
class Marked:
    """A document: its plain data (JSON types only) and the line, from 1, of every path in it. `()` is the root."""

    data: Any
    lines: dict[KeyPath, int]


def parse(text: str) -> Marked:
    """Read one YAML document.

    Raises:
        YamlError: bad syntax, a duplicate key, a key that is not a scalar, a value with another tag, or nesting
            deeper than MAX_DEPTH, or more than MAX_VALUES values.
    """
    if len(text) > MAX_CHARACTERS:
        raise YamlError(1, f"a text of {len(text):,} characters is no recipe")
    try:
        node = yaml.compose(text, Loader=_Loader)
    except RecursionError:
        raise YamlError(1, f"nested deeper than {MAX_DEPTH} levels") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(mark.line + 1 if mark else 1, f"not valid YAML: {error.problem or error}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise YamlError(line, f"not valid YAML: the character U+{error.character:04X} is not allowed") from None
    lines: dict[KeyPath, int] = {(): 1}
    return Marked(data=None if node is None else _plain(node, (), lines), lines=lines)


def dump(data: Any) -> str:
    """YAML text that `parse` reads back as equal data. Keys keep their order."""
    text: str = yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)
    return text


def _plain(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> Any:
    line = node.start_mark.line + 1
    lines.setdefault(path, line)
    if len(lines) > MAX_VALUES:
        raise YamlError(line, f"more than {MAX_VALUES:,} values; does an alias repeat another one?")
    if len(path) > MAX_DEPTH:
        raise YamlError(line, f"nested deeper than {MAX_DEPTH} levels; does an alias refer to itself?")
    if isinstance(node, yaml.MappingNode) and node.tag == _TAGS + "map":
        return _mapping(node, path, lines)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAGS + "seq":
        return [_plain(child, (*path, index), lines) for index, child in enumerate(node.value)]
    if node.tag == _STRING:
        if any("\ud800" <= character <= "\udfff" for character in node.value):
            raise YamlError(line, "a text holds half of a surrogate pair, which is no character")
        return node.value
    name = node.tag.removeprefix(_TAGS)
    try:
        return _SCALARS[name][2](node.value)
    except (KeyError, ValueError, TypeError):
        raise YamlError(line, f"the YAML tag {node.tag!r} is not supported here: write a plain value") from None


def _mapping(node: yaml.MappingNode, path: KeyPath, lines: dict[KeyPath, int]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode):
            raise YamlError(line, "a key must be a plain word")
        key = key_node.value
        if key in result:
            first = lines[(*path, key)]
            raise YamlError(line, f"key {key!r} is written twice (first on line {first}): keep one of them")
        lines[(*path, key)] = line
        result[key] = _plain(value_node, (*path, key), lines)
    return result
