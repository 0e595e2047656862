# ruff: noqa: E501 (programs, as they are written)
"""Programs that reach out of their sandbox, at its runner, at the host, or for what nobody counts. Each of them prints
`escaped` if it gets what it wants; none may. What is not covered is listed in `rewards.sandbox.sandbox`."""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from rewards.sandbox import cgroups
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Execution, Outcome, Sandbox

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

LIMITS = SandboxConfig(wall_s=20.0, cpu_s=3, memory_mb=96, processes=16, file_mb=4, output_kb=16)
sandbox_of = functools.cache(Sandbox)
LIBC = """
import ctypes, os, platform
libc = ctypes.CDLL(None, use_errno=True)
machine = platform.machine() == "x86_64"
def call(x86, arm, *arguments):
    result = libc.syscall(ctypes.c_long(x86 if machine else arm), *map(ctypes.c_long, arguments))
    if result >= 0: print("escaped")
    return result
word = ctypes.addressof(ctypes.create_string_buffer(4096))
"""


def run(code: str, **changed: object) -> Execution:
    return asyncio.run(sandbox_of(LIMITS.model_copy(update=changed)).run(code))


CALLS = {
    "ptrace the runner": "call(101, 117, 16, 1, 0, 0)",
    "seize the runner": "call(101, 117, 0x4206, 1, 0, 0)",
    "be traced": "call(101, 117, 0, 0, 0, 0)",
    "read another process's memory": "call(310, 270, 1, word, 1, word, 1, 0)",
    "write another process's memory": "call(311, 271, 1, word, 1, word, 1, 0)",
    "take another process's descriptor": "call(438, 438, os.pidfd_open(1), 0, 0)",
    "compare with another process": "call(312, 272, 1, os.getpid(), 0, 0, 0)",
    "handle page faults": "call(323, 282, 0x800)",
    "handle page faults of users": "call(323, 282, 1)",
    "open a performance counter": "call(298, 241, word, 0, -1, -1, 0)",
    "load a BPF program": "call(321, 280, 5, word, 64)",
    "make a BPF map": "call(321, 280, 0, word, 64)",
    "join a session keyring": "call(250, 219, 1, 0)",
    "read the session keyring": "call(250, 219, 6, -3, word, 10)",
    "add a key": "call(248, 217, word, word, word, 1, -3)",
    "request a key": "call(249, 218, word, word, 0, -3)",
    "watch the file system": "call(300, 262, 0, 0)",
    "open a file by its handle": "call(304, 265, -100, word, 0)",
    "the handle of a file": "call(303, 264, -100, word, word, word, 0)",
    "mount": "call(165, 40, word, word, word, 0, 0)",
    "unmount": "call(166, 39, word, 0)",
    "the new mount calls": "call(430, 430, word, 0)",
    "a copy of a mount tree": "call(428, 428, -100, word, 1)",
    "change mount attributes": "call(442, 442, -100, word, 0, word, 32)",
    "change the root": "call(161, 51, word)",
    "a user namespace": "call(272, 97, 0x10000000)",
    "a mount namespace": "call(272, 97, 0x00020000)",
    "a network namespace": "call(272, 97, 0x40000000)",
    "a user namespace by clone": "r = call(56, 220, 0x10000000 | 17, 0, 0, 0, 0)\nif r == 0: os._exit(0)",
    "a pid namespace by clone": "r = call(56, 220, 0x20000000 | 17, 0, 0, 0, 0)\nif r == 0: os._exit(0)",
    "a namespace by clone3": "call(435, 435, word, 88)",
    "enter the runner's namespace": "call(308, 268, os.pidfd_open(1), 0x20000000)",
    "the kernel's log": "call(103, 116, 3, word, 4096)",
    "reboot": "call(169, 142, 0xfee1dead, 672274793, 0x89abcdef, 0)",
    "a kernel module": "call(175, 105, word, 10, word)",
    "another kernel": "call(246, 104, 0, 0, 0, 0)",
    "swap": "call(167, 224, word, 0)",
    "accounting": "call(163, 89, 0)",
    "quota": "call(179, 60, 0, word, 0, word)",
    "set the clock": "call(227, 112, 0, word)",
    "adjust the clock": "call(159, 171, word)",
    "the host's name": "call(170, 161, word, 4)",
    "the domain's name": "call(171, 162, word, 4)",
    "another personality": "call(135, 92, 0x0400000)",
    "memory policy": "call(238, 237, 0, 0, 0)",
    "move pages of the runner": "call(279, 239, 1, 0, 0, 0, 0, 0)",
    "secret memory": "call(447, 447, 0)",
    "System V memory": "call(29, 194, 0, 4096, 0o1600)",
    "System V messages": "call(68, 186, 0, 0o1600)",
    "System V semaphores": "call(64, 190, 0, 1, 0o1600)",
    "a message queue": "libc.syscall(0) and call(240, 180, word, 0o102, 0o600, 0)",
    "io_uring": "call(425, 425, 8, word)",
    "become root": "[call(105, 146, 0), call(117, 147, 0, 0, 0), call(106, 144, 0)]",
    "another group": "call(116, 159, 1, word)",
    "capabilities": "call(126, 91, word, word)",
    "I/O ports": "machine and call(172, 0, 3)",
    "a local descriptor table": "machine and call(154, 0, 1, word, 16)",
    "real-time priority": "call(144, 119, 0, 1, word)",
    "higher priority": "call(141, 140, 0, 0, -20)",
}  # fmt: skip


@pytest.mark.parametrize("attack", CALLS)
def test_calls_that_reach_out_fail(attack: str) -> None:
    result = run(LIBC + CALLS[attack])
    assert "escaped" not in result.stdout and "READY" not in result.stdout, result


TRIES = {
    "vsock": "import socket; socket.socket(40, socket.SOCK_STREAM)",
    "raw packets": "import socket; socket.socket(17, socket.SOCK_RAW)",
    "raw sockets": "import socket; socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)",
    "bluetooth": "import socket; socket.socket(31, socket.SOCK_RAW, 1)",
    "the kernel's cryptography": "import socket; socket.socket(38, socket.SOCK_SEQPACKET)",
    "the internet": "import socket; socket.create_connection(('1.1.1.1', 53), 2)",
    "name servers": "import socket; socket.getaddrinfo('example.com', 80)",
    "the runner's memory": "open('/proc/1/mem', 'r+b')",
    "the runner's environment": "open('/proc/1/environ').read()[0]",
    "the runner's descriptors": "import os; os.listdir('/proc/1/fd')[0]; raise SystemExit(0)",
    "the runner's maps": "open('/proc/1/maps').read()[0]",
    "the runner's root": "import os; os.listdir('/proc/1/root/etc/ssh')",
    "the runner's stack": "open('/proc/1/stack').read()",
    "the kernel's command line": "assert open('/proc/cmdline').read()",
    "the kernel's symbols": "assert open('/proc/kallsyms').read(9)",
    "the kernel's memory": "open('/proc/kcore', 'rb').read(9)[0]",
    "the kernel's keys": "assert open('/proc/keys').read()",
    "the physical memory": "open('/dev/mem', 'rb')",
    "disks": "import glob; (glob.glob('/dev/[vsx]d*') + glob.glob('/dev/nvme*'))[0]",
    "a terminal": "import os; os.openpty()",
    "devices by number": "import os, stat; os.mknod('/tmp/d', 0o600 | stat.S_IFBLK, os.makedev(254, 0))",
    "system files": "import os; os.listdir('/sys')",
    "passwords": "open('/etc/shadow')",
    "the host's users": "import pwd; [u for u in pwd.getpwall() if u.pw_name not in ('root', 'sandbox')][0]",
    "the host's name": "import socket; assert socket.gethostname() != 'sandbox'",
    "documents of the host": "import os; os.listdir('/usr/share/doc')",
    "programs for the administrator": "import os; os.listdir('/usr/sbin')",
    "temporary files of the host": "import os; assert os.listdir('/tmp') != ['main.py']",
    "kernel settings": "open('/proc/sys/kernel/core_pattern', 'w').write('|/tmp/x')",
    "the sysrq trigger": "open('/proc/sysrq-trigger', 'w').write('b')",
    "the library of Python": "import os; open(os.__file__, 'a')",
    "the interpreter": "import sys; open(sys.executable, 'ab')",
    "the interpreter through /proc": "open('/proc/self/exe', 'ab')",
    "extended attributes": "import os; os.setxattr('/tmp/main.py', 'user.x', b'y' * 60_000)",
    "own extended attributes of a descriptor": "import os; os.setxattr(os.open('/tmp/main.py', 0), 'user.x', b'y')",
    "higher limits": "import resource; resource.setrlimit(resource.RLIMIT_NPROC, (9999, 9999))",
    "more memory": "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
    "locked memory": "import ctypes, resource; resource.setrlimit(resource.RLIMIT_MEMLOCK, (-1, -1)); assert False",
    "a set-user program": "import subprocess; subprocess.run(['su', '-c', 'id'], check=True, stdin=subprocess.DEVNULL)",
    "mount by the program": "import subprocess; subprocess.run(['mount', '-t', 'tmpfs', 'x', '/tmp'], check=True)",
    "unshare by the program": "import subprocess; subprocess.run(['unshare', '-Ur', 'true'], check=True)",
    "stop the runner": "import os, signal; os.kill(1, signal.SIGSTOP); raise SystemExit(0)",
    "end the runner": "import os, signal; os.kill(1, signal.SIGKILL); raise SystemExit(0)",
    "the host's shared memory": "import os; os.listdir('/dev/shm')[0]",
    "somebody's group": "import os; os.setgroups([0])",
    "a process of somebody": "import os; [p for p in os.listdir('/proc') if p.isdigit() and int(p) not in (1, os.getpid())][0]",
    "control groups' files": "import os; os.listdir('/sys/fs/cgroup')",
}  # fmt: skip
WITHOUT_AN_OWN_USER = {"stop the runner", "end the runner"}
"""As pid 1 of its namespace the runner ignores signals; where it has a user of its own, sending them is refused."""


@pytest.mark.parametrize("attack", TRIES)
def test_what_a_program_must_not_reach_is_out_of_reach(attack: str) -> None:
    result = run(TRIES[attack] + "\nprint('escaped')")
    held = result.outcome is Outcome.FAILED and "escaped" not in result.stdout
    assert held or (attack in WITHOUT_AN_OWN_USER and sandbox_of(LIMITS)._users.range is None), result


def test_abstract_sockets_of_the_host_are_out_of_reach() -> None:
    name = f"\0sluice-test-{uuid.uuid4().hex}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()
        result = run(f"import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect({name!r})")
    assert "ConnectionRefusedError" in result.stderr, result


FLOODS = {
    "files without contents": "import os\nfor n in range(10**7): os.close(os.open(f'/tmp/{n}', 64))",
    "folders": "import os\nfor n in range(10**7): os.mkdir(f'/dev/shm/{n}')",
    "buffers of sockets": (
        "import os, socket, time\nheld = []\nfor _ in range(12):\n  if os.fork() == 0:\n    while True:\n"
        "      try: a, b = socket.socketpair()\n      except OSError: time.sleep(30)\n      a.setblocking(False); held += [a, b]\n"
        "      try:\n        while True: a.send(b'x' * 65536)\n      except OSError: pass\ntime.sleep(30)"
    ),
    "buffers of pipes": (
        "import fcntl, os, time\nfor _ in range(12):\n  if os.fork() == 0:\n    while True:\n"
        "      try: r, w = os.pipe()\n      except OSError: time.sleep(30)\n"
        "      try: fcntl.fcntl(w, 1031, 1 << 20)\n      except OSError: pass\n      os.set_blocking(w, False)\n"
        "      try:\n        while True: os.write(w, b'x' * 65536)\n      except OSError: pass\ntime.sleep(30)"
    ),
    "shared memory": "import mmap, os, time\nfor _ in range(6):\n  if os.fork() == 0:\n    m = mmap.mmap(-1, 40 << 20)\n    m[:] = b'x' * len(m); time.sleep(30)\nwhile True: os.wait()",
    "anonymous files": "import os\nfor n in range(12):\n  fd = os.memfd_create('m')\n  for _ in range(4): os.write(fd, b'x' * (1 << 22)) and os.lseek(fd, 0, 2)",
    "processes that each take a little": "import os, time\nfor _ in range(12):\n  if os.fork() == 0:\n    x = bytearray(20 << 20); time.sleep(30)\ntime.sleep(30)",
}  # fmt: skip
UNCOUNTED = {"buffers of sockets", "buffers of pipes"}
"""Without control groups nobody counts these: see `rewards.sandbox.sandbox`."""


@pytest.mark.parametrize("counting", ["cgroup", "host"])
@pytest.mark.parametrize("flood", FLOODS)
def test_memory_of_every_kind_is_counted(flood: str, counting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if counting == "host":
        monkeypatch.setattr(cgroups, "parents", lambda: None)
    elif cgroups.parents() is None:
        pytest.skip("no control groups can be made here")
    if counting == "host" and flood in UNCOUNTED:
        pytest.skip("documented: nobody counts the kernel's buffers without control groups")
    wall_s = 3.0 if flood == "buffers of pipes" else 20.0
    result = asyncio.run(Sandbox(LIMITS.model_copy(update={"cpu_s": 30, "wall_s": wall_s})).run(FLOODS[flood]))
    refused = counting == "host" and "PermissionError" in result.stderr
    full = "No space left" in result.stderr or "File too large" in result.stderr
    # The buffers of all pipes of a user are limited, and the execution has a user of its own.
    bounded = flood == "buffers of pipes" and result.outcome is Outcome.TIMEOUT
    assert result.outcome is Outcome.MEMORY or refused or full or bounded, result
    assert result.wall_s < 15, "it was ended when its memory was used up, not at the deadline"
    assert not list(Path("/sys/fs/cgroup").glob(f"*/sluice-{os.getpid()}-*")), "the group is removed"


HONEST = {
    "twenty threads": "from concurrent.futures import ThreadPoolExecutor as P\nimport time\nwith P(20) as p: print(sum(p.map(lambda i: (time.sleep(0.05), i)[1], range(20))))",
    "awk": "import subprocess\nprint(subprocess.run(['awk', 'BEGIN { print 6 * 7 }'], capture_output=True, text=True, check=True).stdout)",
    "localhost": "import socket, threading\ns = socket.create_server(('localhost', 0))\nthreading.Thread(target=lambda: s.accept()[0].send(b'hi')).start()\nprint(socket.create_connection(('localhost', s.getsockname()[1])).recv(9))",
    "exit": "print(1)\nexit()",
    "quit with a code": "import atexit\natexit.register(print, 'bye')\nquit(0)",
    "arguments": "import sys\nprint(sys.argv[1:], len(sys.argv), sys.argv[0])",
    "argparse": "import argparse\np = argparse.ArgumentParser()\np.add_argument('--n', default=3, type=int)\nprint(p.parse_args().n, p.prog)",
    "unittest": "import unittest\nclass T(unittest.TestCase):\n  def test(self): self.assertTrue(1)\nunittest.main()",
    "the user's name": "import getpass, os, pwd, grp\nprint(getpass.getuser(), pwd.getpwuid(os.getuid()).pw_name, os.path.expanduser('~'))",
    "its own source": "import inspect\ndef f(): return 1\nprint(inspect.getsource(f), __file__)",
    "processes": "import multiprocessing as m\ndef f(x): return x * x\nif __name__ == '__main__':\n  with m.Pool(2) as p: print(p.map(f, range(4)))",
    "spawned processes": "import multiprocessing as m\ndef f(x): return x * x\nif __name__ == '__main__':\n  with m.get_context('spawn').Pool(2) as p: print(p.map(f, range(4)))",
    "a server of objects": "import multiprocessing as m\nif __name__ == '__main__':\n  with m.Manager() as manager:\n    d = manager.dict(); d[1] = 2; print(dict(d))",
    "time zones": "import zoneinfo, datetime\nprint(datetime.datetime(2026, 7, 1, tzinfo=zoneinfo.ZoneInfo('Europe/Berlin')).utcoffset())",
    "a pipeline of programs": "import subprocess\nprint(subprocess.run('seq 5 | sort -r | head -n 2 | tr \"\\n\" \" \"', shell=True, capture_output=True, text=True).stdout)",
    "another Python": "import subprocess, sys\nprint(subprocess.run([sys.executable, '-c', 'print(input())'], input='x', capture_output=True, text=True).stdout)",
    "temporary files": "import tempfile, os\nwith tempfile.TemporaryDirectory() as d:\n  open(d + '/x', 'w').write('y'); print(os.listdir(d))",
    "asynchronous code": "import asyncio\nasync def f(): await asyncio.sleep(0.01); return 7\nprint(asyncio.run(f()))",
    "a database": "import sqlite3\nc = sqlite3.connect('x.db'); c.execute('create table t (x)'); c.execute('insert into t values (1)'); print(list(c.execute('select * from t')))",
    "deep recursion": "import sys\nsys.setrecursionlimit(20_000)\ndef f(n): return n and 1 + f(n - 1)\nprint(f(9_000))",
    "an image of itself": "import pickle\nclass A: pass\nprint(type(pickle.loads(pickle.dumps(A()))).__name__)",
    "signals": "import signal, os, time\nsignal.signal(signal.SIGALRM, lambda *a: print('ring'))\nsignal.setitimer(signal.ITIMER_REAL, 0.05)\ntime.sleep(0.2)",
}  # fmt: skip


@pytest.mark.parametrize("program", HONEST)
def test_honest_programs_run_as_under_plain_python(program: str, tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(HONEST[program])
    plain = subprocess.run([sys.executable, "-I", "main.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    result = asyncio.run(sandbox_of(SandboxConfig()).run(HONEST[program]))
    own = result.stdout.replace("sandbox sandbox /tmp", "root root /root").replace("/tmp/main.py", "main.py")
    expected = plain.stdout.replace(str(tmp_path / "main.py"), "main.py")
    assert result.outcome is (Outcome.OK if plain.returncode == 0 else Outcome.FAILED), result
    assert program == "the user's name" or own == expected, (own, expected)


def test_a_busy_neighbour_leaves_half_of_the_cpu() -> None:
    """Two executions side by side: one is a single process, the other has twelve that spin."""
    if cgroups.parents() is None or "cpu" not in cgroups.parents().folders:
        pytest.skip("no control groups for the CPU can be made here")
    wait = "\nwhile True:\n  try: os.wait()\n  except ChildProcessError: break\nprint(sum(os.times()[:4]))"
    spin = "import os, time\nend = time.time() + 4\nfor _ in range(11):\n  if os.fork() == 0:\n    while time.time() < end: pass\n    os._exit(0)\nwhile time.time() < end: pass"
    work = "import os, time\nend = time.time() + 4\nwhile time.time() < end: pass"
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})

    async def both() -> list[Execution]:
        sandbox = Sandbox(LIMITS.model_copy(update={"cpu_s": 20}))
        return await asyncio.gather(sandbox.run(spin + wait), sandbox.run(work + wait))

    try:
        spun, worked = (float(execution.stdout) for execution in asyncio.run(both()))
    finally:
        os.sched_setaffinity(0, allowed)
    assert worked > 0.4 * spun, "thirteen equal processes would have left it a twelfth"


def test_executions_have_users_of_their_own() -> None:
    if sandbox_of(LIMITS)._users.range is None:
        pytest.skip("an ordinary user has one number only")

    async def several() -> list[Execution]:
        return await asyncio.gather(*(sandbox.run("import os; print(os.getuid(), os.getgid())") for _ in range(4)))

    sandbox = Sandbox(LIMITS)
    numbers = [execution.stdout.split() for execution in asyncio.run(several())]
    assert len({user for user, _ in numbers}) == 4 and all(user == group for user, group in numbers)


def test_a_program_that_is_killed_is_no_program_that_took_too_much() -> None:
    result = run("import os; os.kill(os.getpid(), 9)")
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, -9)


def test_a_killed_host_leaves_groups_that_the_next_one_sweeps() -> None:
    found = cgroups.parents()
    if found is None:
        pytest.skip("no control groups can be made here")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = cgroups.Cgroup(found, f"{cgroups.PREFIX}{dead.pid}-0", 1 << 25, 4)
    time.sleep(0.01)
    cgroups.sweep(found)
    assert not any(folder.exists() for folder in left.folders)


def test_buffers_of_the_network_have_a_limit_in_version_1() -> None:
    found = cgroups.parents()
    if found is None or found.version != 1:
        pytest.skip("no control groups of version 1 can be made here")
    group = cgroups.Cgroup(found, f"{cgroups.PREFIX}{os.getpid()}-network", 1 << 25, 4)
    limit = next(folder for folder in group.folders if "memory" in str(folder)) / "memory.kmem.tcp.limit_in_bytes"
    try:
        assert not limit.exists() or int(limit.read_text()) <= (1 << 25) + cgroups.OWN_BYTES
    finally:
        group.remove()


def test_a_group_that_cannot_be_made_whole_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    parents = cgroups.Parents(1, {"memory": tmp_path / "a", "pids": tmp_path / "absent"})
    with pytest.raises(OSError):
        cgroups.Cgroup(parents, "x", 1 << 25, 4)
    assert os.listdir(tmp_path / "a") == []


def test_the_hosts_files_are_not_counted_while_an_execution_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Until bubblewrap has made its file systems, those of process 1 are the host's."""
    monkeypatch.setattr(cgroups, "parents", lambda: None)
    monkeypatch.setattr("rewards.sandbox.tree._COUNT_S", 0.0005)
    monkeypatch.setattr("rewards.sandbox.counting.MAX_INODES", 100)

    async def several() -> list[Execution]:
        return [await Sandbox(LIMITS).run("print(1)") for _ in range(20)]

    assert {execution.outcome for execution in asyncio.run(several())} == {Outcome.OK}
