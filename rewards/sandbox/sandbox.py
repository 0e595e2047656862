"""Run untrusted Python: one process tree per execution, isolated by bubblewrap, limited, and killed and reaped whole.

An execution has new pid, net, ipc, uts, cgroup and mount namespaces, no network device but loopback, a read-only
system, a tmpfs work directory, a scrubbed environment and, where it can be had, a user and a control group of its own.
Wall time, CPU, memory, processes, files and output are limited. `isolation` says which of this is in force.

Not covered:
- Bugs of the kernel (the seccomp filter refuses what container profiles refuse, and there is no virtual machine) and
  side channels.
- The CPU limit is per process, so the tree may use `processes` times as much within the wall time.
- Without control groups, we count the memory of the whole tree every 50 ms, so a burst may exceed the limit
  between two checks; files on tmpfs, including shared memory, come on top: up to memory_mb in /tmp and again in
  /dev/shm. So do the kernel's buffers of pipes and sockets.
- Under control groups of version 1, the buffers of UDP sockets may exceed the limit for a while.
- A workspace lies on this machine's disk and is looked at all the time, but what is written between two looks comes on
  top of its limit.
- Without root, all executions of the machine's user share one user: what the kernel counts per user (the buffers of
  pipes, descriptors in flight, inotify instances), one of them can use up.
- Without root, a program also has the user of bubblewrap's process 1 and can write into its memory. That process has no
  capability and the same filter, so the program gains nothing but its own exit code, which is a claim anyhow.
- The programs in /usr/bin and the libraries in /usr/lib are readable.
- The code that ran controls its exit code, output and outcome. Treat them as claims of that code, never as a verdict:
  `rewards.judge` makes verdicts.

`kind: unsafe-none` has no isolation: only resource limits and a kill of the process group.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import secrets
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from rewards.sandbox import bubblewrap, cgroups, seccomp
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.packages import package_binds
from rewards.sandbox.shell import Command, Shell
from rewards.sandbox.spec import BOOT, PROGRAM, PROGRAM_APART, Program, sealed_memfd, spec_file
from rewards.sandbox.tree import Execution, Outcome, Tree, infrastructure
from rewards.sandbox.users import users
from rewards.sandbox.workspace import Prepared, Workspace, prepare

__all__ = ["Command", "Execution", "Outcome", "Prepared", "Program", "Sandbox", "Shell", "Workspace", "queued_s"]

log = logging.getLogger(__name__)

_MIB = 1 << 20
_GRACE_S = 1.0
_FULL = "the workspace is full"
_numbers = itertools.count()

queued_s: ContextVar[float] = ContextVar("queued_s", default=0.0)
"""Seconds that the current task has waited for a free slot of a sandbox. Other code ran in that time, so callers must
not count it against their own code."""


class Sandbox:
    """Executes code under the limits of a config. Belongs to one event loop. Making one starts and checks nothing: call
    `require` before executing code."""

    def __init__(self, config: SandboxConfig) -> None:
        self.config = config
        self._slots = asyncio.Semaphore(config.concurrency)
        self._isolated = config.kind == "bubblewrap"
        self._users = users()
        self._binds: dict[str, str] | None = None

    def require(self) -> None:
        """Run a trial. Raise ValueError with the cause and the fix if this machine cannot isolate code, or lacks a
        package that programs may import. `unsafe-none` only logs a warning."""
        if self._isolated:
            bubblewrap.probe()
            self._package_binds()
        else:
            log.warning(
                "sandbox: unsafe-none: model-written code runs with this user's rights, files and network; "
                "nothing but resource limits holds it"
            )

    async def run(self, code: str, *, stdin: str = "", workspace: Workspace | None = None) -> Execution:
        """Execute `code` as a script, in a folder of its own or in a workspace. Return when all its processes are gone,
        also when cancelled. Never raise for what the code does."""
        async with self._slot():
            program = Program(source=code, stdin=stdin)
            execution = await self._execute(program, self.config.wall_s, workspace=workspace)
            if workspace is not None and not await workspace.has_room(self.config.workspace_mb * _MIB):
                return dataclasses.replace(execution, outcome=Outcome.MEMORY, stderr=_FULL)
            return execution

    @contextlib.asynccontextmanager
    async def prepared(self, folder: Path) -> AsyncIterator[Prepared]:
        """A folder from which many workspaces begin, which must end before it. Raises OSError: it cannot be copied."""
        with self._user() as uid:
            made = await prepare(uid, folder, overlaid=self._isolated)
            try:
                yield made
            finally:
                await Workspace(made.path, uid).remove()

    @contextlib.asynccontextmanager
    async def workspace(self, prepared: Path | Prepared | None = None) -> AsyncIterator[Workspace]:
        """A folder for several executions, empty or with what `prepared` holds. Raises OSError: it cannot be made."""
        with contextlib.ExitStack() as stack:
            uid = prepared.uid if isinstance(prepared, Prepared) else stack.enter_context(self._user())
            made = await Workspace.create(uid, prepared)
            try:
                yield made
            finally:
                await made.remove()

    @contextlib.asynccontextmanager
    async def shell(self, workspace: Workspace | None = None, lives_s: float = 3600.0) -> AsyncIterator[Shell]:
        """A shell for several commands, in a folder of its own or in a workspace. All its processes end with it."""
        unneeded = asyncio.Event()
        shell = Shell(self.config.output_kb * 1024, unneeded)
        running = asyncio.create_task(self._execute(shell.program(), lives_s, unneeded, workspace))
        shell.attach(running)
        try:
            yield shell
        finally:
            unneeded.set()
            try:
                await running
            finally:
                shell.close()

    async def command(self, shell: Shell, command: str) -> Command:
        """Run a command in a living shell, within the limits of one execution. Raises InfrastructureError."""
        async with self._slot():
            return await shell.run(command, self.config.wall_s)

    async def run_together(self, programs: Sequence[Program], wall_s: float) -> list[Execution]:
        """Execute programs side by side, in a sandbox each. When the first has ended, the others have a second to end,
        too, and are stopped then."""
        unneeded = asyncio.Event()
        async with self._slot():
            tasks = [
                asyncio.create_task(self._execute(program, wall_s, unneeded if number else None))
                for number, program in enumerate(programs)
            ]
            try:
                await tasks[0]
                await asyncio.wait(tasks, timeout=_GRACE_S)
            finally:
                unneeded.set()
                ended = await asyncio.gather(*tasks, return_exceptions=True)
        return [_or_raise(execution) for execution in ended]

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

    async def _execute(
        self,
        program: Program,
        wall_s: float,
        unneeded: asyncio.Event | None = None,
        workspace: Workspace | None = None,
    ) -> Execution:
        started = time.monotonic()
        with contextlib.ExitStack() as stack:
            try:
                folder = workspace.path if workspace else None
                if workspace is not None:
                    workspace.open()
                work = "/" if self._isolated else str(folder or stack.enter_context(_unsafe_folder()))
                uid = workspace.uid if workspace else stack.enter_context(self._user())
                tree = self._start(program, work, uid, workspace)
            except (OSError, ValueError) as error:
                return infrastructure(f"cannot start: {error}", started)
            finally:
                for file in program.files:
                    file.close()
            room = None if workspace is None else self._has_room(workspace)
            return await tree.attend(wall_s, started, unneeded, room)

    def _has_room(self, workspace: Workspace) -> Callable[[], Awaitable[bool]]:
        async def has_room() -> bool:
            return await workspace.has_room(self.config.workspace_mb * _MIB)

        return has_room

    @contextlib.contextmanager
    def _user(self) -> Iterator[int | None]:
        number = self._users.take() if self._isolated else None
        try:
            yield number
        finally:
            self._users.give_back(number)

    def _start(self, program: Program, cwd: str, uid: int | None, workspace: Workspace | None) -> Tree:
        with contextlib.ExitStack() as passed:

            def closing(fd: int) -> int:
                passed.callback(os.close, fd)
                return fd

            stdin = closing(sealed_memfd("stdin", program.stdin.encode(errors="surrogatepass")))
            host, guest = socket.socketpair()
            passed.enter_context(guest)
            with contextlib.ExitStack() as passed_on:
                passed_on.enter_context(_closed_on_error(host))
                cgroup = passed_on.enter_context(_removed_on_error(self._cgroup()))
                place = PROGRAM_APART if workspace and self._isolated else PROGRAM
                spec = closing(spec_file(program, **self._limits(guest.fileno(), uid), place=place))
                prefix: list[str] = []
                for_bubblewrap: list[int] = []  # bubblewrap closes them: it gets a copied socket and new files
                if self._isolated:
                    for_bubblewrap = [
                        *(closing(guest.dup().detach()) for _ in range(2)),
                        closing(seccomp.open_filter(shared_memory=cgroup is not None)),
                        closing(sealed_memfd("passwd", bubblewrap.passwd(uid))),
                    ]
                    folder = workspace.whole if workspace else None
                    prefix = workspace.mounting() if workspace else []
                    prefix += self._prefix(for_bubblewrap, uid is not None, cgroup is not None, folder)
                # Use subprocess, not asyncio's: uvloop, on which Ray's actors run, forks this process with the locks of
                # all its threads, and the child may wait for one of them for ever. subprocess uses vfork.
                process = subprocess.Popen(
                    [*prefix, bubblewrap.interpreter(), "-I", "-S", "-X", "utf8", "-c", BOOT, str(spec)],
                    stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0,
                    pass_fds=(spec, guest.fileno(), *for_bubblewrap, *program.descriptors()),
                    start_new_session=True, cwd=cwd, env=bubblewrap.ENVIRONMENT,
                )  # fmt: skip
                return Tree(process, host, isolated=self._isolated, cgroup=cgroup, limits=self.config)

    def _prefix(self, files: Sequence[int], own_user: bool, waits: bool, work: Path | None) -> list[str]:
        info_fd, block_fd, seccomp_fd, passwd_fd = files
        return bubblewrap.command(
            work_bytes=self.config.memory_mb * _MIB,
            info_fd=info_fd,
            block_fd=block_fd if waits else None,
            seccomp_fd=seccomp_fd,
            passwd_fd=passwd_fd,
            own_user=own_user,
            binds=self._package_binds(),
            work=work,
        )

    def _limits(self, status_fd: int, uid: int | None) -> dict[str, Any]:
        limits = self.config
        return {
            "status": status_fd,
            "isolated": self._isolated,
            "uid": uid,
            "cpu_s": limits.cpu_s,
            "memory": limits.memory_mb * _MIB,
            # Without a namespace RLIMIT_NPROC would count every process of this user, so it is left alone there.
            "processes": limits.processes if self._isolated else 0,
            "file_bytes": limits.file_mb * _MIB,
            "packages": list(self._package_binds()) and ["/packages"],
        }

    def _package_binds(self) -> dict[str, str]:
        if self._binds is None:
            self._binds = package_binds(self.config.packages, self.config.environment)
        return self._binds

    def _cgroup(self) -> cgroups.Cgroup | None:
        found = cgroups.parents() if self._isolated else None
        if found is None:
            return None
        name = f"{cgroups.PREFIX}{os.getpid()}-{secrets.token_hex(4)}-{next(_numbers)}"
        return cgroups.Cgroup(found, name, self.config.memory_mb * _MIB, self.config.processes)


def isolation(config: SandboxConfig) -> str:
    """In words, what holds an execution on this machine."""
    if config.kind != "bubblewrap":
        return "none"
    found = cgroups.parents()
    counted = f"cgroup v{found.version} ({', '.join(found.folders)})" if found else "memory counted every 50 ms"
    return f"bubblewrap, {counted}, {'a user each' if users().range else 'one user for all'}"


@contextlib.contextmanager
def _removed_on_error(cgroup: cgroups.Cgroup | None) -> Iterator[cgroups.Cgroup | None]:
    try:
        yield cgroup
    except BaseException:
        if cgroup is not None:
            cgroup.remove()
        raise


def _unsafe_folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sluice-unsafe-", ignore_cleanup_errors=True)


def _or_raise(execution: Execution | BaseException) -> Execution:
    if isinstance(execution, BaseException):
        raise execution
    return execution


@contextlib.contextmanager
def _closed_on_error(resource: socket.socket) -> Iterator[None]:
    try:
        yield
    except BaseException:
        resource.close()
        raise
