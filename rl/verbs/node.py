"""`node`: be one of the machines of a run with a hostfile, or of a SLURM job. The run starts it there over ssh or with
srun; nobody types it.

It reads a greeting from its standard input (rl.launch.greeting), joins Ray's cluster there, and ends everything of the
run on this machine as soon as its standard input ends, however that comes about.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

from rl.exitcodes import FAILED
from rl.launch.addresses import own_address
from rl.launch.greeting import Greeting
from rl.paths import REPOSITORY
from rl.processes.guardian import run_guarded
from rl.processes.tree import TEMP, resource_prefix
from rl.recipe.machine import cpu_count
from rl.verbs.usage import refuse, refuse_arguments

POLL_S = 0.5
END_S = 5.0


def node(argv: Sequence[str]) -> int:
    """Join, and stay until the run ends."""
    if (refused := refuse_arguments("node", argv)) is not None:
        return refused
    try:
        said = Greeting.of_line(sys.stdin.buffer.readline())
    except ValueError as error:
        return refuse(f"{error}: a run with run.hostfile or in a SLURM job starts this verb on its other machines")
    if difference := said.difference():
        return refuse(f"{difference}: use a working tree and an environment that all machines share, or equal ones")
    lifeline = os.dup(sys.stdin.fileno())  # the guardian closes standard input itself
    return run_guarded(lambda: _join(said, lifeline), run_id=said.run_id)


def _join(said: Greeting, lifeline: int) -> int:
    host, _, _ = said.address.rpartition(":")
    try:
        own = own_address(host.strip("[]"))
    except OSError as error:
        return refuse(f"the machine where the run was started, {host}, cannot be reached from here: {error}")
    path = os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)])
    environment = {**os.environ, **said.environment, "PYTHONPATH": path, "RAY_worker_niceness": "0"}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": said.token}
    ray = subprocess.Popen(
        [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", f"--address={said.address}"),
            *(f"--node-ip-address={own}", f"--num-cpus={cpu_count()}", "--block"),
            f"--temp-dir={TEMP / f'{resource_prefix(said.run_id)}ray'}",
        ],
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    stopped = False

    def on_signal(*_: object) -> None:
        nonlocal stopped
        stopped = True

    signal.signal(signal.SIGTERM, on_signal)
    while not stopped and ray.poll() is None:
        if select.select([lifeline], [], [], POLL_S)[0] and not os.read(lifeline, 4096):
            stopped = True
    if stopped:
        _end(ray)
        return 0
    print(f"error: Ray ended here with exit code {ray.returncode}", file=sys.stderr)
    return FAILED


def _end(ray: subprocess.Popen[bytes]) -> None:
    ray.terminate()
    try:
        ray.wait(END_S)
    except subprocess.TimeoutExpired:
        ray.kill()
        ray.wait()
