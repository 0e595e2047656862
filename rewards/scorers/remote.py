"""What rewards have in common that ask somebody else: the rate of requests, and trying again."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

from rewards.errors import InfrastructureError
from rewards.scorers.config import RemoteSettings

Answer = TypeVar("Answer")
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 30.0


class Again(Exception):
    """The request should be made again, after a time if the other side named one."""

    def __init__(self, why: str, after_s: float | None = None) -> None:
        super().__init__(why)
        self.after_s = after_s


class Remote:
    """Makes requests at most so often, and makes those that failed again, each time after a longer pause."""

    def __init__(self, *, retries: int, requests_per_minute: float | None, deadline_s: float) -> None:
        self._retries, self._deadline_s = retries, deadline_s
        self._interval_s = 0.0 if requests_per_minute is None else 60.0 / requests_per_minute
        self._next = 0.0

    async def __call__(self, request: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the answer to a request that raises `Again` when it should be repeated.

        Raises:
            InfrastructureError: it failed each time, or all tries together took longer than `deadline_s`. To wait for a
                turn is not counted.
        """
        pause, left_s = FIRST_PAUSE_S, self._deadline_s
        for tries in range(self._retries + 1):
            await self._turn()
            begin = time.monotonic()
            try:
                async with asyncio.timeout(left_s):
                    return await request()
            except TimeoutError:
                raise InfrastructureError(f"it took longer than {self._deadline_s:g} s ({tries + 1} tries)") from None
            except Again as error:
                if tries == self._retries:
                    raise InfrastructureError(f"{error} ({tries + 1} tries)") from None
                await asyncio.sleep(min(error.after_s or pause, LONGEST_PAUSE_S))
                pause *= 2
            left_s -= time.monotonic() - begin
        raise AssertionError("the last try returns or raises")

    async def _turn(self) -> None:
        begin = max(self._next, time.monotonic())
        self._next = begin + self._interval_s
        await asyncio.sleep(begin - time.monotonic())


def remote_of(settings: RemoteSettings) -> Remote:
    """What makes the requests of a reward with these settings."""
    return Remote(
        retries=settings.retries,
        requests_per_minute=settings.requests_per_minute,
        deadline_s=settings.deadline_s,
    )


def api_key(settings: RemoteSettings) -> str | None:
    """The key that the settings name. Raises InfrastructureError if the variable is not set."""
    name = settings.api_key_env
    if name is None:
        return None
    if not os.environ.get(name):
        raise InfrastructureError(f"the environment variable {name} (api_key_env) is not set")
    return os.environ[name]


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """How long the other side asks to wait; None if it does not say so in seconds."""
    try:
        return max(0.0, float(headers["retry-after"]))
    except (KeyError, ValueError):
        return None
