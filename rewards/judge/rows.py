"""What a row says about how its answers are judged, checked before anything starts."""

from __future__ import annotations

import ast
import functools
import json
import warnings
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, PlainValidator, ValidationInfo, field_validator

from rewards.judge.reading import Reading, reading

EXECUTES = {"exec", "eval", "compile"}


class Case(BaseModel):
    """What a program is given on its standard input, and what it must print."""

    model_config = ConfigDict(frozen=True)

    input: str
    output: str


Tests = str | tuple[str, ...] | tuple[Case, ...]


def _tests(value: object) -> Tests:
    """A program, its lines, or cases."""
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        if all(isinstance(line, str) for line in value):
            return tuple(map(str, value))
        if all(isinstance(case, dict | Case) for case in value):
            return tuple(Case.model_validate(case) for case in value)
    raise ValueError("tests are a program, its lines, or objects with input and output")


class Judged(BaseModel):
    """How answers to a task are judged. There are three kinds of rows:

    - with `entry_point`, the answer is a program, and the tests call what it defines under that name;
    - with cases (`tests` is a list of objects), the answer is a program that reads and prints;
    - else the tests see the text of the answer as `answer`.
    """

    model_config = ConfigDict(frozen=True)

    entry_point: str | None = None
    prompt: str = ""
    """Code that the answer goes on, and whose helpers the tests may use. Trusted."""
    setup: str = ""
    """Code before the tests."""
    reference: str | None = None
    """An answer that is right. Tests that it does not pass are broken."""
    in_process: bool = False
    """Whether the answer runs in the process of its tests, which may be needed for its live objects. An answer can then
    forge its verdict."""
    tests: Annotated[Tests, PlainValidator(_tests)]
    """A program that raises if the answer is wrong, its lines, or cases."""

    @field_validator("entry_point")
    @classmethod
    def _is_name(cls, entry_point: str | None) -> str | None:
        if entry_point is not None and not entry_point.isidentifier():
            raise ValueError(f"{entry_point[:100]!r} is no name that a program can define")
        return entry_point

    @field_validator("tests")
    @classmethod
    def _fits(cls, tests: Tests, info: ValidationInfo) -> Tests:
        entry_point, in_process, setup = (info.data.get(name) for name in ("entry_point", "in_process", "setup"))
        if any(isinstance(test, Case) for test in tests):
            if entry_point is not None or in_process or setup:
                raise ValueError("tests with inputs and outputs take no entry_point, setup or in_process")
            return tests
        if entry_point is None and not isinstance(tests, str):
            raise ValueError("a list of tests needs entry_point, the name of what they call; else write a program")
        program = _program(setup or "", tests)
        if not "".join(str(test) for test in tests).strip():
            raise ValueError("there are no tests: any answer would pass")
        check_program(program)
        if entry_point is None and not in_process and (line := executes_text(program)):
            raise ValueError(
                f"line {line} of the tests runs the answer in their own process, where it can forge its verdict: name "
                "what they call in entry_point, or accept that with in_process: true"
            )
        return tests

    @property
    def cases(self) -> tuple[Case, ...]:
        return tuple(case for case in self.tests if isinstance(case, Case))

    @property
    def program(self) -> str:
        """The tests as one program."""
        return _program(self.setup, self.tests)

    @property
    def reading(self) -> Reading:
        """What the text of the tests tells."""
        return reading(self.program, self.prompt)


def _program(setup: str, tests: Tests) -> str:
    lines = [tests] if isinstance(tests, str) else [str(line) for line in tests]
    return "\n".join([setup, *lines] if setup else lines)


def judged(payload: Mapping[str, Any]) -> Judged:
    """What a task's payload says of how it is judged. Raises ValueError: it says nothing usable."""
    return _parsed(json.dumps({name: payload[name] for name in Judged.model_fields if name in payload}))


@functools.lru_cache(maxsize=1024)
def _parsed(text: str) -> Judged:
    return Judged.model_validate_json(text)


def check_program(tests: str) -> None:
    """Raise ValueError unless `tests` are a program."""
    try:
        with warnings.catch_warnings(action="ignore"):
            compile(tests, "<tests>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise ValueError(f"the tests are not Python: {str(error)[:200]}: {tests[:200]!r}") from None


def executes_text(tests: str) -> int | None:
    """The first line that hands anything but a constant to `exec`, `eval` or `compile`; None if there is none. Where
    the tests see nothing but the answer's text, that is what they execute."""
    with warnings.catch_warnings(action="ignore"):
        tree = ast.parse(tests)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in EXECUTES:
            given = [*node.args[:1], *(keyword.value for keyword in node.keywords if keyword.arg == "source")]
            if not given or not isinstance(given[0], ast.Constant):
                return node.lineno
    return None
