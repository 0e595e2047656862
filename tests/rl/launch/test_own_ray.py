"""The Ray instance of a run's own: who can reach it, and what it leaves of the driver's signal handlers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl.launch.own_ray import start_ray

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

DRIVER = """
import os, signal, sys, time
from pathlib import Path
import psutil, ray
from rl.launch.own_ray import LOOPBACK, start_ray
from rl.processes.signals import signal_handlers_kept

told = []
with signal_handlers_kept(told.append):
    start_ray(LOOPBACK, 100 * 2**20, Path(sys.argv[1]), 1)
assert ray.get(ray.remote(lambda: ray.util.get_node_ip_address()).remote()) == LOOPBACK
processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
found = {c.laddr.ip for p in processes for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN}
print("listens at", *sorted(found))
os.kill(os.getpid(), signal.SIGTERM)
end = time.monotonic() + 5
while time.monotonic() < end:
    time.sleep(0.1)
ray.shutdown()
print("ended after", *(signum.name for signum in told))
"""


def test_it_listens_on_loopback_alone_and_a_slow_shutdown_after_sigterm_is_not_aborted(tmp_path: Path) -> None:
    """Ray's C++ part would end the process 3 s after SIGTERM, and would take the address of the way out."""
    folder = Path(f"/tmp/sluice-test-{os.getpid()}-ray")  # a short path, for Ray's sockets
    command = [sys.executable, "-c", DRIVER, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    listens, ended = done.stdout.strip().splitlines()
    assert set(listens.removeprefix("listens at ").split()) <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}
    assert ended == "ended after SIGTERM"
    subprocess.run(["rm", "-rf", folder], check=True)


def test_nobody_gets_in_without_its_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ValueError, match="RAY_AUTH_MODE=disabled would open the run's own Ray"):
        start_ray("127.0.0.1", 100 * 2**20, tmp_path, 1)
