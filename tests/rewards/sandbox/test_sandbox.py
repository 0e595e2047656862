"""Untrusted code in the real sandbox (bubblewrap): what it cannot do, how its end is reported, and that nothing of it
is left afterwards."""

from __future__ import annotations

import asyncio
import functools
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from rewards.sandbox import bubblewrap, cgroups
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Execution, Outcome, Sandbox, queued_s
from rl.paths import REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.timeout(60)]

LIMITS = SandboxConfig(wall_s=20.0, cpu_s=2, memory_mb=96, processes=12, file_mb=1, output_kb=16)
HOST = [sys.executable, "-m", "tests.rewards.sandbox.sandbox_hosts"]

sandbox_of = functools.cache(Sandbox)


def run(code: str, *, stdin: str = "", config: SandboxConfig = LIMITS) -> Execution:
    return asyncio.run(sandbox_of(config).run(code, stdin=stdin))


def processes_naming(marker: str) -> list[int]:
    """Host processes whose command line or environment mentions the marker."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                seen = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue
            if marker.encode() in seen:
                found.append(int(entry.name))
    return found


def respawn_with(marker: str) -> str:
    """Code that starts a daemon and waits until it is up. The daemon has forked twice, left its session and closed its
    pipes, and sleeps with `marker` in its command line."""
    return f"""
import os, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for fd in (0, 1, 2):
            os.close(fd)
        os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", "import time; time.sleep(600)", "{marker}"])
    os._exit(0)
os.wait()
import time
others = lambda: [p for p in os.listdir("/proc") if p.isdigit() and p != "1"]
while not any("{marker}" in open(f"/proc/{{p}}/cmdline").read() for p in others()):
    time.sleep(0.01)
"""


def test_ok_with_stdin_and_unicode() -> None:
    result = run("import sys\nprint(input().upper(), file=sys.stderr)\nprint('grüße')", stdin="ça va\n")
    assert (result.outcome, result.exit_code) == (Outcome.OK, 0)
    assert (result.stdout, result.stderr) == ("grüße\n", "ÇA VA\n")
    assert result.wall_s > 0


def test_runs_as_main_and_shuts_down_normally() -> None:
    assert run("import atexit\natexit.register(print, 'bye')\nprint(__name__)").stdout == "__main__\nbye\n"


@pytest.mark.parametrize(
    ("code", "exit_code"), [("1/0", 1), ("import sys; sys.exit(7)", 7), ("def", 1), ("x = '\ud800'", 1), ("\0", 1)]
)
def test_failing_code(code: str, exit_code: int) -> None:
    result = run(code)
    assert (result.outcome, result.exit_code) == (Outcome.FAILED, exit_code)


def test_a_traceback_shows_the_code_and_not_the_runner() -> None:
    stderr = run("def f():\n    raise KeyError('k')\nf()").stderr
    assert 'File "/tmp/main.py", line 2, in f\n    raise KeyError' in stderr
    assert "run_code" not in stderr


def test_no_network() -> None:
    code = """
import os, socket
names = [name for _, name in socket.if_nameindex()]
assert names == ["lo"], names
for family, address in ((socket.AF_INET, ("1.1.1.1", 53)), (socket.AF_INET, ("127.0.0.1", PORT))):
    s = socket.socket(family); s.settimeout(2)
    try:
        s.connect(address)
    except OSError:
        continue
    raise SystemExit(f"reached {address}")
"""
    with subprocess.Popen(
        [sys.executable, "-c", "import socket; s = socket.create_server(('127.0.0.1', 0)); "
         "print(s.getsockname()[1], flush=True); input()"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as listener:  # fmt: skip
        assert listener.stdout is not None
        result = run(code.replace("PORT", listener.stdout.readline().strip()))
        listener.communicate("\n")
    assert result.outcome is Outcome.OK, result.stderr


def test_the_filesystem_is_hidden_and_read_only() -> None:
    code = f"""
import os, sys
hidden = [{str(REPOSITORY)!r}, {sys.prefix!r}, "/home", "/etc/shadow", "/usr/share/doc", "/root/.ssh", "/var", "/sys"]
assert not [p for p in hidden if os.path.exists(p)], [p for p in hidden if os.path.exists(p)]
for path in ("/x", "/usr/x", "/dev/x", os.path.join(sys.base_prefix, "x"), "/proc/sys/kernel/hostname"):
    try:
        open(path, "w")
    except OSError:
        continue
    raise SystemExit(f"wrote {{path}}")
names = [line.split(":")[0] for line in open("/etc/passwd")]
assert names == ["root", "sandbox"], names
open("mine", "w").write("work dir is writable")
assert os.getcwd() == "/tmp" and sorted(os.listdir(".")) == ["main.py", "mine"], os.listdir(".")
for name in ("pydantic", "pip", "rewards"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"imported {{name}}")
"""
    result = run(code)
    assert result.outcome is Outcome.OK, result.stderr


def test_executions_do_not_see_each_other() -> None:
    run("open('/tmp/left', 'w').write('x')")
    assert run("import os; print(os.listdir('/tmp'))").stdout == "['main.py']\n"


def test_the_environment_is_scrubbed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    read = "try: print(open('/proc/1/environ').read())\nexcept PermissionError: pass"
    seen = run(f"import os; print(sorted(os.environ))\n{read}").stdout
    assert "secret" not in seen and "WANDB_API_KEY" not in seen
    assert set(seen.splitlines()[0].strip("[]").replace("'", "").split(", ")) <= {
        "PATH", "HOME", "LANG", "PWD", "LC_CTYPE", "OLDPWD", *bubblewrap.ENVIRONMENT,
    }  # fmt: skip


@pytest.mark.parametrize("new_event_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_second_cancellation_while_the_first_is_served(
    new_event_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def cancel_twice() -> list[Execution]:
        sandbox = Sandbox(LIMITS)
        running = asyncio.create_task(sandbox.run("import time; time.sleep(60)"))
        await asyncio.sleep(0.3)
        for _ in range(2):
            running.cancel()
            await asyncio.sleep(0)
        with pytest.raises(asyncio.CancelledError):
            await running
        assert asyncio.all_tasks() == {asyncio.current_task()}
        return [await sandbox.run("print(7)") for _ in range(3)]

    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        assert [execution.stdout for execution in runner.run(cancel_twice())] == ["7\n"] * 3


def test_this_process_is_never_forked() -> None:
    """A fork copies the locks that other threads hold at that moment, and nobody releases the copies: a worker once
    waited for ever."""
    command = [*HOST, "forks"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert shown.stdout.split() == ["42", "42", "0", "1"]


@pytest.mark.parametrize("new_event_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_no_descriptor_of_the_host_leaks(new_event_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """This holds under uvloop, too, which Ray's actors use and which does not close inheritable descriptors."""
    leaky = os.open(REPOSITORY / "pyproject.toml", os.O_RDONLY)
    os.set_inheritable(leaky, True)
    code = """
import os
seen = {}
for pid in ("self", "1"):
    try: names = os.listdir(f"/proc/{pid}/fd")
    except PermissionError: continue
    for fd in names:
        try: seen[pid, fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
        except OSError: pass
assert not [name for name in seen.values() if "pyproject" in name], seen
assert {fd for pid, fd in seen if pid == "self"} == {"0", "1", "2"}, seen
"""
    try:
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            result = runner.run(Sandbox(LIMITS).run(code))
    finally:
        os.close(leaky)
    assert result.outcome is Outcome.OK, result.stderr


def test_no_privileges_and_own_namespaces() -> None:
    code = """
import os, socket
status = open("/proc/self/status").read()
assert "CapEff:\\t0000000000000000" in status and "CapPrm:\\t0000000000000000" in status, status
assert "NoNewPrivs:\\t1" in status
for call in (lambda: os.setuid(0), lambda: os.chroot("/tmp"), lambda: socket.sethostname("mine")):
    try:
        call()
    except OSError:
        continue
    raise SystemExit("allowed")
try: os.kill(1, 9)  # a namespace's first process ignores it; were it to die, nothing below would run
except PermissionError: pass
assert sorted(os.listdir("/etc")) == ["alternatives", "group", "hosts", "nsswitch.conf", "passwd"]
print({name: os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "net", "ipc", "uts", "mnt")})
"""
    result = run(code)
    assert result.outcome is Outcome.OK, result.stderr
    ours = {name: os.readlink(f"/proc/self/ns/{name}") for name in ("pid", "net", "ipc", "uts", "mnt")}
    for name, space in ours.items():
        assert f"'{name}'" in result.stdout and space not in result.stdout


def test_fork_bomb_is_held_to_the_process_limit() -> None:
    code = """
import os, time
count = 0
while count < 500:
    try:
        if os.fork() == 0:
            time.sleep(60); os._exit(0)
    except BlockingIOError:
        break
    count += 1
print(count)
"""
    result = run(code)
    assert result.outcome is Outcome.OK, result
    assert int(result.stdout) == LIMITS.processes - 1  # the code's own process is one of them


COUNTING = pytest.mark.parametrize("counting", ["cgroup", "host"], indirect=True)


@pytest.fixture
def counting(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """What counts the memory of executions in a test: control groups, or the host, as where there are none."""
    if request.param == "host":
        monkeypatch.setattr(cgroups, "parents", lambda: None)
    elif cgroups.parents() is None:
        pytest.skip("no control groups can be made here")
    return str(request.param)


def test_exponential_fork_bomb_is_held_and_ends() -> None:
    code = """
import os
first, most = os.getpid(), 0
while True:
    try:
        os.fork()
    except OSError:
        seen = sum(name.isdigit() for name in os.listdir("/proc"))
        if os.getpid() == first and seen > most:
            print(most := seen)
"""
    result = run(code, config=LIMITS.model_copy(update={"wall_s": 3.0, "cpu_s": 60, "memory_mb": 256}))
    assert (result.outcome, result.exit_code) == (Outcome.TIMEOUT, None)
    assert 2 < int(result.stdout.split()[-1]) <= LIMITS.processes + 1  # the runner, pid 1, comes on top


@pytest.mark.parametrize(
    "code",
    [
        "x = bytearray(10**9)",
        "x = []\nwhile True: x.append('y' * 10**6)",
        # Each process is under its own limit, and together they are far above it.
        "import os, time\nfor _ in range(5):\n    if os.fork() == 0: x = b'y' * 40_000_000; break\ntime.sleep(30)",
    ],
)
@COUNTING
def test_memory(code: str, counting: str) -> None:
    assert run(code).outcome is Outcome.MEMORY


@pytest.mark.parametrize("take", ["os.memfd_create('m')", "mmap.mmap(-1, 4096)"])
@COUNTING
def test_anonymous_shared_memory_is_for_where_it_is_counted(take: str, counting: str) -> None:
    result = run(f"import mmap, os\n{take}")
    if counting == "cgroup":
        assert result.outcome is Outcome.OK, result
    else:
        assert "PermissionError" in result.stderr and "memory that nobody would count" in result.stderr, result


@pytest.mark.parametrize(
    "take",
    [
        "libc_must(libc.shmget(0, 4096, 0o1600))",
        "libc_must(libc.msgget(0, 0o1600))",
        "libc_must(libc.semget(0, 1, 0o1600))",
    ],
)
def test_memory_that_could_not_be_counted_is_refused(take: str) -> None:
    code = f"""
import ctypes, mmap, os
libc = ctypes.CDLL(None, use_errno=True)
def libc_must(result):
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
{take}
"""
    result = run(code)
    assert result.outcome is Outcome.FAILED and "PermissionError" in result.stderr, result


def test_dev_zero_is_read_and_not_mapped() -> None:
    code = """
import mmap
zero = open("/dev/zero", "r+b", buffering=0)
assert zero.read(3) == bytes(3)
mmap.mmap(zero.fileno(), 4096)
"""
    result = run(code)
    assert result.outcome is Outcome.FAILED and "No such device" in result.stderr, result


def test_memory_that_is_counted_may_be_shared() -> None:
    code = """
import mmap, multiprocessing, os
from multiprocessing.shared_memory import SharedMemory
assert len(mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)) == 4096
block = SharedMemory(create=True, size=1 << 16)
fork = multiprocessing.get_context("fork")
count = fork.Value("i", 0)
def work():
    mine = SharedMemory(block.name)
    mine.buf[0] = 7
    with count.get_lock():
        count.value += 1
workers = [fork.Process(target=work) for _ in range(2)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(block.buf[0], count.value)
block.close(), block.unlink()
"""
    result = run(code)
    assert (result.outcome, result.stdout) == (Outcome.OK, "7 2\n"), result


@COUNTING
def test_shared_files_are_held_to_the_size_of_their_file_systems(counting: str) -> None:
    """Files that are unlinked and no longer mapped, but still open, count against the limit of their tmpfs."""
    code = """
import mmap, os
def fill(folder, number):
    fd = os.open(f"{folder}/{number}", os.O_RDWR | os.O_CREAT)
    os.unlink(f"{folder}/{number}")
    os.ftruncate(fd, 1 << 20)
    os.posix_fallocate(fd, 0, 1 << 20)
    mmap.mmap(fd, 1 << 20)[:] = bytes(1 << 20)
    return 1
for folder in ("/tmp", "/dev/shm"):
    taken = 0
    try:
        while True: taken += fill(folder, taken)
    except OSError as error:
        print(taken, error.strerror)
"""
    result = run(code, config=LIMITS.model_copy(update={"memory_mb": 64}))
    full = ["63 No space left on device", "64 No space left on device"]  # the program lies in /tmp, too
    if counting == "host":
        assert result.stdout.splitlines() == full, result
    else:  # a group counts files in memory as memory
        assert result.outcome is Outcome.MEMORY and result.stdout.splitlines() in ([], full[:1]), result


@pytest.mark.parametrize(("handling", "signal_number"), [("SIG_DFL", 24), ("SIG_IGN", 9)])
def test_cpu_limit_also_for_code_that_ignores_the_signal(handling: str, signal_number: int) -> None:
    code = f"import signal\nsignal.signal(signal.SIGXCPU, signal.{handling})\nwhile True: pass"
    result = run(code, config=LIMITS.model_copy(update={"cpu_s": 1}))
    # The wall limit would leave no exit code.
    assert (result.outcome, result.exit_code) == (Outcome.TIMEOUT, -signal_number)


def test_wall_limit() -> None:
    result = run("print('begun')\nimport time; time.sleep(60)", config=LIMITS.model_copy(update={"wall_s": 1.0}))
    assert (result.outcome, result.exit_code, result.stdout) == (Outcome.TIMEOUT, None, "begun\n")


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_flood_is_cut_and_killed(stream: str) -> None:
    result = run(f"import sys\nwhile True: sys.{stream}.write('x' * 1000)")
    assert result.outcome is Outcome.OUTPUT_LIMIT
    assert len(result.stdout) + len(result.stderr) == LIMITS.output_kb * 1024


@COUNTING
def test_file_size_and_disk(counting: str) -> None:
    result = run("open('f', 'wb').write(b'x' * 5_000_000)")
    assert result.outcome is Outcome.FAILED and "File too large" in result.stderr
    many = "for i in range(500): open(f'f{i}', 'wb').write(b'x' * 1_000_000)"
    result = run(many)
    if counting == "host":
        assert result.outcome is Outcome.FAILED and "No space left" in result.stderr
    else:
        assert result.outcome is Outcome.MEMORY


def test_daemons_are_gone_when_run_returns() -> None:
    marker = uuid.uuid4().hex
    result = run(respawn_with(marker))
    assert result.outcome is Outcome.OK, result.stderr
    assert processes_naming(marker) == []


def test_cancellation_kills_the_tree_and_propagates() -> None:
    marker = uuid.uuid4().hex

    async def cancelled_in_the_middle() -> None:
        running = asyncio.create_task(Sandbox(LIMITS).run(respawn_with(marker) + "\ntime.sleep(60)"))
        while not processes_naming(marker):
            await asyncio.sleep(0.01)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert processes_naming(marker) == []

    asyncio.run(cancelled_in_the_middle())


def test_a_killed_host_takes_its_sandboxes_with_it() -> None:
    marker = uuid.uuid4().hex
    host = subprocess.Popen([*HOST, "long"], stdin=subprocess.PIPE, cwd=REPOSITORY, text=True)
    assert host.stdin is not None
    host.stdin.write(respawn_with(marker) + "\ntime.sleep(600)")
    host.stdin.close()
    while not processes_naming(marker):
        time.sleep(0.01)
    host.kill()
    host.wait()
    while processes_naming(marker):
        time.sleep(0.01)


def test_code_cannot_pass_itself_off_as_an_infrastructure_failure() -> None:
    code = """
import os, signal
try: names = os.listdir("/proc/1/fd")
except PermissionError: names = range(64)
for fd in names:
    try:
        with open(f"/proc/1/fd/{fd}", "r+b", buffering=0) as f:
            os.set_blocking(f.fileno(), False)
            f.read(10_000)
    except (OSError, ValueError):
        pass
for pid in (1, os.getppid()):
    for number in (signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP):
        try: os.kill(pid, number)
        except OSError: pass
os.kill(os.getpid(), signal.SIGSEGV)
"""
    assert run(code, stdin="x").outcome is Outcome.FAILED


def test_failure_to_start_is_infrastructure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def start_after_breaking() -> tuple[Execution, Execution]:
        sandbox = Sandbox(LIMITS)
        broken = tmp_path / "bwrap"
        broken.write_text("#!/bin/sh\necho no namespaces left >&2\nexit 1\n")
        broken.chmod(0o755)
        # bwrap is found by the PATH of this process; the code inside gets a fixed environment.
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        refused = await sandbox.run("print(1)")
        monkeypatch.setenv("PATH", str(tmp_path / "nothing"))
        return refused, await sandbox.run("print(1)")

    refused, missing = asyncio.run(start_after_breaking())
    assert refused.outcome is Outcome.INFRASTRUCTURE and refused.stderr == "no namespaces left"
    assert missing.outcome is Outcome.INFRASTRUCTURE and "bwrap" in missing.stderr


def test_refuses_without_bubblewrap(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"apt-get install bubblewrap.*unsafe-none"):
        Sandbox(LIMITS).require()
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho Operation not permitted >&2\nexit 1\n")
    broken.chmod(0o755)
    with pytest.raises(ValueError, match=r"Operation not permitted.*CAP_SYS_ADMIN"):
        Sandbox(LIMITS).require()


def test_nothing_is_left_behind() -> None:
    def state() -> tuple[set[str], int]:
        return set(os.listdir(tempfile.gettempdir())), len(os.listdir("/proc/self/fd"))

    async def several(kind: str) -> None:
        sandbox = Sandbox(LIMITS.model_copy(update={"kind": kind}))
        await asyncio.gather(*(sandbox.run("print(1)") for _ in range(6)))

    for kind in ("bubblewrap", "unsafe-none"):
        asyncio.run(several(kind))
        before = state()
        asyncio.run(several(kind))
        assert state()[1] == before[1]
        assert not [name for name in state()[0] - before[0] if name.startswith("sluice")]


def test_concurrency_is_bounded() -> None:
    async def queued(sandbox: Sandbox) -> float:
        assert (await sandbox.run("import time; time.sleep(0.2)")).outcome is Outcome.OK
        return queued_s.get()

    async def overlapping() -> list[float]:
        sandbox = Sandbox(LIMITS.model_copy(update={"concurrency": 1}))
        return await asyncio.gather(*(queued(sandbox) for _ in range(3)))

    started = time.monotonic()
    _, second, third = asyncio.run(overlapping())
    assert time.monotonic() - started >= 0.6
    assert second >= 0.2 and third >= 0.4  # each task knows how long it waited for the others


def test_waiting_for_a_slot_is_told_also_where_a_deadline_ends_it() -> None:
    async def gave_up() -> float:
        sandbox = Sandbox(LIMITS.model_copy(update={"concurrency": 1}))
        first = asyncio.create_task(sandbox.run("import time; time.sleep(0.5)"))
        await asyncio.sleep(0)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await sandbox.run("pass")
        assert (await first).outcome is Outcome.OK and (await sandbox.run("pass")).outcome is Outcome.OK
        return queued_s.get()

    assert asyncio.run(gave_up()) >= 0.15


def test_unsafe_none_says_so_and_still_limits(caplog: pytest.LogCaptureFixture) -> None:
    unsafe = LIMITS.model_copy(update={"kind": "unsafe-none", "wall_s": 3.0})
    Sandbox(unsafe).require()
    result = run("import os; print(os.getcwd())", config=unsafe)
    assert [r.levelname for r in caplog.records if "unsafe-none" in r.message] == ["WARNING"]
    assert result.outcome is Outcome.OK and not os.path.exists(result.stdout.strip())
    assert run("x = bytearray(10**9)", config=unsafe).outcome is Outcome.MEMORY
    assert run("while True: print('x' * 1000)", config=unsafe).outcome is Outcome.OUTPUT_LIMIT
    child = "import os, time\nprint(os.fork())\ntime.sleep(60)"
    result = run(child, config=unsafe)
    assert result.outcome is Outcome.TIMEOUT
    survivor = Path("/proc") / result.stdout.split()[0] / "stat"
    assert not survivor.exists() or survivor.read_text().rpartition(")")[2].split()[0] == "Z"


def test_the_interpreter_is_the_base_one() -> None:
    assert run("import sys; print(sys.executable)").stdout.strip() == bubblewrap.interpreter()
