"""The program of a `rewards.host.host.Host`: it imports plain Python code, and calls it when asked.

    python -m rewards.host.serve FD

The main thread runs an event loop. Code that is asynchronous runs in it. Other code runs in it, too, one call after the
other, because some of it works in no other thread (it sets alarms, say); or in threads, where the host asked for them.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import socket
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from rewards.errors import InfrastructureError
from rewards.extension import load
from rewards.host.calling import call_tool, missing, score_all, select
from rewards.host.host import HEADER, framed

STUCK = 16
"""So many threads that are stuck end the process."""
THREADS = 256
"""Calls of code that is not asynchronous that run at once, at most."""


class Server:
    """Answers requests. Each names an operation, which is a method here, and gives its arguments."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._functions: dict[str, Callable[..., Any]] = {}
        self._objects: dict[str, Any] = {}
        self._given_up: set[str] = set()
        """Environments that were dropped before they were made."""
        self._pool: ThreadPoolExecutor | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._stuck = 0
        """Threads that still work on a call whose time was over."""

    async def serve(self) -> None:
        """Answer until the other side is gone. Then the process ends, whatever runs."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._listen, args=(loop,), daemon=True).start()
        await asyncio.Event().wait()

    async def setup(self, target: str | None, settings: dict[str, Any] | None, threads: bool) -> None:
        """Import the code that will be called. With `settings` it is a class that makes the function from them; their
        class is its attribute `Settings`."""
        if threads:
            self._pool = ThreadPoolExecutor(THREADS)
        if target is not None:
            code = load({}, target)
            if settings is not None:
                code = code(code.Settings.model_validate_json(json.dumps(settings)))
            self._functions[target] = code

    async def score(
        self,
        target: str,
        prompts: list[Any],
        completions: list[Any],
        rows: list[dict[str, Any]],
        key: str | None,
        deadline_s: float | None,
    ) -> dict[str, Any]:
        """Let a reward function score completions. The deadline ends this call alone, unless the code blocks the main
        thread: then the host ends the process."""
        environment = None if key is None else self._object(key)
        scoring = score_all(self._function(target), prompts, completions, rows, environment=environment, run=self._run)
        values, metrics = await self._within(deadline_s, scoring)
        return {"values": values, "metrics": metrics}

    async def tool(self, target: str, name: str, arguments: dict[str, Any], deadline_s: float) -> str:
        """Call a function as a tool. Its result, or what it raised, is a text for the model."""
        return await self._call(self._function(target), name, arguments, deadline_s)

    async def make(self, key: str, target: str) -> None:
        """Make an environment, unless it was given up meanwhile."""
        made = await self._run(load({}, target))
        if key in self._given_up:
            self._given_up.discard(key)
            await self._leave(made)
        else:
            self._objects[key] = made

    async def reset(self, key: str, columns: dict[str, Any]) -> Any:
        """Begin an episode. Returns what the environment shows first."""
        method = self._object(key).reset
        given = columns | dict.fromkeys(missing(method, columns))  # a row without a column has a null there
        return await self._run(method, **select(method, given))

    async def act(self, key: str, name: str, arguments: dict[str, Any], deadline_s: float) -> str:
        """Call a method of an environment as a tool."""
        return await self._call(getattr(self._object(key), name), name, arguments, deadline_s)

    async def reward(self, key: str, deadline_s: float) -> float | None:
        """The reward that an environment gives by itself."""
        value = await self._within(deadline_s, self._run(self._object(key).get_reward))
        return None if value is None else float(value)

    async def drop(self, key: str) -> None:
        """Forget an environment, after a last word to it if it listens."""
        if key in self._objects:
            await self._leave(self._objects.pop(key))
        else:
            self._given_up.add(key)

    async def _leave(self, environment: Any) -> None:
        if hasattr(environment, "close"):
            await self._run(environment.close)

    async def _call(self, code: Callable[..., Any], name: str, arguments: dict[str, Any], deadline_s: float) -> str:
        try:
            async with asyncio.timeout(deadline_s):
                return await call_tool(code, arguments, self._run)
        except TimeoutError:
            if self._stuck >= STUCK:
                raise InfrastructureError(f"{STUCK} calls are stuck in their threads, the last one of {name}") from None
            return f"error: {name} took longer than {deadline_s:g} s"

    async def _within(self, deadline_s: float | None, work: Awaitable[Any]) -> Any:
        try:
            async with asyncio.timeout(deadline_s) as limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            raise InfrastructureError(f"it took longer than {deadline_s:g} s") from None

    def _object(self, key: str) -> Any:
        if key not in self._objects:
            raise InfrastructureError("the environment was lost when its process ended")
        return self._objects[key]

    def _function(self, target: str) -> Callable[..., Any]:
        if target not in self._functions:
            self._functions[target] = load({}, target)
        return self._functions[target]

    async def _run(self, code: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
        """Call code that may be asynchronous, or not."""
        if self._pool is None or inspect.iscoroutinefunction(code):
            result = code(*arguments, **named)
        else:
            result = await self._in_thread(self._pool, lambda: code(*arguments, **named))
        return await result if inspect.isawaitable(result) else result

    async def _in_thread(self, pool: ThreadPoolExecutor, code: Callable[[], Any]) -> Any:
        work = asyncio.get_running_loop().run_in_executor(pool, code)
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            if not work.done():
                self._stuck += 1
                work.add_done_callback(self._unstick)
            raise

    def _unstick(self, work: asyncio.Future[Any]) -> None:
        self._stuck -= 1
        if not work.cancelled():
            work.exception()  # nobody else looks at it

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            with self._connection.makefile("rb") as requests:
                while len(header := requests.read(HEADER)) == HEADER:
                    request = json.loads(requests.read(int.from_bytes(header)))
                    loop.call_soon_threadsafe(self._begin, request)
        finally:  # the other side is gone, perhaps in the middle of a request
            os._exit(0)

    def _begin(self, request: dict[str, Any]) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(**request))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer(self, number: int, operation: str, **arguments: Any) -> None:
        try:
            answer = framed({"number": number, "value": await getattr(self, operation)(**arguments)})
        except Exception as error:  # whatever the code raises
            traceback.print_exc()
            text = f"{type(error).__name__}: {error}"
            infrastructure = isinstance(error, InfrastructureError)
            answer = framed({"number": number, "error": text, "infrastructure": infrastructure})
        self._connection.sendall(answer)
        if self._stuck >= STUCK:
            os._exit(1)


if __name__ == "__main__":
    fd = int(sys.argv[1])
    os.set_inheritable(fd, False)
    try:
        asyncio.run(Server(socket.socket(fileno=fd)).serve())
    except SystemExit as left:  # of code in the main thread; threads may still be busy
        os._exit(left.code if isinstance(left.code, int) else 1)
