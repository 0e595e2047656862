"""What SLURM's ways ask of the endings: a request that arrives twice, and an srun that must end by itself."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl.paths import REPOSITORY
from rl.processes.tree import LIFELINE, RUN_ID_VARIABLE, kill_run, new_run_id

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

ASKED = """
import signal, sys
from rl.processes.signals import AGAIN_S, install_signal_handlers
install_signal_handlers(lambda signum: print(signum.name, flush=True))
print("ready", AGAIN_S, flush=True)
sys.stdin.read()
print("ended in order", flush=True)
"""


def test_the_same_request_from_slurm_and_from_the_guardian_is_one() -> None:
    asked = subprocess.Popen(
        [sys.executable, "-c", ASKED], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert asked.stdout is not None
    try:
        again_s = float(asked.stdout.readline().split()[1])
        asked.send_signal(signal.SIGTERM)
        assert asked.stdout.readline() == "SIGTERM\n"
        asked.send_signal(signal.SIGTERM)
        time.sleep(again_s + 0.5)
        assert asked.poll() is None, "the request that came twice has killed it"
        asked.send_signal(signal.SIGTERM)
        assert asked.wait(60) == 128 + signal.SIGTERM
        assert asked.stdout.read() == "", "a later one is a second request"
    finally:
        asked.kill()
        asked.communicate()


@pytest.mark.parametrize("lifeline", [True, False])
def test_a_lifeline_whose_input_has_ended_is_left_to_end_by_itself(lifeline: bool, tmp_path: Path) -> None:
    run_id = new_run_id()
    environment = os.environ | {RUN_ID_VARIABLE: run_id, LIFELINE: str(int(lifeline))}
    process = subprocess.Popen(
        ["bash", "-c", "read line; sleep 2; touch ended-in-order"],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    try:
        assert kill_run(run_id, grace_s=1.0, deadline_s=5.0) == []
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "ended-in-order").exists() is lifeline
