"""What the runner in the sandbox is given: itself, compiled, and the limits and the program of one execution."""

from __future__ import annotations

import fcntl
import functools
import marshal
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType
from typing import Any, Protocol

BOOT = (
    "import marshal,posix,sys;f=int(sys.argv[1]);r,s=marshal.loads(posix.pread(f,posix.fstat(f).st_size,0));"
    "exec(r,{'__name__':'sluice_runner','SPEC':s})"
)
"""The command of the interpreter in the sandbox, which has the same version as ours. It takes a descriptor."""


class Open(Protocol):
    """A file or a socket."""

    def fileno(self) -> int: ...

    def close(self) -> None: ...


PROGRAM, PROGRAM_APART = "main.py", "/dev/shm/main.py"
"""Where a program is written to: into its folder, or, where that is a workspace, beside it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What one execution runs.

    Attributes:
        source: the text of a script, which the sandbox compiles; it may be anything.
        runtime: code of ours that runs instead. It finds `argument`, which marshal must know, as ARGUMENT.
        stdin: what the program reads.
        files: open files and sockets that the program gets, under the same numbers. They are closed here then.
    """

    source: str = ""
    runtime: CodeType | None = None
    argument: Any = None
    stdin: str = ""
    files: Sequence[Open] = ()

    def descriptors(self) -> list[int]:
        return [file.fileno() for file in self.files]


@functools.cache
def runner() -> CodeType:
    """The compiled runner."""
    source = Path(__file__).with_name("child.py").read_bytes()
    return compile(source, "<runner>", "exec", dont_inherit=True)


def spec_file(program: Program, **spec: Any) -> int:
    """A sealed memory file for BOOT. The caller closes it."""
    # surrogatepass: a lone surrogate is part of the policy's text. The runner's compile() rejects it, not we.
    source = program.source.encode(errors="surrogatepass")
    spec |= {"source": source, "runtime": program.runtime, "argument": program.argument}
    return sealed_memfd("program", marshal.dumps((runner(), spec | {"kept": program.descriptors()})))


def sealed_memfd(name: str, data: bytes) -> int:
    """A read-only in-memory file with `data`. Nothing has to be fed to the child, and nothing is left on a disk."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    os.lseek(fd, 0, os.SEEK_SET)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL)
    return fd
