"""The sandbox when an ordinary user starts it: bubblewrap then makes the user namespace itself.

Where the tests run as root, a child process imports all it needs and then becomes an ordinary user. Untrusted code runs
under a copy of the interpreter, because the real one may lie in a folder that only root may enter.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rewards.sandbox import bubblewrap
from rl.paths import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]


@pytest.fixture(scope="module")
def prefix() -> Iterator[Path]:
    """The prefix of an interpreter that everybody may run. It is not below /tmp, where the sandbox mounts a tmpfs."""
    with tempfile.TemporaryDirectory(prefix="sluice-test-", dir="/var/tmp") as folder:
        copy, base = Path(folder), Path(sys.base_prefix)
        copy.chmod(0o755)
        (copy / "bin").mkdir()
        (copy / "lib").mkdir()
        for library in (base / "lib").glob("libpython3*.so*"):
            shutil.copy2(library, copy / "lib")
        shutil.copy2(bubblewrap.interpreter(), copy / "bin/python")
        # The copied program names a shared libpython by the original's path, so the loader is told of the copy.
        start = copy / "bin" / Path(bubblewrap.interpreter()).name
        start.write_text(f'#!/bin/sh\nLD_LIBRARY_PATH={copy}/lib exec {copy}/bin/python "$@"\n')
        start.chmod(0o755)
        standard = f"lib/python3.{sys.version_info.minor}"
        unneeded = shutil.ignore_patterns("site-packages", "dist-packages", "test", "config-*", "__pycache__", "*.a")
        shutil.copytree(base / standard, copy / standard, ignore=unneeded)
        yield copy


def run_as_user(code: str, prefix: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tests.rewards.sandbox.sandbox_hosts", "as_user", str(prefix)],
        input=code,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_code_runs_without_privileges(prefix: Path) -> None:
    code = """
import os
status = open("/proc/self/status").read()
assert "CapEff:\\t0000000000000000" in status and "NoNewPrivs:\\t1" in status, status
print(os.getuid(), os.path.exists("/root"), 6 * 7)
"""
    assert run_as_user(code, prefix).split() == ["65534", "False", "42", "ok"]


def test_no_further_user_namespace(prefix: Path) -> None:
    """In a user namespace of its own the code would have all capabilities, and could mount a tmpfs of any size."""
    code = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
print(libc.unshare(CLONE_NEWUSER | CLONE_NEWNS), libc.unshare(CLONE_NEWUSER), os.strerror(ctypes.get_errno()))
"""
    assert run_as_user(code, prefix).split(maxsplit=2)[:2] == ["-1", "-1"]


def test_processes_and_memory_are_held(prefix: Path) -> None:
    code = """
import os, time
while True:
    try:
        if os.fork() == 0: time.sleep(60)
    except BlockingIOError:
        break
print(sum(name.isdigit() for name in os.listdir("/proc")), flush=True)
os.memfd_create("m")
"""
    shown = run_as_user(code, prefix)
    assert shown.split()[0] == "33" and "PermissionError" in shown


def test_process_1_has_nothing_that_the_code_has_not(prefix: Path) -> None:
    """They have the same user, so the code could write into its memory."""
    code = """
import os
status = open("/proc/1/status").read()
assert "CapEff:\\t0000000000000000" in status and "CapPrm:\\t0000000000000000" in status, status
assert "Seccomp:\\t2" in status and "NoNewPrivs:\\t1" in status
held = [os.readlink(f"/proc/1/fd/{fd}") for fd in os.listdir("/proc/1/fd") if os.path.lexists(f"/proc/1/fd/{fd}")]
print(sum(name.startswith("socket") for name in held))
"""
    assert run_as_user(code, prefix).split() == ["0", "ok"]
