"""A process of its own for code that is not Sluice's: rewards, tools and environments in plain Python.

What the code does there (it crashes, leaks, hangs, prints, changes a setting of the interpreter) reaches nobody else.
The process is started when it is needed first, is started again after it has ended, and ends with its parent. Requests
and answers are JSON, each behind its length, over a socket pair; `rewards.host.serve` is the other side.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rewards.errors import InfrastructureError, one_line

START_S = 120.0
"""How long the process may take to start and to import the code."""
HEADER = 8
"""Bytes of the length before a message."""
_CHARACTERS = 500
_REPOSITORY = Path(__file__).resolve().parents[2]


class CodeFailed(InfrastructureError):
    """The code raised an exception. The message has its type and text."""


class Host:
    """One process. It serves any number of calls at the same time.

    Args:
        what: what runs there, in messages: `reward mine.py:accuracy`.
        setup: what the process is told first (`rewards.host.serve`).
        threads: run code that is not asynchronous in threads, so that calls of it do not wait for each other. Without
            it such code runs in the main thread, one call after the other.
    """

    def __init__(self, what: str, setup: Mapping[str, Any], *, threads: bool = False) -> None:
        self._what = what
        self._setup = {**setup, "threads": threads}
        self._process: _Process | None = None
        self._starting = asyncio.Lock()

    async def call(self, request: Mapping[str, Any], deadline_s: float) -> Any:
        """Return the answer to a request.

        Raises:
            CodeFailed: the code raised an exception.
            InfrastructureError: the process ended meanwhile, or did not answer in time, and then it is ended.
        """
        return await asyncio.shield(self.begin(request, deadline_s))

    def begin(self, request: Mapping[str, Any], deadline_s: float) -> asyncio.Task[Any]:
        """Begin a call. It ends with an answer or at its deadline, also when nobody waits for it any more: otherwise a
        process that hangs would be given to the next caller."""
        call = asyncio.create_task(self._call(request, deadline_s))
        call.add_done_callback(lambda done: done.cancelled() or done.exception())  # so that nobody misses it
        return call

    async def _call(self, request: Mapping[str, Any], deadline_s: float) -> Any:
        process = await self._running()
        try:
            async with asyncio.timeout(deadline_s):
                return await process.ask(request)
        except TimeoutError:
            process.kill()
            raise InfrastructureError(f"{self._what} took longer than {deadline_s:g} s") from None

    async def close(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()

    async def _running(self) -> _Process:
        async with self._starting:
            if self._process is None or self._process.ended:
                self._process = await _Process.start(self._what)
                try:
                    async with asyncio.timeout(START_S):
                        await self._process.ask(self._setup)
                except TimeoutError:
                    self._process.kill()
                    raise InfrastructureError(f"{self._what} did not start within {START_S:g} s") from None
                except BaseException:  # a process that was set up in part must not be used
                    self._process.kill()
                    raise
            return self._process


class _Process:
    """A running process, and the calls that wait for its answers."""

    def __init__(
        self, what: str, process: asyncio.subprocess.Process, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self._what, self._process, self._reader, self._writer = what, process, reader, writer
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._number = 0
        self.ended = False
        self._listening = asyncio.create_task(self._listen())

    @classmethod
    async def start(cls, what: str) -> _Process:
        ours, theirs = socket.socketpair()
        with theirs:
            path = os.pathsep.join([str(_REPOSITORY), *filter(None, sys.path)])
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "rewards.host.serve", str(theirs.fileno())),
                pass_fds=[theirs.fileno()],
                stdin=asyncio.subprocess.DEVNULL,
                env={**os.environ, "PYTHONPATH": path},
                start_new_session=True,
            )
        reader, writer = await asyncio.open_connection(sock=ours)
        return cls(what, process, reader, writer)

    async def ask(self, request: Mapping[str, Any]) -> Any:
        if self.ended:
            raise InfrastructureError(f"the process of {self._what} has ended")
        self._number += 1
        number = self._number
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._writer.write(framed({"number": number, **request}))
            with contextlib.suppress(ConnectionError):  # `_listen` says how it ended
                await self._writer.drain()
            return await answer
        finally:
            self._waiting.pop(number, None)

    def kill(self) -> None:
        """End the process, and those that it started unless they have left its group."""
        if self.ended:  # its id may be another process's by now
            return
        self.ended = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def _listen(self) -> None:
        try:
            while True:
                length = int.from_bytes(await self._reader.readexactly(HEADER))
                answer = json.loads(await self._reader.readexactly(length))
                waiting = self._waiting.get(answer["number"])
                if waiting is None or waiting.done():  # nobody waits any more
                    continue
                if "error" in answer:
                    kind = InfrastructureError if answer.get("infrastructure") else CodeFailed
                    waiting.set_exception(kind(f"{self._what}: {one_line(answer['error'], _CHARACTERS)}"))
                else:
                    waiting.set_result(answer["value"])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.kill()
            code = await self._process.wait()
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_exception(InfrastructureError(f"the process of {self._what} ended {_how(code)}"))
            self._writer.close()


def framed(message: Mapping[str, Any]) -> bytes:
    """A message as it travels."""
    content = json.dumps(message).encode()
    return len(content).to_bytes(HEADER) + content


def _how(code: int) -> str:
    if code < 0:
        return f"by {signal.Signals(-code).name}"
    return f"with exit code {code}"
