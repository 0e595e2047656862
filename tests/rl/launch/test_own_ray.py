"""The Ray instance of a run's own: who can reach it, and what it leaves of the driver's signal handlers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rl.launch.own_ray import start_ray
from rl.processes.tree import RUN_ID_VARIABLE, kill_run, new_run_id, resource_prefix

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


LOSS = """
import os, signal, sys, time
from pathlib import Path
import psutil, ray
from rl.driver.waiting import Calls, ProcessDied
from rl.launch.own_ray import LOOPBACK, ended_here, start_ray

start_ray(LOOPBACK, 100 * 2**20, Path(sys.argv[1]), 1)

class Sleeper:
    def sleep(self):
        time.sleep(600)

calls = Calls(Path(sys.argv[1]))
calls.gone = ended_here
actor = ray.remote(Sleeper).remote()
calls.add(actor, "sleeper")
started = calls.start([actor], "sleep")
(lost,) = (p for p in psutil.Process().children(recursive=True) if p.name() == sys.argv[2])
lost.kill()
try:
    calls.wait(started, "sleeping")
except ProcessDied as died:
    print(died, flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("kind", ["raylet", "gcs_server"])
def test_the_loss_of_ray_itself_is_blamed_on_no_worker(kind: str) -> None:
    run_id = new_run_id()
    folder = Path(f"/tmp/{resource_prefix(run_id)}ray")
    command = [sys.executable, "-c", LOSS, str(folder), kind]
    environment = os.environ | {RUN_ID_VARIABLE: run_id}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
    finally:
        kill_run(run_id)
    *_, said = done.stdout.splitlines()  # after what Ray itself says
    assert said == f"sleeping: a machine is gone: this one, whose {kind} (Ray's) ended with exit code -9"


def test_nobody_gets_in_without_its_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(ValueError, match="RAY_AUTH_MODE=disabled would open the run's own Ray"):
        start_ray("127.0.0.1", 100 * 2**20, tmp_path, 1)
