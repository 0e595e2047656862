"""A reward that is a plain function in the signature of TRL's (`rewards.host.calling`), in processes of its own."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from rewards.contracts import Ending, Reward, Scored
from rewards.extension import load
from rewards.host.host import Host
from rewards.sandbox.sandbox import Sandbox
from rewards.scorers.config import FunctionSettings

MARGIN_S = 10.0
"""How much later than a call's own deadline its process is given up, with the other calls in it."""


class FunctionReward(Reward):
    """The part that is called like the function. Where the function returns None, there is no such part."""

    may_abstain = True
    settings: FunctionSettings

    def __init__(self, settings: FunctionSettings, sandbox: Sandbox) -> None:
        super().__init__(settings, sandbox)
        self.parts = (settings.part_name,)
        self.whole_group = settings.whole_group
        self._target = settings.target or settings.name
        made_from = None if settings.target is None else settings.model_dump(mode="json")
        setup = {"operation": "setup", "target": self._target, "settings": made_from}
        self._hosts = [Host(f"reward {settings.part_name}", setup) for _ in range(settings.processes)]
        self._free: asyncio.Queue[Host] | None = None

    async def score(self, ending: Ending) -> Scored:
        request = self._request([ending])
        if ending.hosted is not None and self.settings.target is None and takes_environment(load({}, self._target)):
            request |= {"key": ending.hosted.key}
            found = await ending.hosted.host.call(request, self.settings.deadline_s + MARGIN_S)
        else:
            found = await self._in_own_process(request)
        (value,) = found["values"]
        return self._scored(value, found["metrics"])

    async def score_group(self, endings: Sequence[Ending]) -> Sequence[Scored]:
        found = await self._in_own_process(self._request(endings))
        return [self._scored(value, found["metrics"]) for value in found["values"]]

    def _request(self, endings: Sequence[Ending]) -> dict[str, Any]:
        return {
            "operation": "score",
            "target": self._target,
            "prompts": [list(ending.messages[: ending.asked]) for ending in endings],
            "completions": [self._completion(ending) for ending in endings],
            "rows": [{**ending.payload, **ending.metadata} for ending in endings],
            "deadline_s": self.settings.call_deadline_s,
            "key": None,
        }

    def _scored(self, value: float | None, metrics: Mapping[str, float]) -> Scored:
        return Scored({} if value is None else {self.parts[0]: value}, metrics)

    async def _in_own_process(self, request: dict[str, Any]) -> Any:
        """Call the function in a process with a free place. The place is free again when the call has ended, and not
        when nobody waits for it any more."""
        many = self._is_asynchronous()
        if self._free is None:
            self._free = asyncio.Queue()
            for _ in range(self.settings.concurrency if many else 1):
                for host in self._hosts:
                    self._free.put_nowait(host)
        free, host = self._free, await self._free.get()
        # Alone in its process, a call ends with the process; among others it ends by itself, if it can.
        call = host.begin(request, self.settings.longest_s + MARGIN_S if many else self.settings.deadline_s)
        call.add_done_callback(lambda _: free.put_nowait(host))
        return await asyncio.shield(call)

    async def close(self) -> None:
        for host in self._hosts:
            await host.close()

    def _completion(self, ending: Ending) -> Any:
        said = list(ending.messages[ending.asked :])
        if self.settings.completions == "messages":
            return said
        return next((m["content"] for m in reversed(said) if m["role"] == "assistant"), "")

    def _is_asynchronous(self) -> bool:
        return self.settings.target is not None or is_asynchronous(load({}, self._target))


def is_asynchronous(code: Callable[..., Any]) -> bool:
    """Whether calling it gives something to wait for."""
    return inspect.iscoroutinefunction(code) or inspect.iscoroutinefunction(getattr(type(code), "__call__", None))  # noqa: B004


def takes_environment(code: Callable[..., Any]) -> bool:
    """Whether a reward function can look at the environment."""
    return "environments" in inspect.signature(code).parameters


def wants_environment(code: Callable[..., Any]) -> bool:
    """Whether a reward function must have the environment."""
    parameter = inspect.signature(code).parameters.get("environments")
    return parameter is not None and parameter.default is parameter.empty


def lacking(code: Callable[..., Any], columns: Collection[str]) -> str | None:
    """Say what a reward function asks for and would not get for a task with these columns; None if there is nothing."""
    from rewards.host.calling import ABSENT, PASSED, missing

    wanted = missing(code, {*columns, *PASSED})
    if not wanted:
        return None
    if absent := [name for name in wanted if name in ABSENT]:
        return f"it asks for {absent[0]!r}, which rewards do not get here: they know no tokens and no trainer"
    there = ", ".join(map(repr, sorted(columns))) or "none"
    return f"it asks for {wanted[0]!r}, which is no column of the task; there are {there}"
