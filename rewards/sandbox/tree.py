"""A running execution: its status and output are read, then all its processes are killed and reaped."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from rewards.errors import InfrastructureError
from rewards.sandbox.cgroups import Cgroup
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.counting import takes_more, unlinked

log = logging.getLogger(__name__)

_CHILD_PID = re.compile(rb'"child-pid": *(\d+)')
_READY = b"READY\n"
_STATUS_BYTES = 4096
_REAP_S = 10.0
_DRAIN_S = 2.0
_COUNT_S, _OOM_S, _LOOK_S = 0.05, 0.5, 10.0
_MEMORY_EXIT = 86
_SIGNALLED = 128
"""bubblewrap exits with so much more than the number of the signal that ended the program."""


class Outcome(StrEnum):
    """How an execution ended. The code itself causes every outcome except INFRASTRUCTURE and STOPPED."""

    OK = "ok"
    FAILED = "failed"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_LIMIT = "output_limit"
    STOPPED = "stopped"
    """We ended it, because nobody needed it any longer."""
    INFRASTRUCTURE = "infrastructure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """The result of one execution. `exit_code` is negative for a signal. It is None if we ended the execution, if it
    never began, or if its runner reported no end."""

    outcome: Outcome
    stdout: str
    stderr: str
    exit_code: int | None
    wall_s: float

    def raise_for_infrastructure(self) -> Execution:
        """Return this execution, or raise InfrastructureError if the sandbox failed, which is no observation."""
        if self.outcome is Outcome.INFRASTRUCTURE:
            raise InfrastructureError(f"sandbox: {self.stderr}")
        return self


class Tree:
    """One running execution: reads its status and output, then kills and reaps all its processes. Making one raises
    OSError, and leaves no process, if this process is out of descriptors."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        status: socket.socket,
        *,
        isolated: bool,
        cgroup: Cgroup | None,
        limits: SandboxConfig,
    ) -> None:
        self._process = process
        self._cgroup = cgroup
        self._limits = limits
        self._status_socket = status
        self._isolated = isolated
        self._status = b""
        self._output_exceeded = asyncio.Event()
        self._room = 0
        self._stopped = False
        self._broken: str | None = None
        self._too_much = False
        self._has_room: Callable[[], Awaitable[bool]] | None = None
        self._look: asyncio.Future[bool] | None = None
        self._looked = 0.0
        self._first = 0
        try:
            # Signals go through pidfds, which never refer to a later process with the same pid.
            self._pidfds = [os.pidfd_open(process.pid)]
        except OSError:
            process.kill()
            process.communicate()
            raise

    async def attend(
        self,
        wall_s: float,
        started: float,
        unneeded: asyncio.Event | None = None,
        has_room: Callable[[], Awaitable[bool]] | None = None,
    ) -> Execution:
        """Wait for the end, the deadline, too much output or memory, a full workspace, the event or a cancellation.
        Then kill, reap and return the result."""
        self._has_room = has_room
        self._room = self._limits.output_kb * 1024
        self._status_socket.setblocking(False)
        assert self._process.stdout is not None and self._process.stderr is not None
        reading = asyncio.create_task(self._read_status())
        ended = asyncio.create_task(_readable(self._pidfds[0]))
        flooded = asyncio.create_task(self._output_exceeded.wait())
        stopped = asyncio.create_task((unneeded or asyncio.Event()).wait())
        outputs = (self._process.stdout, self._process.stderr)
        readers = [asyncio.create_task(self._read_output(stream.fileno())) for stream in outputs]
        in_time = False
        try:
            in_time = await self._wait({ended, flooded, stopped}, started + wall_s)
        finally:
            self._kill()
            self._stopped = stopped.done() and not ended.done()
            flooded.cancel()
            stopped.cancel()
            if self._look is not None:
                self._look.cancel()
            try:
                reaped = await _to_the_end(self._reap({ended, reading, *readers}))
            finally:
                for pidfd in self._pidfds:
                    os.close(pidfd)
                for resource in (*outputs, self._status_socket):
                    resource.close()
                killed = self._remove_cgroup()
        stdout, stderr = (
            r.result().decode(errors="replace") if r.done() and not r.cancelled() else "" for r in readers
        )
        if not reaped or self._broken or _READY not in self._status:
            return infrastructure(self._broken or stderr.strip() or "the sandbox did not start in time", started)
        took_s = time.monotonic() - started
        outcome, exit_code = (Outcome.MEMORY, None) if killed else self._classify(in_time, took_s)
        return Execution(outcome=outcome, stdout=stdout, stderr=stderr, exit_code=exit_code, wall_s=took_s)

    async def _wait(self, ends: set[asyncio.Task[Any]], deadline: float) -> bool:
        """Wait for one of the ends, or until the memory is used up; return whether that was before the deadline."""
        while (left_s := deadline - time.monotonic()) > 0 and not self._broken:
            tick = _COUNT_S if self._cgroup is None else _OOM_S
            done, _ = await asyncio.wait(ends, timeout=min(left_s, tick), return_when=asyncio.FIRST_COMPLETED)
            if done or self._takes_too_much() or not self._has_space():
                return True
        return False

    def _has_space(self) -> bool:
        """Whether the workspace has room left, as far as is known: somebody looks all the time. A look that takes long
        means that there are too many files."""
        if self._has_room is None:
            return True
        if self._look is None or (self._look.done() and not self._look.cancelled() and self._look.result()):
            self._look, self._looked = asyncio.ensure_future(self._has_room()), time.monotonic()
        self._too_much = self._look.done() or time.monotonic() - self._looked > _LOOK_S
        self._too_much |= unlinked(self._first) > self._limits.workspace_mb << 20
        return not self._too_much

    def _takes_too_much(self) -> bool:
        """Whether the memory is used up. A group's kernel ends one process then, and the others would go on."""
        if self._cgroup is not None:
            self._too_much = self._cgroup.out_of_memory()
        elif self._isolated and len(self._pidfds) > 1 and _READY in self._status:
            # Before that its file systems may still be the host's.
            self._too_much = takes_more(self._first, self._limits.memory_mb << 20)
        return self._too_much

    def _classify(self, in_time: bool, took_s: float) -> tuple[Outcome, int | None]:
        if self._output_exceeded.is_set():
            return Outcome.OUTPUT_LIMIT, None
        if self._stopped:
            return Outcome.STOPPED, None
        if self._too_much:
            return Outcome.MEMORY, None
        if not in_time:
            return Outcome.TIMEOUT, None
        code = self._process.returncode
        if self._isolated and code > _SIGNALLED:
            code = _SIGNALLED - code
        # A program that ignores the first signal of its CPU limit gets the second one, which it could also send itself.
        spent = took_s * (os.cpu_count() or 1) >= self._limits.cpu_s
        if code == -signal.SIGXCPU or (code == -signal.SIGKILL and spent):
            return Outcome.TIMEOUT, code
        if code == _MEMORY_EXIT:
            return Outcome.MEMORY, code
        return (Outcome.OK if code == 0 else Outcome.FAILED), code

    async def _read_status(self) -> None:
        """Collect the reports of bubblewrap and the runner, until both have closed the socket."""
        loop = asyncio.get_running_loop()
        while len(self._status) < _STATUS_BYTES:
            chunk = await loop.sock_recv(self._status_socket, _STATUS_BYTES)
            if not chunk:
                return
            self._status += chunk
            if len(self._pidfds) == 1 and (found := _CHILD_PID.search(self._status)):
                self._found(int(found[1]))

    def _found(self, first: int) -> None:
        """Put process 1 of the namespace, which waits for that, into the execution's control group."""
        try:
            self._first = first
            self._pidfds.append(os.pidfd_open(first))
            if self._cgroup is not None:
                self._cgroup.add(first)
                self._status_socket.send(b"G")
        except ProcessLookupError:
            pass  # it has ended; then `_kill` kills bubblewrap instead
        except OSError as error:
            self._broken = f"the control group cannot be used: {error}"

    def _remove_cgroup(self) -> bool:
        """Whether the kernel has killed a process for the group's memory."""
        if self._cgroup is None:
            return False
        killed = self._cgroup.out_of_memory()
        self._cgroup.remove()
        return killed

    async def _read_output(self, pipe: int) -> bytes:
        """Read to the end. Keep only what fits into the room that both streams share."""
        kept: list[bytes] = []
        while chunk := await _read(pipe, 1 << 16):
            kept.append(chunk[: self._room])
            if len(chunk) > self._room:
                self._output_exceeded.set()
            self._room = max(self._room - len(chunk), 0)
        return b"".join(kept)

    def _kill(self) -> None:
        """Kill process 1 of the namespace. The kernel then kills the rest before that one has ended.

        If it is not known yet, kill bubblewrap outside of it; process 1 then dies, too (--die-with-parent).
        """
        with contextlib.suppress(ProcessLookupError):
            if self._isolated:
                signal.pidfd_send_signal(self._pidfds[-1], signal.SIGKILL)
            else:
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _reap(self, watchers: set[asyncio.Task[Any]]) -> bool:
        """Wait until the tree is gone. Return False if the kernel did not end it in time."""
        waiting = asyncio.create_task(_readable(self._pidfds[-1]))
        _, pending = await asyncio.wait({waiting, *watchers}, timeout=_REAP_S if self._isolated else _DRAIN_S)
        for task in pending:
            task.cancel()
        if pending:
            await asyncio.wait(pending)
        if waiting in pending:
            log.error("sandbox: process %d did not end after SIGKILL", self._process.pid)
        self._process.poll()
        return waiting not in pending or not self._isolated


async def _readable(fd: int) -> None:
    """Wait until `fd` has data or is at its end. A pidfd becomes readable when its process has ended."""
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    loop.add_reader(fd, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(fd)


async def _to_the_end(work: Coroutine[Any, Any, bool]) -> bool:
    """Finish `work` even if cancelled meanwhile, and raise the cancellation afterwards. The tasks of `work` still watch
    descriptors. Once those are closed, their numbers may be reused for other files."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    return task.result()


async def _read(fd: int, size: int) -> bytes:
    await _readable(fd)
    return os.read(fd, size)


def infrastructure(text: str, started: float) -> Execution:
    log.error("sandbox: %s", text)
    return Execution(
        outcome=Outcome.INFRASTRUCTURE, stdout="", stderr=text, exit_code=None, wall_s=time.monotonic() - started
    )
