"""Run untrusted Python: one process tree per execution, isolated by bubblewrap, limited, and killed and reaped whole.

An execution has new user, pid, net, ipc and mount namespaces, no network device but loopback, a read-only system, a
tmpfs work directory and a scrubbed environment. Wall time, CPU, memory, processes, file size and output are limited.

Not covered:
- Bugs of the kernel (the seccomp filter only refuses memory that could not be counted, and there is no virtual machine)
  and side channels.
- The CPU limit is per process, so the tree may use `processes` times as much within the wall time.
- The memory of the whole tree is checked every 50 ms, so a burst may exceed the limit between two checks. Files on
  tmpfs, including shared memory, come on top: up to memory_mb in /tmp and again in /dev/shm. So do the kernel's buffers
  of pipes and sockets.
- Files under /usr are readable.
- The code that ran controls its exit code, output and outcome. Treat them as claims of that code, never as a verdict.

`kind: unsafe-none` has no isolation: only resource limits and a kill of the process group.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import re
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from rewards.errors import InfrastructureError
from rewards.sandbox import bubblewrap, seccomp
from rewards.sandbox.config import SandboxConfig

log = logging.getLogger(__name__)

_CHILD = Path(__file__).with_name("child.py").read_text()
_CHILD_PID = re.compile(rb'"child-pid": *(\d+)')
_ENDED = re.compile(rb"^ENDED (ok|failed|timeout|memory) (-?\d+)$", re.MULTILINE)
_STATUS_BYTES = 4096
_REAP_S = 10.0
_DRAIN_S = 2.0
_MIB = 1 << 20

queued_s: ContextVar[float] = ContextVar("queued_s", default=0.0)
"""Seconds that the current task has waited for a free slot of a sandbox. Other code ran in that time, so callers must
not count it against their own code."""


class Outcome(StrEnum):
    """How an execution ended. The code itself causes every outcome except INFRASTRUCTURE."""

    OK = "ok"
    FAILED = "failed"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    OUTPUT_LIMIT = "output_limit"
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


class Sandbox:
    """Executes code under the limits of a config. Belongs to one event loop. Making one starts and checks nothing: call
    `require` before executing code."""

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self._slots = asyncio.Semaphore(config.concurrency)

    def require(self) -> None:
        """Run a trial. Raise ValueError with the cause and the fix if this machine cannot isolate code. `unsafe-none`
        only logs a warning."""
        if self.config.kind == "bubblewrap":
            bubblewrap.probe()
        else:
            log.warning(
                "sandbox: unsafe-none: model-written code runs with this user's rights, files and network; "
                "nothing but resource limits holds it"
            )

    async def run(self, code: str, *, stdin: str = "") -> Execution:
        """Execute `code` as a script. Return when all its processes are gone, also when cancelled. Never raise for what
        the code does."""
        async with self._slot():
            if self.config.kind == "bubblewrap":
                return await self._execute(code, stdin, "/")
            with tempfile.TemporaryDirectory(prefix="sluice-unsafe-", ignore_cleanup_errors=True) as work:
                return await self._execute(code, stdin, work)

    @contextlib.asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        asked = time.monotonic()
        try:
            await self._slots.acquire()
        finally:  # also when the caller's deadline ends the wait
            queued_s.set(queued_s.get() + time.monotonic() - asked)
        try:
            yield
        finally:
            self._slots.release()

    async def _execute(self, code: str, stdin: str, cwd: str) -> Execution:
        started = time.monotonic()
        try:
            tree = self._start(code, stdin, cwd)
        except OSError as error:
            return _infrastructure(f"cannot start: {error}", started)
        return await tree.attend(self.config.wall_s, self.config.output_kb * 1024, started)

    def _start(self, code: str, stdin: str, cwd: str) -> _Tree:
        isolated = self.config.kind == "bubblewrap"
        with contextlib.ExitStack() as passed:
            # surrogatepass: a lone surrogate is part of the policy's text. The runner's compile() rejects it, not we.
            code_fd = _sealed_memfd("code", code.encode(errors="surrogatepass"))
            passed.callback(os.close, code_fd)
            stdin_fd = _sealed_memfd("stdin", stdin.encode(errors="surrogatepass"))
            passed.callback(os.close, stdin_fd)
            host, guest = socket.socketpair()
            passed.enter_context(guest)
            with _closed_on_error(host):
                for_bubblewrap: list[int] = []  # bubblewrap closes them: it gets a copied socket and a new filter
                if isolated:
                    for_bubblewrap = [passed.enter_context(guest.dup()).fileno(), seccomp.open_filter()]
                    passed.callback(os.close, for_bubblewrap[1])
                # Use subprocess, not asyncio's: uvloop, on which Ray's actors run, forks this process with the locks of
                # all its threads, and the child may wait for one of them for ever. subprocess uses vfork.
                process = subprocess.Popen(
                    self._argv(code_fd, guest.fileno(), for_bubblewrap),
                    stdin=stdin_fd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                    pass_fds=(code_fd, guest.fileno(), *for_bubblewrap),
                    start_new_session=True, cwd=cwd, env=bubblewrap.ENVIRONMENT,
                )  # fmt: skip
                return _Tree(process, host, isolated=isolated)

    def _argv(self, code_fd: int, status_fd: int, for_bubblewrap: list[int]) -> list[str]:
        limits = self.config
        memory = limits.memory_mb * _MIB
        prefix: list[str] = []
        if isolated := limits.kind == "bubblewrap":
            info_fd, seccomp_fd = for_bubblewrap
            prefix = bubblewrap.command(work_bytes=memory, info_fd=info_fd, seccomp_fd=seccomp_fd)
        # Without a namespace RLIMIT_NPROC would count every process of this user, so it is left alone there.
        numbers = (code_fd, status_fd, limits.cpu_s, memory, limits.processes if isolated else 0, limits.file_mb * _MIB)
        python = [bubblewrap.interpreter(), "-I", "-S", "-X", "utf8", "-c", _CHILD]
        return [*prefix, *python, *map(str, numbers)]


class _Tree:
    """One running execution: reads its status and output, then kills and reaps all its processes. Making one raises
    OSError, and leaves no process, if this process is out of descriptors."""

    def __init__(self, process: subprocess.Popen[bytes], status: socket.socket, *, isolated: bool) -> None:
        self._process = process
        self._status_socket = status
        self._isolated = isolated
        self._status = b""
        self._output_exceeded = asyncio.Event()
        self._room = 0
        try:
            # Signals go through pidfds, which never refer to a later process with the same pid.
            self._pidfds = [os.pidfd_open(process.pid)]
        except OSError:
            process.kill()
            process.communicate()
            raise

    async def attend(self, wall_s: float, output_bytes: int, started: float) -> Execution:
        """Wait for the end, the deadline, too much output or a cancellation. Then kill, reap and return the result."""
        self._room = output_bytes
        self._status_socket.setblocking(False)
        assert self._process.stdout is not None and self._process.stderr is not None
        ended = asyncio.create_task(self._read_status())
        flooded = asyncio.create_task(self._output_exceeded.wait())
        outputs = (self._process.stdout, self._process.stderr)
        readers = [asyncio.create_task(self._read_output(stream.fileno())) for stream in outputs]
        in_time = False
        try:
            done, _ = await asyncio.wait(
                {ended, flooded}, timeout=wall_s - (time.monotonic() - started), return_when=asyncio.FIRST_COMPLETED
            )
            in_time = bool(done)
        finally:
            self._kill()
            flooded.cancel()
            try:
                reaped = await _to_the_end(self._reap(ended, readers))
            finally:
                for pidfd in self._pidfds:
                    os.close(pidfd)
                for resource in (*outputs, self._status_socket):
                    resource.close()
        stdout, stderr = (
            r.result().decode(errors="replace") if r.done() and not r.cancelled() else "" for r in readers
        )
        if not reaped or b"READY\n" not in self._status:
            return _infrastructure(stderr.strip() or "the sandbox did not start in time", started)
        outcome, exit_code = self._classify(in_time)
        return Execution(
            outcome=outcome, stdout=stdout, stderr=stderr, exit_code=exit_code, wall_s=time.monotonic() - started
        )

    def _classify(self, in_time: bool) -> tuple[Outcome, int | None]:
        if self._output_exceeded.is_set():
            return Outcome.OUTPUT_LIMIT, None
        if not in_time:
            return Outcome.TIMEOUT, None
        report = _ENDED.search(self._status)
        if report is None:
            # The code killed its own runner. It can do that, so this is not an infrastructure failure.
            return Outcome.FAILED, None
        return Outcome(report[1].decode()), int(report[2])

    async def _read_status(self) -> None:
        """Collect the reports of bubblewrap and the runner, until the runner reports the end or both have exited."""
        loop = asyncio.get_running_loop()
        while len(self._status) < _STATUS_BYTES:
            chunk = await loop.sock_recv(self._status_socket, _STATUS_BYTES)
            if not chunk:
                return
            self._status += chunk
            if len(self._pidfds) == 1 and (found := _CHILD_PID.search(self._status)):
                with contextlib.suppress(OSError):  # then `_kill` kills bubblewrap instead
                    self._pidfds.append(os.pidfd_open(int(found[1])))
            if _ENDED.search(self._status):
                return

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
        """Kill pid 1 of the namespace. The kernel then kills the rest before bubblewrap, the parent of pid 1, can exit.

        If pid 1 is not known yet, kill bubblewrap; pid 1 then dies, too (--die-with-parent).
        """
        with contextlib.suppress(ProcessLookupError):
            if self._isolated:
                signal.pidfd_send_signal(self._pidfds[-1], signal.SIGKILL)
            else:
                os.killpg(self._process.pid, signal.SIGKILL)

    async def _reap(self, ended: asyncio.Task[None], readers: list[asyncio.Task[bytes]]) -> bool:
        """Wait until the tree is gone. Return False if the kernel did not end it in time."""
        waiting = asyncio.create_task(_readable(self._pidfds[0]))
        _, pending = await asyncio.wait({waiting, ended, *readers}, timeout=_REAP_S if self._isolated else _DRAIN_S)
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


@contextlib.contextmanager
def _closed_on_error(resource: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        resource.close()
        raise


def _sealed_memfd(name: str, data: bytes) -> int:
    """A read-only in-memory file with `data`. Nothing has to be fed to the child, and nothing is left on a disk."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    return fd


def _infrastructure(text: str, started: float) -> Execution:
    log.error("sandbox: %s", text)
    return Execution(
        outcome=Outcome.INFRASTRUCTURE, stdout="", stderr=text, exit_code=None, wall_s=time.monotonic() - started
    )
