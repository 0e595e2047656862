"""YAML with line numbers: the core schema's scalars, what is refused, and that written data is read back equal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rl.recipe.marked_yaml import YamlError, dump, parse

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
DOCUMENTS = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=12
)


@given(DOCUMENTS)
def test_what_is_written_reads_back(data: object) -> None:
    assert parse(dump(data)).data == data


@given(
    st.sampled_from(
        [
            "\x85",
            "a\nb",
            "1e-5",
            "yes",
            "on",
            "~",
            "null",
            "2024-01-01",
            "0x1f",
            ".inf",
            "",
            "12",
            "1_000",
            "<<",
            "1:30",
        ]
    )
)
def test_strings_that_look_like_something_else_stay_strings(text: str) -> None:
    assert parse(dump({"key": text})).data == {"key": text}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *[("1e-5", 1e-5), ("2E3", 2000.0), ("1.", 1.0), (".5", 0.5), ("-.inf", float("-inf")), ("0x1F", 31)],
        *[("yes", "yes"), ("off", "off"), ("2024-01-01", "2024-01-01"), ("true", True), ("~", None), ("'1'", "1")],
        ("010", 10),
    ],
)
def test_scalars_mean_what_people_mean(text: str, value: object) -> None:
    assert parse(f"key: {text}").data == {"key": value}


def test_every_value_knows_its_line() -> None:
    marked = parse("a: 1\nb:\n  - x: 2\n\n  - y:\n      3\n")
    assert marked.lines == {(): 1, ("a",): 1, ("b",): 2, ("b", 0): 3, ("b", 0, "x"): 3, ("b", 1): 5, ("b", 1, "y"): 5}


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "'a' is written twice (first on line 1)"),
        ("a: 1\nb: [1,\n", 3, "not valid YAML"),
        ("a:\n  !!python/name:os.system x\n", 2, "is not supported"),
        ("a:\n  !!set {x}\n", 2, "'tag:yaml.org,2002:set' is not supported"),
        ("a: !!omap []\n", 1, "is not supported"),
        ("a: !!int many\n", 1, "'tag:yaml.org,2002:int' is not supported here"),
        ("a: &x\n  - *x\n", 1, "refer to itself"),
        ("a: 1\nb: \x07\n", 2, "U+0007"),
        ("? [1]\n: 2\n", 1, "plain word"),
    ],
)
def test_what_is_refused(text: str, line: int, words: str) -> None:
    with pytest.raises(YamlError) as caught:
        parse(text)
    assert caught.value.line == line and words in str(caught.value)
