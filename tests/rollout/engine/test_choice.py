"""Engines are chosen by load: numbers by hand, and engines that cannot serve."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest

from rollout.engine import choice as module
from rollout.engine.choice import EngineChoice, EngineStatus


def status(outstanding: int = 0, *, ready: bool = True, paused_s: float = 0.0) -> EngineStatus:
    return EngineStatus(outstanding=outstanding, ready=ready, paused_s=paused_s)


def saying(*statuses: EngineStatus | Exception) -> EngineChoice:
    async def ask(engine: int) -> EngineStatus:
        found = statuses[engine]
        if isinstance(found, Exception):
            raise found
        return found

    return EngineChoice(range(len(statuses)), ask)


def choose(choice: EngineChoice, *groups: str, tokens: int = 10) -> list[int]:
    async def every() -> list[int]:
        return [await choice.choose(group, tokens) for group in groups]

    return asyncio.run(every())


def test_the_fewest_outstanding_tokens_win() -> None:
    assert choose(saying(status(30), status(5), status(40)), "a", "b", "c", "d") == [1, 1, 1, 0]


def test_groups_count_until_they_are_released_also_while_their_tools_run() -> None:
    choice = saying(status(), status())
    first, second = choose(choice, "a", "b", tokens=100)
    assert {first, second} == {0, 1}
    choice.release(first, 100)
    assert choose(choice, "c", tokens=60) == [first]
    assert choose(choice, "d", tokens=10) == [first], "60 there, 100 on the other"


def test_a_workers_own_requests_are_not_counted_twice() -> None:
    """Engine 0 holds 50 tokens, all of this worker's group there, which counts with 60; engine 1 holds 70 of others."""
    choice = saying(status(50), status(75))
    choice._reserved[0] = 60
    choice.started(0, 50)
    assert choose(choice, "a", "b", "c", tokens=10) == [0, 0, 1], "60, 70 and 80 of its own against 75"


@pytest.mark.parametrize(
    "other", [status(ready=False), status(paused_s=module.PAUSED_S), ConnectionError("it died"), TimeoutError()]
)
def test_an_engine_that_cannot_serve_gets_no_group(other: EngineStatus | Exception) -> None:
    assert choose(saying(other, status(1000)), *"abc") == [1, 1, 1]


def test_engines_that_a_push_has_paused_for_a_moment_are_waited_for() -> None:
    assert choose(saying(status(paused_s=0.5), status(1000)), "a") == [0]
    assert choose(saying(ConnectionError(), status(paused_s=100.0)), "a") == [1], "rather that one than none"


def test_a_group_waits_for_an_engine_that_is_started_again_until_it_has_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "STATUS_S", 0.01)
    said = [ConnectionError(), ConnectionError(), status(ready=False), status(ready=False), status()]
    asked = iter(said)

    async def ask(engine: int) -> EngineStatus:
        found = next(asked)
        if isinstance(found, Exception):
            raise found
        return found

    assert choose(EngineChoice([0], ask), "a") == [0]
    assert list(asked) == []


def test_an_engine_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ANSWER_S", 0.05)

    async def ask(engine: int) -> EngineStatus:
        if engine == 0:
            await asyncio.sleep(60)
        return status(7)

    assert choose(EngineChoice([0, 1], ask), "a") == [1]


def test_an_engine_that_is_too_busy_to_answer_is_better_than_none() -> None:
    """A machine that is busy for some seconds must not cost the groups that begin then."""
    assert choose(saying(TimeoutError()), "a") == [0]
    assert choose(saying(ConnectionError(), TimeoutError()), "a") == [1]
    assert choose(saying(TimeoutError(), status(1000, paused_s=100.0)), "a") == [1], "rather one that answers"


def test_equal_engines_are_spread_over_groups_of_different_workers() -> None:
    chosen = Counter(choose(saying(status(), status(), status()), f"g{i}")[0] for i in range(60))
    assert min(chosen.values()) >= 10 and len(chosen) == 3


def test_one_that_joins_gets_groups_as_soon_as_it_is_told_of() -> None:
    engines = {0: status(30)}

    async def ask(engine: int) -> EngineStatus:
        return engines[engine]

    choice = EngineChoice(engines.keys(), ask)

    async def run() -> list[int]:
        before = await choice.choose("a", 10)
        engines[3] = status()
        choice.forget()
        return [before, await choice.choose("b", 10)]

    assert asyncio.run(run()) == [0, 3]


def test_engines_are_asked_once_for_many_groups_and_again_when_one_has_died() -> None:
    asked: list[int] = []

    def counting(found: EngineStatus) -> Callable[[int], Awaitable[EngineStatus]]:
        async def ask(engine: int) -> EngineStatus:
            asked.append(engine)
            return found

        return ask

    choice = EngineChoice([0, 1], counting(status()))

    async def run() -> None:
        await asyncio.gather(*(choice.choose(f"g{i}", 10) for i in range(20)))
        assert asked == [0, 1]
        choice.forget()
        await choice.choose("later", 10)
        assert asked == [0, 1, 0, 1]

    asyncio.run(run())
