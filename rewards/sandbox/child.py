"""The runner inside the sandbox: fork, limit the child, run the program there, report how it ended.

`rewards.sandbox.spec` compiles this file and hands it over in a sealed memory file with `SPEC`; the interpreter starts
as `python -I -S -c BOOT`, under bubblewrap as pid 1 of its namespace. When it exits, the kernel kills every other
process in there. The host never imports it, and it imports only modules that load in a few milliseconds. It must not be
trusted with a verdict. But code that runs beside it cannot take back the line READY, so after READY no report
from here counts as an infrastructure failure.

Where the runner is root (in its namespaces, and outside of them without any capability but to change its user), the
program gets a user of its own, so it can neither stop nor read the runner. Where there is one user only, the runner
cannot be attached to, and as pid 1 it takes no signals from its own namespace.
"""

from __future__ import annotations

import _ctypes
import _sitebuiltins
import _thread
import builtins
import os
import resource
import select
import sys
from types import ModuleType

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take as long as all the rest
    from typing import Any

SPEC: dict[str, Any] = globals()["SPEC"]
TICK_MS = 50
MEMORY_EXIT = 86
MAIN = "main.py"
THREAD_STACK = 2 << 20
MAX_INODES = 1 << 16
PAGE = resource.getpagesize()
PR_SET_DUMPABLE = 4
EPERM = 1
REFUSED = (
    "the sandbox refuses calls that reach out of it and memory that nobody would count (anonymous shared mappings, "
    "memfd, System V objects); files in /dev/shm are shared memory that is counted"
)


def close_all_but(kept: set[int]) -> None:
    """Close all descriptors above 2 except `kept`. This process needed them; the untrusted code has no use for them."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in kept:
            os.closerange(fd, fd + 1)  # unlike os.close, ignores the listing's own descriptor, closed by now


def set_dumpable(value: int) -> None:
    """Whether others of the same user may attach to this process and read its memory. Follows a fork."""
    library: Any = _ctypes
    library.call_function(library.dlsym(library.dlopen(None, 0), "prctl"), (PR_SET_DUMPABLE, value, 0, 0, 0))


def set_limits() -> None:
    """Limit this process and those it starts."""
    cpu_s, memory, files = SPEC["cpu_s"], SPEC["memory"], SPEC["file_bytes"]
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (files, files))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if SPEC["processes"]:
        # One more than allowed where the runner has the same user, because it counts too.
        processes = SPEC["processes"] + (SPEC["uid"] is None)
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    _thread.stack_size(THREAD_STACK)  # the usual 8 MiB a thread would use up the address space


def change_user() -> None:
    """Become the program's user, without any right of the runner."""
    if SPEC["uid"] is not None:
        os.setgroups([])
        os.setresgid(SPEC["uid"], SPEC["uid"], SPEC["uid"])
        os.setresuid(SPEC["uid"], SPEC["uid"], SPEC["uid"])


def as_a_script() -> ModuleType:
    """Make what a program started by `python main.py` finds: `__main__`, its arguments, and site's names."""
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    builtins.help = _sitebuiltins._Helper()
    sys.argv = [MAIN]
    sys.path += SPEC["packages"]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main = ModuleType("__main__")
    main.__file__ = os.path.join(os.getcwd(), MAIN)
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    return main


def run_code(source: bytes) -> None:
    """Run the untrusted code as `__main__`. Return or raise SystemExit; the interpreter then shuts down normally."""
    main = as_a_script()
    sys.path.insert(0, os.getcwd())
    with open(MAIN, "wb") as file:
        file.write(source)
    try:
        exec(compile(source, main.__file__ or MAIN, "exec", dont_inherit=True), main.__dict__)
    except MemoryError as error:
        sys.excepthook(MemoryError, error.with_traceback(None), None)
        sys.exit(MEMORY_EXIT)
    except Exception as error:
        if isinstance(error, PermissionError) and error.errno == EPERM:
            error.add_note(REFUSED)
        own_frame = error.__traceback__
        sys.excepthook(type(error), error.with_traceback(own_frame and own_frame.tb_next), None)
        sys.exit(1)


def run_program() -> None:
    """Run the source, or the runtime (our own code, compiled by the host) with the argument that the host gave it."""
    if SPEC["runtime"] is None:
        run_code(SPEC["source"])
    else:
        exec(SPEC["runtime"], {"__name__": "sluice_runtime", "ARGUMENT": SPEC["argument"], "as_a_script": as_a_script})


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


def inodes() -> int:
    """The files and directories in the file systems in memory that this namespace has."""
    systems = [os.statvfs(path) for path in ("/tmp", "/dev/shm")]
    return sum(system.f_files - system.f_ffree for system in systems)


def supervise(child: int, status: int) -> tuple[str, int]:
    """Wait for the child. Return its outcome and exit code (negative: the signal that ended it)."""
    watched = select.poll()
    watched.register(os.pidfd_open(child), select.POLLIN)
    watched.register(status, select.POLLHUP)
    counts = os.getpid() == 1 and not SPEC["counted"]
    while True:
        if any(fd == status for fd, _ in watched.poll(TICK_MS if counts else None)):
            os._exit(1)  # the host is gone, and nobody else would stop this tree
        while True:
            try:
                pid, raw, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                pid = 0
            if pid == child:
                return classify(os.waitstatus_to_exitcode(raw), usage.ru_utime + usage.ru_stime >= SPEC["cpu_s"])
            if pid == 0:
                break
        if counts and (tree_memory() > SPEC["memory"] or inodes() > MAX_INODES):
            return "memory", MEMORY_EXIT


def classify(code: int, cpu_spent: bool) -> tuple[str, int]:
    if code == -24 or (code == -9 and cpu_spent):  # SIGXCPU, or SIGKILL for code that ignored it
        return "timeout", code
    if code == MEMORY_EXIT:
        return "memory", code
    return ("ok" if code == 0 else "failed"), code


def main() -> None:
    status, kept = SPEC["status"], SPEC["kept"]
    close_all_but({status, *kept})
    if SPEC["isolated"]:
        set_dumpable(0)
    os.write(status, b"READY\n")
    if SPEC["counted"]:
        os.read(status, 1)  # the host has put this process into its cgroups
    child = os.fork()
    if child == 0:
        os.close(status)
        set_limits()
        change_user()
        if SPEC["isolated"]:
            set_dumpable(1)
        run_program()
        return
    for fd in kept:
        os.close(fd)
    outcome, code = supervise(child, status)
    os.write(status, f"ENDED {outcome} {code}\n".encode())
    os._exit(0)


main()
