"""Requests on their way from a worker to an engine and back, many in one message.

    Line (one for each worker and engine)                  Desk (one for each engine)
    requests of the same moment ───── exchange ─────▶      runs them
    callers get their completions ◀── what has finished ── answers as soon as something has

A call of an actor costs 0.7 ms of CPU at each end, whatever it carries, and at the engine's end that time is taken from
sampling. Every call of `exchange` may bring new requests, and its answer has whatever is finished by then, whichever
call brought it. Never do more calls wait than requests are open, so a lone request still costs one call.

Both ends are plain asyncio objects; `rollout.actors.engine` joins them by Ray.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from rewards.errors import InfrastructureError
from rollout.contracts import Superseded
from rollout.types import Completion, SamplingParams, TokenIds

Request = tuple[str, TokenIds, SamplingParams]
"""A request's id, which no other request of the run has, its prompt, and how to sample."""
Outcome = Completion | Superseded | str
"""What was sampled, or why nothing could be."""
Answer = tuple[str, Outcome]
"""A request's id, and its outcome."""

IDLE_S = 0.05
MOST_WAITING = 16
"""At most so many calls of a line wait at once: an actor runs at most 1,000 calls."""
GIVEN_UP = 1000
"""A desk remembers so many requests that were given up."""


class Line:
    """The worker's end. `send` exchanges requests for answers, `give_up` ends a request that was sent."""

    def __init__(
        self, send: Callable[[Sequence[Request]], Awaitable[Sequence[Answer]]], give_up: Callable[[str], object]
    ) -> None:
        self._send = send
        self._give_up = give_up
        self._open: dict[str, asyncio.Future[Outcome]] = {}
        self._unsent: dict[str, Request] = {}
        self._calls: set[asyncio.Task[None]] = set()
        self._waiting = 0

    async def generate(self, request_id: str, prompt: TokenIds, sampling: SamplingParams) -> Completion:
        """Sample one completion. `prompt` must not change meanwhile. If the caller is cancelled, the request ends.

        Raises:
            InfrastructureError: the engine could not do it.
            Superseded: it gave the request up in favour of newer weights.
            Exception: what `send` raises, if the engine is gone.
        """
        loop = asyncio.get_running_loop()
        answered = self._open[request_id] = loop.create_future()
        if not self._unsent:
            loop.call_soon(self._flush)
        self._unsent[request_id] = (request_id, prompt, sampling)
        try:
            answer = await answered
        finally:
            if answered.cancelled():
                self._open.pop(request_id, None)
                if self._unsent.pop(request_id, None) is None:
                    self._give_up(request_id)
        if isinstance(answer, Superseded):
            raise answer
        if isinstance(answer, str):
            raise InfrastructureError(f"request {request_id}: {answer}")
        return answer

    def _flush(self) -> None:
        requests, self._unsent = tuple(self._unsent.values()), {}
        if requests:
            call = asyncio.create_task(self._exchange(requests))
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)

    async def _exchange(self, requests: Sequence[Request]) -> None:
        """Send requests. Call again while some are open and no other call would bring their answers.

        A call that fails takes its own requests along. If one fails that brought none, the engine is gone, with all
        that it had.
        """
        try:
            answered = await self._call(requests)
        except Exception as error:
            answered = True
            self._fail([request_id for request_id, *_ in requests], error)
        try:
            while not self._waiting and len(self._open) > len(self._unsent):
                if not answered:  # what is open had no answer, which should not be: do not ask in a circle
                    await asyncio.sleep(IDLE_S)
                answered = await self._call(())
        except Exception as error:
            self._fail([request_id for request_id in self._open if request_id not in self._unsent], error)

    def _fail(self, request_ids: Sequence[str], error: Exception) -> None:
        for request_id in request_ids:
            answered = self._open.pop(request_id, None)
            if answered is not None and not answered.done():
                answered.set_exception(error)
                self._give_up(request_id)

    async def _call(self, requests: Sequence[Request]) -> bool:
        """Exchange once. Return whether there was any answer."""
        self._waiting += 1
        try:
            answers = await self._send(requests)
        finally:
            self._waiting -= 1
        for request_id, answer in answers:
            if request_id in self._open and not self._open[request_id].done():  # else its caller was cancelled
                self._open.pop(request_id).set_result(answer)
        return bool(answers)


@dataclass(slots=True)
class _Place:
    """What one line has at the desk."""

    running: int = 0
    answers: list[Answer] = field(default_factory=list)
    waiting: deque[asyncio.Future[None]] = field(default_factory=deque)
    """The calls that wait for an answer."""

    def answer(self, request_id: str, answer: Outcome) -> None:
        """Have an answer for the next call."""
        self.answers.append((request_id, answer))
        if len(self.answers) == 1:  # else a call was let go for the first of them, and takes them all
            self._let_go()

    def release(self) -> None:
        """Let go the calls that are more than the running requests need."""
        while len(self.waiting) > min(self.running, MOST_WAITING):
            self._let_go()

    def _let_go(self) -> None:
        while self.waiting:
            called = self.waiting.popleft()
            if not called.done():  # else the call itself was cancelled
                called.set_result(None)
                return


class Desk:
    """The engine's end: runs the requests of all workers by `generate`."""

    def __init__(self, generate: Callable[[str, TokenIds, SamplingParams], Awaitable[Completion]]) -> None:
        self._generate = generate
        self._places: defaultdict[str, _Place] = defaultdict(_Place)
        self._running: dict[str, asyncio.Task[None]] = {}
        self._given_up: deque[str] = deque(maxlen=GIVEN_UP)

    async def exchange(self, line: str, requests: Sequence[Request]) -> list[Answer]:
        """Begin requests of a line. Return what has finished of that line; wait until something has, unless enough
        other calls wait already."""
        place = self._places[line]
        for request in requests:
            if request[0] not in self._given_up:
                self._begin(place, request)
        if not place.answers:
            called = asyncio.get_running_loop().create_future()
            place.waiting.append(called)
            place.release()
            await called
        answers, place.answers = place.answers, []
        return answers

    def give_up(self, request_id: str) -> None:
        """End a request that nobody waits for any more; it gets no answer. Ray may bring this before the request."""
        self._given_up.append(request_id)
        if request_id in self._running:
            self._running[request_id].cancel()

    def _begin(self, place: _Place, request: Request) -> None:
        def ended(task: asyncio.Task[None]) -> None:  # also if it was given up before it began
            if self._running.get(request[0]) is task:
                del self._running[request[0]]
            place.running -= 1
            place.release()

        place.running += 1
        self._running[request[0]] = task = asyncio.create_task(self._run(place, request))
        task.add_done_callback(ended)

    async def _run(self, place: _Place, request: Request) -> None:
        try:
            place.answer(request[0], await self._generate(*request))
        except asyncio.CancelledError:
            if request[0] not in self._given_up:
                place.answer(request[0], "it was cancelled in the engine")
            raise
        except Superseded as superseded:
            place.answer(request[0], superseded)
        except Exception as error:
            place.answer(request[0], str(error) or type(error).__name__)
