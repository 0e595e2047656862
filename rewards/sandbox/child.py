"""The runner inside the sandbox: read the code, fork, limit the child, run the code there, report how it ended.

`rewards.sandbox.sandbox` starts it as `python -I -S -c <this file>`, under bubblewrap as pid 1 of its namespace. When
it exits, the kernel kills every other process in there. The host never imports it, and it imports only modules that
load in a few milliseconds. It must not be trusted with a verdict: code that runs beside it under the same uid may
tamper with it. But that code cannot take back the line READY. So after READY, no report from here counts as an
infrastructure failure.
"""

from __future__ import annotations

import os
import resource
import select
import sys
from types import ModuleType

TICK_MS = 50
MEMORY_EXIT = 86
PAGE = resource.getpagesize()


def read_all(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def close_all_but(kept: int) -> None:
    """Close all descriptors above 2 except `kept`. This process needed them; the untrusted code has no use for them."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd != kept:
            os.closerange(fd, fd + 1)  # unlike os.close, ignores the listing's own descriptor, closed by now


def set_limits(cpu_s: int, memory: int, processes: int, file_bytes: int) -> None:
    """Limit this process and those it starts. `memory` and `file_bytes` are in bytes; `processes` 0 sets no limit."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if processes:
        # One more than allowed, because pid 1 (this runner) counts too.
        resource.setrlimit(resource.RLIMIT_NPROC, (processes + 1, processes + 1))


def run_code(source: bytes) -> None:
    """Run the untrusted code as `__main__`. Return or raise SystemExit; the interpreter then shuts down normally."""
    main = ModuleType("__main__")
    sys.modules["__main__"] = main
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    try:
        exec(compile(source, "<code>", "exec"), main.__dict__)
    except MemoryError as error:
        sys.excepthook(MemoryError, error, None)
        sys.exit(MEMORY_EXIT)
    except Exception as error:
        own_frame = error.__traceback__
        sys.excepthook(type(error), error.with_traceback(own_frame and own_frame.tb_next), None)
        sys.exit(1)


def tree_memory() -> int:
    """The anonymous resident bytes of all other processes in this namespace. Each process counts shared copy-on-write
    pages in full."""
    total = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                with open(f"/proc/{entry}/statm") as statm:
                    _, resident, shared = map(int, statm.read().split()[:3])
            except OSError:
                continue
            total += max(resident - shared, 0) * PAGE
    return total


def supervise(child: int, status: int, cpu_s: int, memory: int) -> tuple[str, int]:
    """Wait for the child. Return its outcome and exit code (negative: the signal that ended it)."""
    watched = select.poll()
    watched.register(os.pidfd_open(child), select.POLLIN)
    watched.register(status, select.POLLHUP)
    while True:
        if any(fd == status for fd, _ in watched.poll(TICK_MS)):
            os._exit(1)  # the host is gone, and nobody else would stop this tree
        while True:
            try:
                pid, raw, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if pid == child:
                return classify(os.waitstatus_to_exitcode(raw), usage.ru_utime + usage.ru_stime >= cpu_s)
            if pid == 0:
                break
        if os.getpid() == 1 and tree_memory() > memory:
            return "memory", MEMORY_EXIT


def classify(code: int, cpu_spent: bool) -> tuple[str, int]:
    if code == -24 or (code == -9 and cpu_spent):  # SIGXCPU, or SIGKILL for code that ignored it
        return "timeout", code
    if code in (-9, MEMORY_EXIT):  # a SIGKILL that we did not send: taken for the kernel's OOM killer
        return "memory", code
    return ("ok" if code == 0 else "failed"), code


def main() -> None:
    code_fd, status, cpu_s, memory, processes, file_bytes = map(int, sys.argv[1:])
    source = read_all(code_fd)
    close_all_but(status)
    os.write(status, b"READY\n")
    child = os.fork()
    if child == 0:
        os.close(status)
        set_limits(cpu_s, memory, processes, file_bytes)
        run_code(source)
        return
    outcome, code = supervise(child, status, cpu_s, memory)
    os.write(status, f"ENDED {outcome} {code}\n".encode())
    os._exit(0)


main()
