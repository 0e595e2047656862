"""The runner inside the sandbox: it limits itself, gives up what it may do, and becomes the program.

`rewards.sandbox.spec` compiles this file and hands it over in a sealed memory file with `SPEC`; the interpreter starts
as `python -I -S -c BOOT`, under bubblewrap as process 2 of its namespace. bubblewrap is process 1, and the kernel ends
every process in there with it. There is no fork: a copy of the interpreter would cost as much as another start. The
host never imports this, and it imports only modules that load in a few milliseconds.

Before the line READY a failure is the infrastructure's; after it, whatever happens is the program's doing. Where the
runner is root (in its namespaces, and outside of them without any capability but to change its user), the program gets
a user of its own.
"""

from __future__ import annotations

import _ctypes
import _sitebuiltins
import _thread
import builtins
import posix  # os is posix and 3 ms of names and abstract classes
import resource
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # importing typing would take as long as all the rest
    from types import ModuleType
    from typing import Any

SPEC: dict[str, Any] = globals()["SPEC"]
MEMORY_EXIT = 86
MAIN = SPEC["place"].rpartition("/")[2]
THREAD_STACK = 2 << 20
PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
SIGKILL, EPERM = 9, 1
REFUSED = (
    "the sandbox refuses calls that reach out of it and memory that nobody would count (anonymous shared mappings, "
    "memfd, System V objects); files in /dev/shm are shared memory that is counted"
)


def close_all_but(kept: set[int]) -> None:
    """Close all descriptors above 2 except `kept`. This process needed them; the untrusted code has no use for them."""
    for fd in map(int, posix.listdir("/proc/self/fd")):
        if fd > 2 and fd not in kept:
            posix.closerange(fd, fd + 1)  # unlike os.close, ignores the listing's own descriptor, closed by now


def prctl(option: int, value: int) -> None:
    """The system call of this name; importing ctypes would take as long as all the rest."""
    library: Any = _ctypes
    library.call_function(library.dlsym(library.dlopen(None, 0), "prctl"), (option, value, 0, 0, 0))


def set_limits() -> None:
    """Limit this process and those it starts."""
    cpu_s, memory, files = SPEC["cpu_s"], SPEC["memory"], SPEC["file_bytes"]
    resource.setrlimit(resource.RLIMIT_CORE, (1, 1))  # 0 would not keep Linux from starting a handler on the host
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (files, files))
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    if SPEC["processes"]:
        # One more than allowed where bubblewrap's process 1 has the same user, because it counts too.
        processes = SPEC["processes"] + (SPEC["uid"] is None)
        resource.setrlimit(resource.RLIMIT_NPROC, (processes, processes))
    _thread.stack_size(THREAD_STACK)  # the usual 8 MiB a thread would use up the address space


def change_user() -> None:
    """Become the program's user, without any right of the runner."""
    if SPEC["uid"] is not None:
        posix.setgroups([])
        posix.setresgid(SPEC["uid"], SPEC["uid"], SPEC["uid"])
        posix.setresuid(SPEC["uid"], SPEC["uid"], SPEC["uid"])
        prctl(PR_SET_DUMPABLE, 1)  # else its own files in /proc would be root's


def as_a_script() -> ModuleType:
    """Make what a program started by `python main.py` finds: `__main__`, its arguments, and site's names."""
    for name in ("exit", "quit"):
        setattr(builtins, name, _sitebuiltins.Quitter(name, "Ctrl-D (i.e. EOF)"))
    builtins.help = _sitebuiltins._Helper()
    sys.argv = [MAIN]
    sys.path += SPEC["packages"]
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    main = type(sys)("__main__")
    place = SPEC["place"]
    main.__file__ = place if place[0] == "/" else f"{posix.getcwd()}/{place}"
    main.__dict__["__builtins__"] = builtins
    sys.modules["__main__"] = main
    return main


def run_code(source: bytes) -> None:
    """Run the untrusted code as `__main__`. Return or raise SystemExit; the interpreter then shuts down normally."""
    main = as_a_script()
    sys.path.insert(0, posix.getcwd())
    with open(SPEC["place"], "wb") as file:
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


def main() -> None:
    """Run the source, or the runtime (our own code, compiled by the host) with the argument that the host gave it."""
    close_all_but({SPEC["status"], *SPEC["kept"]})
    if not SPEC["isolated"]:
        prctl(PR_SET_PDEATHSIG, SIGKILL)
    posix.write(SPEC["status"], b"READY\n")
    posix.close(SPEC["status"])
    set_limits()
    change_user()
    if SPEC["runtime"] is None:
        run_code(SPEC["source"])
    else:
        exec(SPEC["runtime"], {"__name__": "sluice_runtime", "ARGUMENT": SPEC["argument"], "as_a_script": as_a_script})


main()
