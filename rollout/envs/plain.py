"""Environments and tools in plain Python: functions with types and docstrings, and classes as TRL's trainers take them.

A class has `reset(**columns)`, which begins an episode and may return a text that is added to the prompt. Its other
public methods are the tools. It may have `get_reward()`, whose value becomes the reward part that is called like the
class, and `close()`. Each episode gets an instance of its own, in a process that all episodes of a source share in a
worker (`rewards.host`). Methods that are not asynchronous run in threads.
"""

from __future__ import annotations

import inspect
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MethodType
from typing import Any

from rewards.contracts import Hosted
from rewards.extension import load
from rewards.host.calling import missing
from rewards.host.host import Host
from rewards.sandbox.sandbox import Sandbox
from rollout.contracts import Environment, EnvironmentSpec, ToolCall, ToolSpec
from rollout.envs.arguments import checked_arguments
from rollout.envs.config import EnvironmentSettings, PlainSettings
from rollout.types import Message, Task

ONLY_TOOLS = "tools"
"""The name of an environment that is nothing but its functions."""
NO_TOOLS = ("reset", "get_reward", "close")
MARGIN_S = 30.0
"""How much later than a tool's own deadline its whole process is given up."""
START_S = 120.0
"""How long an instance may take to be made, and to be reset. Then the process is given up."""


class PlainTasks(EnvironmentSpec):
    """The tasks come from a dataset. Their columns are the arguments of `reset`."""

    may_abstain = True

    def __init__(self, settings: PlainSettings) -> None:
        """Raises ValueError for a function or method of which the model cannot be told what it takes."""
        super().__init__(settings)
        self.target = None if settings.name == ONLY_TOOLS else settings.name
        self.deadline_s = settings.tool_timeout_s
        code: type | None = None if self.target is None else load({}, self.target)
        self.functions = {target.rpartition(":")[2]: target for target in settings.tools}
        methods = _methods(code)
        names = [*(target.rpartition(":")[2] for target in settings.tools), *methods]
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ValueError(f"two tools are called {twice!r}: the model could call one of them only; rename one")
        described = [tool_of(name, load({}, target)) for name, target in self.functions.items()]
        described += [tool_of(name, method) for name, method in methods.items()]
        self.tools = tuple(described)
        self.reward_parts = (code.__name__,) if code is not None and hasattr(code, "get_reward") else ()
        self._host = Host(
            f"environment {self.name}", {"operation": "setup", "target": None, "settings": None}, threads=True
        )

    def make(self, task: Task, sandbox: Sandbox) -> PlainEpisode:
        return PlainEpisode(self, self._host, task)


class PlainEpisode(Environment):
    """One instance of the class, if there is one, and the functions."""

    def __init__(self, spec: PlainTasks, host: Host, task: Task) -> None:
        self.tools = spec.tools
        self._spec, self._host, self._task = spec, host, task
        self._key: str | None = None

    async def open(self, messages: Sequence[Message]) -> Sequence[Message]:
        if self._spec.target is None:
            return messages
        self._key = secrets.token_hex(8)
        await self._ask("make", START_S, target=self._spec.target)
        columns = {**self._task.payload, **self._task.metadata, "prompt": list(messages)}
        shown = await self._ask("reset", START_S, columns=columns)
        return messages if shown is None else [*messages[:-1], _with(messages[-1], shown)]

    async def call(self, call: ToolCall) -> str:
        arguments = checked_arguments(call, self.tools)
        if isinstance(arguments, str):
            return arguments
        given = {"name": call.name, "arguments": arguments, "deadline_s": self._spec.deadline_s}
        deadline_s = self._spec.deadline_s + MARGIN_S
        if call.name in self._spec.functions:
            target = self._spec.functions[call.name]
            return str(await self._host.call({"operation": "tool", "target": target, **given}, deadline_s))
        return str(await self._ask("act", deadline_s, **given))

    async def score(self, answer: str | None) -> dict[str, float]:
        if not self._spec.reward_parts:
            return {}
        value = await self._ask("reward", self._spec.deadline_s + MARGIN_S, deadline_s=self._spec.deadline_s)
        return {} if value is None else {self._spec.reward_parts[0]: value}

    def hosted(self) -> Hosted | None:
        return None if self._key is None else Hosted(self._host, self._key)

    async def close(self) -> None:
        if self._key is not None:
            await self._ask("drop", MARGIN_S)

    async def _ask(self, operation: str, within_s: float, **arguments: Any) -> Any:
        return await self._host.call({"operation": operation, "key": self._key, **arguments}, within_s)


def lacking_for_reset(settings: EnvironmentSettings, columns: Collection[str]) -> str | None:
    """Say what `reset` asks for and would not get from rows with these columns; None if there is nothing."""
    if not lives_in_a_process(settings):
        return None
    wanted = missing(MethodType(load({}, settings.name).reset, object()), {*columns, "prompt"})
    return f"reset asks for {wanted[0]!r}, which no row has" if wanted else None


def lives_in_a_process(settings: EnvironmentSettings) -> bool:
    """Whether episodes have an object in a process of their own, which rewards may look at."""
    return isinstance(settings, PlainSettings) and settings.name != ONLY_TOOLS


def tool_of(name: str, code: Callable[..., Any]) -> ToolSpec:
    """What the model is told of a function, from its types and its docstring, through transformers' own helper.

    Raises:
        ValueError: the function has no docstring, or one of its parameters has no type or no description.
    """
    from transformers.utils import get_json_schema

    try:
        described: ToolSpec = get_json_schema(code)
    except Exception as error:  # two kinds of its own, and whatever a type hint raises
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"tool {name!r} cannot be described to the model: {why}; give it types, and a docstring with a line for "
            "each parameter under `Args:`"
        ) from None
    described["function"]["name"] = name  # a decorator or an alias may have left another one
    described["function"].pop("return", None)  # chat formats show what the model has to give
    described["function"]["parameters"].setdefault("properties", {})
    described["function"]["parameters"].setdefault("required", [])
    return described


def _methods(code: type | None) -> Mapping[str, Callable[..., Any]]:
    """The public methods of a class that are tools, by name. They look as if they were those of an instance."""
    return {
        name: method if isinstance(inspect.getattr_static(code, name), staticmethod) else MethodType(method, code)
        for name, method in inspect.getmembers(code, inspect.isfunction)
        if not name.startswith("_") and name not in NO_TOOLS
    }


def _with(message: Message, shown: Any) -> Message:
    """The message with what an environment shows at its end."""
    return {**message, "content": f"{message['content']}{shown}"}
