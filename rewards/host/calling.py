"""How plain functions are called: rewards in the signature of TRL's reward functions, and tools.

A reward function gets lists and returns a list, one number for each completion:

    def accuracy(prompts, completions, answer, **kwargs) -> list[float | None]: ...

Here it is called for one completion at a time, as each episode ends, or for a whole group. `prompts` and `completions`
hold lists of messages. The columns of the row come by their names, as lists, too. None means that the reward does not
apply.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from rewards.errors import InfrastructureError

ABSENT = ("completion_ids", "trainer_state")
"""What TRL passes and Sluice does not: a reward knows no tokens and no trainer."""
PASSED = ("prompts", "completions", "environments", "log_metric", "log_extra")
Run = Callable[..., Awaitable[Any]]
"""Calls code that may be asynchronous, in a thread or not."""


def select(code: Callable[..., Any], columns: Mapping[str, Any]) -> dict[str, Any]:
    """The columns that a function takes: those it names, or all of them if it takes any."""
    parameters = inspect.signature(code).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return dict(columns)
    return {parameter.name: columns[parameter.name] for parameter in parameters if parameter.name in columns}


def missing(code: Callable[..., Any], known: Mapping[str, Any] | set[str]) -> list[str]:
    """The parameters without a default that a function would not get."""
    return [
        parameter.name
        for parameter in inspect.signature(code).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        and parameter.name not in known
    ]


async def score_all(
    code: Callable[..., Any],
    prompts: Sequence[Any],
    completions: Sequence[Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    environment: Any,
    run: Run,
) -> tuple[list[float | None], dict[str, float]]:
    """Return the reward of each completion, None where it does not apply, and the metrics that the function logged.
    `rows` has the columns of each.

    Raises:
        ValueError: the function did not return one finite number or None for each.
    """
    logged: dict[str, float] = {}
    count = len(completions)
    names = dict.fromkeys(name for row in rows for name in row)
    given: dict[str, Any] = {name: [row.get(name) for row in rows] for name in names}
    given |= {"prompts": list(prompts), "completions": list(completions)}
    given |= {"log_metric": lambda name, value: logged.__setitem__(str(name), float(value)), "log_extra": _ignore}
    if environment is not None:
        given["environments"] = [environment]
    # A row that lacks a column has a null there. That some row has it is checked before a run begins.
    given |= {name: [None] * count for name in missing(code, given)}
    return _numbers(await run(code, **select(code, given)), count), logged


def _ignore(*_: Any, **__: Any) -> None:
    """Take columns for TRL's table of completions. Sluice keeps the messages themselves."""


def _numbers(result: Any, count: int) -> list[float | None]:
    values = result.tolist() if hasattr(result, "tolist") else result
    if not isinstance(values, list | tuple) or len(values) != count:
        wanted = "one number for its one completion" if count == 1 else f"{count} numbers for its {count} completions"
        raise ValueError(f"it returned {result!r:.100}, and not a list with {wanted}")
    return [_number(value) for value in values]


def _number(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, str | bytes) or not math.isfinite(number := float(value)):
        raise ValueError(f"it returned {value!r:.100}, which is no finite number; None says that it does not apply")
    return number


async def call_tool(code: Callable[..., Any], arguments: Mapping[str, Any], run: Run) -> str:
    """Call a tool and return its result as a text. What it raises is told to the model, because the model may have
    caused it; only an InfrastructureError is not."""
    try:
        return _text(await run(code, **arguments))
    except InfrastructureError:
        raise
    except (Exception, SystemExit) as error:  # a parser of arguments leaves so
        return f"error: {type(error).__name__}: {error}"


def _text(result: Any) -> str:
    if isinstance(result, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in result):
        return "".join(str(part.get("text", "")) for part in result)
    return str(result)
