"""Which engine a group goes to: the one with the fewest outstanding tokens among those that can serve.

What is known where: an engine counts the tokens of all requests that it holds, whoever sent them. A worker counts the
tokens that its own groups may still take, also while their tools run and no request of theirs is anywhere. It adds
them to what the others have running.

All members of a group go to one engine, where they share the prompt's KV cache, and every trajectory stays there.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass

STATUS_S = 0.5
"""For this long a worker uses what the engines said about themselves."""
ANSWER_S = 5.0
"""An engine that does not answer for this long gets a new group only if no other answers either."""
PAUSED_S = 10.0
"""Nor does one that has been paused for this long: its push has trouble."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStatus:
    """What an engine says about itself."""

    outstanding: int
    """Tokens of the requests that it holds: their prompts, and as many as each may still sample."""
    ready: bool
    """Whether it has weights to sample from."""
    paused_s: float
    """For how long it has been paused; 0 while it samples."""


SILENT = EngineStatus(outstanding=0, ready=False, paused_s=math.inf)
"""What is taken for the status of an engine that is busy: nothing says that it has died."""


class EngineChoice:
    """Chooses among engines, by number, for the groups of one worker. `ask` returns an engine's status, or raises.
    `engines` may get further ones, of which `forget` tells."""

    def __init__(self, engines: Collection[int], ask: Callable[[int], Awaitable[EngineStatus]]) -> None:
        self._engines = engines
        self._ask = ask
        self._statuses: dict[int, EngineStatus | None] = {}
        self._asked = -STATUS_S
        self._asking = asyncio.Lock()
        self._reserved: Counter[int] = Counter()
        """Tokens that this worker's groups may take, by engine."""
        self._running: Counter[int] = Counter()
        """Of these, the tokens of requests that the engine holds."""

    async def choose(self, group_id: str, tokens: int) -> int:
        """Return the engine for a group, and count `tokens` for it until `release`. Wait while all have died, or were
        started again and have no weights yet; the caller's deadline ends that."""
        while not (choices := await self._choices()):
            await asyncio.sleep(STATUS_S)
        # Equal loads are told apart by the group, so that workers do not all choose the same engine.
        chosen = min(choices, key=lambda engine: (self._load(engine), _mixed(f"{group_id}/{engine}")))
        self._reserved[chosen] += tokens
        return chosen

    async def _choices(self) -> list[int]:
        """The best engines that there are: those that serve, else those that a push has paused for long, else those
        that do not answer."""
        async with self._asking:
            engines = [*self._engines]
            if time.monotonic() - self._asked >= self._fresh_s(engines):
                answers = await asyncio.gather(*(self._status(engine) for engine in engines))
                self._statuses = dict(zip(engines, answers, strict=True))
                self._asked = time.monotonic()
        alive = {engine: status for engine, status in self._statuses.items() if status is not None}
        with_weights = [engine for engine, status in alive.items() if status.ready]
        serving = [engine for engine in with_weights if alive[engine].paused_s < PAUSED_S]
        return serving or with_weights or [engine for engine, status in alive.items() if status is SILENT]

    def _fresh_s(self, engines: Collection[int]) -> float:
        """For how long what engines said is believed. A single one that serves is chosen until `forget` is called."""
        alone = [self._statuses.get(engine) for engine in engines] if len(engines) == 1 else []
        return math.inf if alone and alone[0] is not None and alone[0].ready else STATUS_S

    def release(self, engine: int, tokens: int) -> None:
        """Forget a group that has ended."""
        self._reserved[engine] -= tokens

    def started(self, engine: int, tokens: int) -> None:
        """Note a request of this worker, of so many tokens."""
        self._running[engine] += tokens

    def ended(self, engine: int, tokens: int) -> None:
        """Note that such a request has ended."""
        self._running[engine] -= tokens

    def forget(self) -> None:
        """Ask the engines again before the next choice, because one of them has died or come."""
        self._asked = -STATUS_S

    def _load(self, engine: int) -> int:
        status = self._statuses[engine]
        assert status is not None, "only engines that answer are compared"
        others = max(0, status.outstanding - self._running[engine])
        return others + self._reserved[engine]

    async def _status(self, engine: int) -> EngineStatus | None:
        try:
            return await asyncio.wait_for(self._ask(engine), ANSWER_S)
        except TimeoutError:
            return SILENT
        except Exception:  # it has died
            return None


def _mixed(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
