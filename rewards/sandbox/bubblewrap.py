"""The bubblewrap command line: the namespaces, binds and user of an execution. Only `probe` starts a process here.

There are two forms, because RLIMIT_NPROC never limits the machine's uid 0, even if a user namespace shows it as another
uid:
- as root: bubblewrap sets up the mounts with root's rights, setpriv changes to uid 65534, and unshare enters a user
  namespace in which no id is mapped. It has no capabilities, and no further user namespace can be made from it.
- as an ordinary user: bubblewrap makes the user namespace itself and forbids further ones. In a further one the code
  would have all capabilities, and could mount a tmpfs of any size.
In both forms the runner becomes pid 1 (`--as-pid-1`), so the whole tree ends when the runner ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from rewards.sandbox import seccomp

NOBODY = "65534"
ENVIRONMENT = {"PATH": "/usr/bin:/bin", "HOME": "/tmp", "LANG": "C.UTF-8"}
UNSAFE = "write `sandbox: unsafe-none` in the recipe (no isolation at all)"
FIX = f"install it with `apt-get install bubblewrap`, or {UNSAFE}"


def interpreter() -> str:
    """The path of the base interpreter. A virtual environment's own python would need its site directory."""
    return str(Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}")


def command(*, work_bytes: int, seccomp_fd: int, info_fd: int | None = None) -> list[str]:
    """The prefix of an isolated command. `work_bytes` is the size of the tmpfs at /tmp, and of the one at /dev/shm.
    `seccomp_fd` comes from `seccomp.open_filter`. bubblewrap writes its child's pid to `info_fd`.

    Raises:
        FileNotFoundError: bubblewrap is not installed.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bwrap is not on PATH")
    as_root = os.geteuid() == 0
    prefix = [program, "--die-with-parent", "--new-session", "--as-pid-1"]
    prefix += _root_namespaces() if as_root else _user_namespaces()
    prefix += ["--seccomp", str(seccomp_fd), *_system_binds(), "--proc", "/proc", "--dev", "/dev"]
    # Put /dev/full in place of /dev/zero. Both read as zeros, but /dev/full cannot be mapped. A shared mapping of
    # /dev/zero would be memory that nobody counts.
    prefix += ["--dev-bind", "/dev/full", "/dev/zero"]
    prefix += ["--perms", "1777", "--size", str(work_bytes), "--tmpfs", "/dev/shm"]
    prefix += ["--perms", "1777", "--size", str(work_bytes), "--tmpfs", "/tmp"]
    prefix += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/tmp", "--clearenv"]
    for name, value in ENVIRONMENT.items():
        prefix += ["--setenv", name, value]
    if info_fd is not None:
        prefix += ["--info-fd", str(info_fd)]
    return prefix + ["--"] + (_drop_root() if as_root else [])


def probe() -> None:
    """Start one isolated process as a trial. Raise ValueError with the cause and the fix if that fails."""
    try:
        seccomp_fd = seccomp.open_filter()
    except ValueError as error:
        raise ValueError(f"sandbox: {error}; {UNSAFE}") from error
    try:
        trial = subprocess.run(
            [*command(work_bytes=1 << 20, seccomp_fd=seccomp_fd), interpreter(), "-I", "-S", "-c", ""],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=30, check=False, pass_fds=(seccomp_fd,),
        )  # fmt: skip
    except FileNotFoundError as error:
        raise ValueError(f"sandbox: bubblewrap is not installed; {FIX}") from error
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ValueError(f"sandbox: bubblewrap does not start: {error}; {FIX}") from error
    finally:
        os.close(seccomp_fd)
    if trial.returncode != 0:
        said = trial.stderr.decode(errors="replace").strip() or f"exit code {trial.returncode}"
        raise ValueError(
            f"sandbox: bubblewrap cannot make an isolated process here: {said}; it needs bubblewrap >= 0.8 and the "
            f"right to create namespaces (in a container: user namespaces or CAP_SYS_ADMIN); {FIX}"
        )


def _root_namespaces() -> list[str]:
    spaces = ["--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    return [*spaces, "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]


def _user_namespaces() -> list[str]:
    return ["--unshare-all", "--unshare-user", "--disable-userns", "--uid", NOBODY, "--gid", NOBODY]


def _drop_root() -> list[str]:
    # A change of uid clears the parent-death signal that --die-with-parent set, hence --pdeathsig.
    drop = ["setpriv", "--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", "--pdeathsig", "SIGKILL"]
    return [*drop, "unshare", "--user"]


def _system_binds() -> list[str]:
    binds = ["--ro-bind", "/usr", "/usr"]
    for name in ("/bin", "/sbin", "/lib", "/lib32", "/lib64"):
        path = Path(name)
        if path.is_symlink():
            binds += ["--symlink", os.readlink(path), name]
        elif path.is_dir():
            binds += ["--ro-bind", name, name]
    prefix = Path(sys.base_prefix)
    if not prefix.is_relative_to("/usr"):
        # bubblewrap would make missing parents with mode 0700, and uid 65534 could not enter them.
        for parent in reversed(prefix.parents[:-1]):
            binds += ["--perms", "0755", "--dir", str(parent)]
        binds += ["--ro-bind", str(prefix), str(prefix)]
    site = prefix / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    return binds + (["--tmpfs", str(site), "--remount-ro", str(site)] if site.is_dir() else [])
