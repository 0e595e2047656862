"""A shell that lives over several commands of one trajectory: directories, variables and background processes stay.

The shell is one execution: its processes have one user, one control group and one set of limits, and end together. What
a command prints and how it ends are claims of the code in there, as always.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from types import CodeType
from typing import IO

from rewards.sandbox.spec import Program
from rewards.sandbox.tree import Execution, Outcome

BASH = "/bin/bash"
_READ_BYTES = 1 << 16

START = f"""
import posix
commands, output = ARGUMENT
posix.dup2(commands, 0)
posix.dup2(output, 1)
posix.dup2(output, 2)
posix.close(commands)
posix.close(output)
posix.execv("{BASH}", ["bash", "--noprofile", "--norc"])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """How a command ended. `exit_code` is None if the shell ended with it, or must be ended."""

    outcome: Outcome
    output: str
    exit_code: int | None


class Shell:
    """One living shell; `Sandbox.shell` makes it and ends it."""

    def __init__(self, output_bytes: int, unneeded: asyncio.Event) -> None:
        """`unneeded` ends the execution when it is set."""
        self._most = output_bytes
        self._unneeded = unneeded
        self._turn = asyncio.Lock()
        self._reader, output = _pipe()
        commands, self._writer = _pipe()
        self._inside = (commands, output)
        os.set_blocking(self._reader.fileno(), False)
        os.set_blocking(self._writer.fileno(), False)
        self._ended: asyncio.Task[Execution] | None = None
        self._early = bytearray()
        """What background processes have printed since the last command ended."""

    def program(self) -> Program:
        """What the sandbox runs."""
        numbers = [file.fileno() for file in self._inside]
        return Program(runtime=_start(), argument=numbers, files=self._inside)

    def attach(self, ended: asyncio.Task[Execution]) -> None:
        """Tell the shell which task waits for its end."""
        self._ended = ended

    async def run(self, command: str, wall_s: float) -> Command:
        """Run a command with an empty standard input, and wait until it ends. One that takes too long, or prints too
        much, ends the shell, because nothing else could be told from what comes later. One command at a time.

        Raises:
            InfrastructureError: the sandbox failed.
        """
        async with self._turn:
            if self._ended is None or self._unneeded.is_set() or self._ended.done():
                if self._ended is not None and self._ended.done():
                    self._ended.result().raise_for_infrastructure()
                return Command(outcome=Outcome.FAILED, output="the shell has ended", exit_code=None)
            ran = await self._run(command, wall_s)
            if ran.exit_code is None:
                self._unneeded.set()
                (await asyncio.shield(self._ended)).raise_for_infrastructure()
            return ran

    async def _run(self, command: str, wall_s: float) -> Command:
        token = secrets.token_hex(8)
        script = f"eval {shlex.quote(command)} </dev/null\nbuiltin printf '\\n%s:%d\\n' {token} $?\n"
        end = re.compile(rf"\n{token}:(\d{{1,3}})\n".encode())
        shown, self._early = self._early, bytearray()
        try:
            async with asyncio.timeout(wall_s):
                await self._write(script.encode(errors="surrogatepass").replace(b"\0", b""))
                while not (found := end.search(shown)) and len(shown) <= self._most and await self._more(shown):
                    pass
        except TimeoutError:
            return Command(outcome=Outcome.TIMEOUT, output=self._text(shown), exit_code=None)
        if found:
            code = int(found[1])
            text = self._text(shown[: found.start()])
            self._early = shown[found.end() :]
            return Command(outcome=Outcome.OK if code == 0 else Outcome.FAILED, output=text, exit_code=code)
        if len(shown) > self._most:
            return Command(outcome=Outcome.OUTPUT_LIMIT, output=self._text(shown), exit_code=None)
        return Command(outcome=Outcome.FAILED, output=self._text(shown), exit_code=None)

    def close(self) -> None:
        for file in (self._reader, self._writer, *self._inside):
            file.close()

    def _text(self, shown: bytes | bytearray) -> str:
        return bytes(shown[: self._most]).decode(errors="replace")

    async def _more(self, shown: bytearray) -> bool:
        """Read what there is; return False at the end."""
        await _ready(self._reader.fileno(), asyncio.get_running_loop().add_reader)
        part = os.read(self._reader.fileno(), _READ_BYTES)
        shown += part
        return bool(part)

    async def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._writer.fileno(), view) :]
            except BlockingIOError:
                await _ready(self._writer.fileno(), asyncio.get_running_loop().add_writer)
            except BrokenPipeError:
                return  # it has ended, which the reader finds


async def _ready(fd: int, watch: Callable[..., object]) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    watch(fd, ready.set)
    try:
        await ready.wait()
    finally:
        (loop.remove_reader if watch == loop.add_reader else loop.remove_writer)(fd)


def _pipe() -> tuple[IO[bytes], IO[bytes]]:
    read, write = os.pipe2(os.O_CLOEXEC)
    return open(read, "rb", buffering=0), open(write, "wb", buffering=0)


def _start() -> CodeType:
    return compile(START, "<shell>", "exec", dont_inherit=True)
