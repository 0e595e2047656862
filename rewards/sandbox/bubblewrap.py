"""The bubblewrap command line: the namespaces, binds and user of an execution. Only `probe` starts a process here.

There are two forms:
- as root: bubblewrap keeps two capabilities, to change the user and the group, and the runner gives the program a user
  of its own with them (`rewards.sandbox.users`). The program has no capability.
- as an ordinary user: bubblewrap makes a user namespace with one user, which runner and program share.
In both forms the seccomp filter refuses further namespaces, in which the code would have all capabilities. bubblewrap
stays as process 1 of the pid namespace, so the whole tree ends with it.

The program sees of the host: the interpreter and its standard library, /usr/bin and the libraries, time zones, and the
packages that the recipe names. Files of /proc and /dev that a program has no use for are covered.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from rewards.sandbox import seccomp
from rewards.sandbox.spec import sealed_memfd

NOBODY = 65534
NAME = "sandbox"
ENVIRONMENT = {
    "PATH": "/usr/bin:/bin",
    "HOME": "/tmp",
    "USER": NAME,
    "LOGNAME": NAME,
    "LANG": "C.UTF-8",
    # Each arena of an allocator, and each thread of a numerical library, reserves address space, which is limited.
    "MALLOC_ARENA_MAX": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
UNSAFE = "write `sandbox: unsafe-none` in the recipe (no isolation at all)"
FIX = f"install it with `apt-get install bubblewrap`, or {UNSAFE}"
ETC = Path(__file__).with_name("etc")
DEVICES = ("null", "full", "random", "urandom", "tty")
HIDDEN = ("cmdline", "config.gz", "kallsyms", "kcore", "key-users", "keys", "modules", "sched_debug", "timer_list")
"""Files of /proc about the host's kernel."""


def interpreter() -> str:
    """The path of the base interpreter. A virtual environment's own python would need its site directory."""
    return str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")


def passwd(uid: int | None) -> bytes:
    """The sandbox's /etc/passwd."""
    number = NOBODY if uid is None else uid
    return f"root:x:0:0::/root:/bin/sh\n{NAME}:x:{number}:{number}::/tmp:/bin/sh\n".encode()


def command(
    *,
    work_bytes: int,
    seccomp_fd: int,
    passwd_fd: int,
    info_fd: int | None = None,
    block_fd: int | None = None,
    own_user: bool = False,
    binds: Mapping[str, str] | None = None,
    work: Path | None = None,
) -> list[str]:
    """The prefix of an isolated command.

    Args:
        work_bytes: the size of the tmpfs at /tmp, and of the one at /dev/shm.
        seccomp_fd, passwd_fd: from `seccomp.open_filter`, and a file with `passwd`.
        info_fd: where bubblewrap writes the pid of process 1 of the namespace.
        block_fd: from where that process reads a byte before it goes on.
        own_user: whether the runner, as root, changes to a user of the program's own.
        binds: further read-only paths by their places in the sandbox.
        work: a folder that takes the place of the tmpfs at /tmp.

    Raises:
        FileNotFoundError: bubblewrap is not installed.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bwrap is not on PATH")
    prefix = [program, "--die-with-parent", "--new-session", "--hostname", NAME]
    prefix += _root_namespaces(own_user) if os.geteuid() == 0 else _user_namespaces()
    prefix += ["--seccomp", str(seccomp_fd), *_system_binds(), "--proc", "/proc", *_hidden(), *_devices()]
    if binds:
        prefix += ["--perms", "0755", "--dir", "/packages"]
    for place, path in (binds or {}).items():
        prefix += ["--ro-bind", path, place]
    prefix += ["--ro-bind", str(ETC), "/etc", "--perms", "0644", "--ro-bind-data", str(passwd_fd), "/etc/passwd"]
    prefix += ["--ro-bind-try", "/etc/alternatives", "/etc/alternatives"]
    shared = ["--perms", "1777", "--size", str(work_bytes), "--tmpfs"]
    prefix += [*shared, "/dev/shm", *(["--bind", str(work), "/tmp"] if work else [*shared, "/tmp"])]
    prefix += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        prefix += ["--setenv", name, value]
    if info_fd is not None:
        prefix += ["--info-fd", str(info_fd)]
    if block_fd is not None:
        prefix += ["--block-fd", str(block_fd)]
    return [*prefix, "--"]


def probe() -> None:
    """Start one isolated process as a trial. Raise ValueError with the cause and the fix if that fails."""
    try:
        seccomp_fd = seccomp.open_filter()
    except ValueError as error:
        raise ValueError(f"sandbox: {error}; {UNSAFE}") from error
    passwd_fd = sealed_memfd("passwd", passwd(None))
    try:
        prefix = command(work_bytes=1 << 20, seccomp_fd=seccomp_fd, passwd_fd=passwd_fd)
        trial = subprocess.run(
            [*prefix, interpreter(), "-I", "-S", "-c", ""],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False, pass_fds=(seccomp_fd, passwd_fd),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ValueError(f"sandbox: bubblewrap is not installed; {FIX}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"sandbox: bubblewrap does not start: {error}; {FIX}") from error
    finally:
        os.close(seccomp_fd)
        os.close(passwd_fd)
    if trial.returncode != 0:
        said = trial.stderr.decode(errors="replace").strip() or f"exit code {trial.returncode}"
        raise ValueError(
            f"sandbox: bubblewrap cannot make an isolated process here: {said}; it needs bubblewrap >= 0.8 and the "
            f"right to create namespaces (in a container: user namespaces or CAP_SYS_ADMIN); {FIX}"
        )


def _root_namespaces(own_user: bool) -> list[str]:
    spaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    kept = ("CAP_SETUID", "CAP_SETGID") if own_user else ()
    return [*spaces, "--cap-drop", "ALL", *(word for capability in kept for word in ("--cap-add", capability))]


def _user_namespaces() -> list[str]:
    return ["--unshare-all", "--unshare-user", "--disable-userns", "--uid", str(NOBODY), "--gid", str(NOBODY)]


def _devices() -> list[str]:
    """A /dev without terminals to make, which all of a machine share."""
    words = ["--perms", "0755", "--tmpfs", "/dev"]
    for name in DEVICES:
        words += ["--dev-bind", f"/dev/{name}", f"/dev/{name}"]
    # /dev/full takes the place of /dev/zero. Both read as zeros, but /dev/full cannot be mapped. A shared mapping of
    # /dev/zero would be memory that nobody counts.
    words += ["--dev-bind", "/dev/full", "/dev/zero"]
    for name, number in (("stdin", 0), ("stdout", 1), ("stderr", 2)):
        words += ["--symlink", f"/proc/self/fd/{number}", f"/dev/{name}"]
    return [*words, "--symlink", "/proc/self/fd", "/dev/fd"]


def _hidden() -> list[str]:
    found = [f"/proc/{name}" for name in HIDDEN if Path("/proc", name).exists()]
    return [word for path in found for word in ("--ro-bind", "/dev/null", path)]


def _system_binds() -> list[str]:
    # bubblewrap would make missing folders with mode 0700, and the program's user could not enter them.
    binds = ["--perms", "0755", "--dir", "/usr", "--perms", "0755", "--dir", "/usr/share"]
    for name in ("/usr/bin", "/usr/lib", "/usr/lib32", "/usr/lib64", "/usr/share/zoneinfo"):
        binds += ["--ro-bind", name, name] if Path(name).is_dir() and not Path(name).is_symlink() else []
    for name in ("/bin", "/lib", "/lib32", "/lib64"):
        path = Path(name)
        if path.is_symlink():
            binds += ["--symlink", os.readlink(path), name]
        elif path.is_dir():
            binds += ["--ro-bind", name, name]
    prefix = Path(sys.base_prefix)
    if prefix != Path("/usr"):
        for parent in (*reversed(prefix.parents[:-1]), prefix):
            binds += ["--perms", "0755", "--dir", str(parent)]
        for part in ("bin", "lib", "lib64"):
            binds += ["--ro-bind", str(prefix / part), str(prefix / part)] if (prefix / part).is_dir() else []
    site = prefix / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    return binds + (["--tmpfs", str(site), "--remount-ro", str(site)] if site.is_dir() else [])
