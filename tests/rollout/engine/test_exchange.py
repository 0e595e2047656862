"""The two ends of a line, joined without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from rewards.errors import InfrastructureError
from rollout.engine import exchange
from rollout.engine.exchange import Answer, Desk, Line, Request
from rollout.types import Completion, SamplingParams, TokenIds

SAMPLING = SamplingParams(max_tokens=1)
DEADLINE_S = 30


class Engine:
    """Answers when it is told to, and counts the calls that reach it."""

    def __init__(self) -> None:
        self.running: dict[str, asyncio.Future[int]] = {}
        self.cancelled: list[str] = []
        self.calls: list[int] = []
        self.waiting = self.most_waiting = 0
        self.desk = Desk(self.generate)

    async def generate(self, request_id: str, prompt: TokenIds, sampling: SamplingParams) -> Completion:
        self.running[request_id] = asyncio.get_running_loop().create_future()
        try:
            token = await self.running[request_id]
        except asyncio.CancelledError:
            self.cancelled.append(request_id)
            raise
        finally:
            del self.running[request_id]
        return Completion(token_ids=(token,), logprobs=(-1.0,), versions=(0,), finish_reason="stop")  # type: ignore[arg-type]

    def line(self, name: str = "worker") -> Line:
        async def send(requests: Sequence[Request]) -> list[Answer]:
            self.calls.append(len(requests))
            self.waiting += 1
            self.most_waiting = max(self.most_waiting, self.waiting)
            await asyncio.sleep(0)  # the way there
            try:
                answers = await self.desk.exchange(name, requests)
            finally:
                self.waiting -= 1
            await asyncio.sleep(0)  # the way back
            return answers

        def give_up(request_id: str) -> None:
            asyncio.get_running_loop().call_later(0.01, self.desk.give_up, request_id)  # behind the request

        return Line(send, give_up)

    async def until_running(self, count: int) -> None:
        async with asyncio.timeout(DEADLINE_S):
            while len(self.running) != count:
                await asyncio.sleep(0)

    def finish(self, *request_ids: str) -> None:
        for request_id in request_ids:
            self.running[request_id].set_result(int(request_id))

    async def settle(self) -> None:
        """Wait until no call is on its way any more."""
        async with asyncio.timeout(DEADLINE_S):
            while self.waiting:
                await asyncio.sleep(0)


def ask(line: Line, *request_ids: str) -> list[asyncio.Task[Completion]]:
    return [asyncio.create_task(line.generate(request_id, [1], SAMPLING)) for request_id in request_ids]


async def tokens(running: Sequence[asyncio.Task[Completion]]) -> list[int]:
    async with asyncio.timeout(DEADLINE_S):
        return [completion.token_ids[0] for completion in await asyncio.gather(*running)]


def test_requests_of_one_moment_travel_together_and_so_do_their_answers() -> None:
    async def run() -> None:
        engine = Engine()
        running = ask(engine.line(), *map(str, range(8)))
        await engine.until_running(8)
        assert engine.calls == [8]
        engine.finish(*map(str, range(8)))
        assert await tokens(running) == list(range(8))
        await engine.settle()
        assert engine.calls == [8]

    asyncio.run(run())


def test_answers_come_in_any_order_and_a_lone_request_costs_one_call() -> None:
    async def run() -> None:
        engine = Engine()
        line = engine.line()
        running = []
        for number in range(3):
            running += ask(line, str(number))
            await engine.until_running(number + 1)
        for number in (2, 0, 1):
            engine.finish(str(number))
            assert await tokens([running[number]]) == [number]
        await engine.settle()
        assert engine.calls == [1, 1, 1]

    asyncio.run(run())


def test_a_call_goes_out_again_while_requests_are_open() -> None:
    async def run() -> None:
        engine = Engine()
        running = ask(engine.line(), "0", "1", "2")
        await engine.until_running(3)
        for number in range(3):
            engine.finish(str(number))
            assert await tokens([running[number]]) == [number]
        await engine.settle()
        assert engine.calls == [3, 0, 0]

    asyncio.run(run())


def test_calls_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange, "MOST_WAITING", 4)

    async def run() -> None:
        engine = Engine()
        line = engine.line()
        running = []
        for number in range(20):
            running += ask(line, str(number))
            await engine.until_running(number + 1)
        assert engine.most_waiting <= 5
        engine.finish(*map(str, range(20)))
        assert await tokens(running) == list(range(20))
        await engine.settle()

    asyncio.run(run())


def test_every_request_is_answered_whatever_the_order_of_arrivals_and_ends() -> None:
    async def one(line: Line, number: int) -> int:
        for _ in range(number * 7 % 5):
            await asyncio.sleep(0)
        return (await line.generate(str(number), [1], SAMPLING)).token_ids[0]

    async def run() -> None:
        engine = Engine()
        lines = [engine.line("a"), engine.line("b")]
        members = [asyncio.create_task(one(lines[number % 2], number)) for number in range(300)]
        async with asyncio.timeout(DEADLINE_S):
            while not all(member.done() for member in members):
                for request_id in sorted(engine.running, key=lambda text: int(text) * 37 % 101)[:3]:
                    if not engine.running[request_id].done():
                        engine.finish(request_id)
                await asyncio.sleep(0)
        assert [member.result() for member in members] == list(range(300))
        await engine.settle()
        assert sum(engine.calls) == 300 and len(engine.calls) <= 600

    asyncio.run(run())


def test_an_error_reaches_the_request_that_had_it_and_no_other() -> None:
    async def run() -> None:
        engine = Engine()
        broken, fine = ask(engine.line(), "0", "1")
        await engine.until_running(2)
        engine.running["0"].set_exception(ValueError("a prompt of 9 tokens leaves no room"))
        with pytest.raises(InfrastructureError, match="request 0: a prompt of 9 tokens leaves no room"):
            await asyncio.wait_for(broken, DEADLINE_S)
        engine.finish("1")
        assert await tokens([fine]) == [1]

    asyncio.run(run())


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 4, 5, 6, 7])
def test_a_request_that_its_caller_gives_up_ends_in_the_engine(turns: int) -> None:
    """Wherever it is by then: not yet sent, on its way, not yet begun, running."""

    async def run() -> None:
        engine = Engine()
        given_up, kept = ask(engine.line(), "0", "1")
        for _ in range(turns):
            await asyncio.sleep(0)
        given_up.cancel()
        await asyncio.wait([given_up])
        assert given_up.cancelled()
        await engine.until_running(1)
        engine.finish("1")
        assert await tokens([kept]) == [1]
        await engine.settle()
        assert not engine.running and sum(engine.calls) in (1, 2)

    asyncio.run(run())


def test_a_request_that_is_given_up_before_it_arrives_is_never_begun() -> None:
    async def run() -> None:
        engine = Engine()
        engine.desk.give_up("0")
        running = asyncio.create_task(engine.desk.exchange("worker", [("0", [1], SAMPLING), ("1", [1], SAMPLING)]))
        await engine.until_running(1)
        engine.finish("1")
        ((request_id, _),) = await asyncio.wait_for(running, DEADLINE_S)
        assert request_id == "1" and not engine.running

    asyncio.run(run())


def test_a_request_that_the_engine_cancels_by_itself_is_answered() -> None:
    async def run() -> None:
        engine = Engine()
        (running,) = ask(engine.line(), "0")
        await engine.until_running(1)
        engine.running["0"].cancel()
        with pytest.raises(InfrastructureError, match="request 0: it was cancelled in the engine"):
            await asyncio.wait_for(running, DEADLINE_S)
        await engine.settle()
        assert engine.calls == [1]

    asyncio.run(run())


def test_a_message_that_cannot_be_sent_takes_only_its_own_requests_along() -> None:
    async def run() -> None:
        engine = Engine()
        line = engine.line()
        send = line._send

        async def refuse(requests: Sequence[Request]) -> Sequence[Answer]:
            if any(request[0] == "1" for request in requests):
                raise TypeError("cannot pickle this")
            return await send(requests)

        line._send = refuse
        good = ask(line, "0")
        await engine.until_running(1)
        (bad,) = ask(line, "1")
        with pytest.raises(TypeError, match="cannot pickle"):
            await asyncio.wait_for(bad, DEADLINE_S)
        engine.finish("0")
        assert await tokens(good) == [0]

    asyncio.run(run())


def test_when_the_engine_is_gone_every_caller_is_told_and_so_is_the_next() -> None:
    async def run() -> None:
        async def send(requests: Sequence[Request]) -> list[Answer]:
            await gone.wait()
            raise ConnectionError("the engine is gone")

        gone = asyncio.Event()
        line = Line(send, lambda request_id: None)
        running = ask(line, "0", "1")
        await asyncio.sleep(0)
        running += ask(line, "2")
        gone.set()
        ended = await asyncio.wait_for(asyncio.gather(*running, return_exceptions=True), DEADLINE_S)
        assert [str(error) for error in ended] == ["the engine is gone"] * 3
        with pytest.raises(ConnectionError):
            await asyncio.wait_for(line.generate("3", [1], SAMPLING), DEADLINE_S)

    asyncio.run(run())
