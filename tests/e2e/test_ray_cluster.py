"""A run joins a Ray cluster that somebody else started, given its address, and leaves it as it was.

The cluster runs in namespaces of its own, for the network (loopback only) and for processes. So nobody else can reach
it, and it ends with the test. Making the namespaces takes root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.e2e.harness import COLD_START, DEADLINE_S, ONE_RANK, QUICKSTART, REPOSITORY, SHORT, Run, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

HOST = """
"$PYTHON" -c 'import fcntl, socket, struct
SIOCSIFFLAGS, UP = 0x8914, struct.pack("16sh", b"lo", 1)
fcntl.ioctl(socket.socket(), SIOCSIFFLAGS, UP)'
"$(dirname "$PYTHON")/ray" start --head --port=6399 --num-cpus=4 --include-dashboard=false --temp-dir="$RAY_DIR" >&2
./launch.sh "$@"
code=$?
actors='ray::(Trainer|Inference|Worker|Buffer)Actor'
for _ in $(seq 120); do pgrep -f "$actors" >/dev/null || break; sleep 0.5; done
echo "actors left: $(pgrep -fc "$actors"), clusters left: $(pgrep -xc gcs_server)"
exit $code
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may make a network namespace")
def test_a_run_joins_a_cluster_by_address_and_leaves_it_running(tmp_path: Path, cold_start_cache: Path) -> None:
    directory = tmp_path / "run"
    ray_dir = tempfile.mkdtemp(prefix="sluice-ray-", dir="/tmp")  # short: Ray's socket paths have 107 bytes at most
    overrides = (f"run.dir={directory}", f"run.cache_dir={cold_start_cache}", "run.ray_address=127.0.0.1:6399")
    environment = os.environ | {"SLUICE_VENV": sys.prefix, "PYTHON": sys.executable, "RAY_DIR": ray_dir}
    try:
        done = subprocess.run(
            ["unshare", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", HOST, "host",
             QUICKSTART, COLD_START, *overrides, *SHORT, *ONE_RANK],
            cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=DEADLINE_S, check=False,
        )  # fmt: skip
    finally:
        shutil.rmtree(ray_dir, ignore_errors=True)
    run = Run(code=done.returncode, output=done.stdout, directory=directory, leftovers=())
    assert run.code == 0, run.output[-4000:]
    assert "actors left: 0, clusters left: 1" in run.output
    assert run.summary["steps"] == 2 and run.summary["trained_tokens"] > 0
    assert run.summary["mismatch_logprob_abs_mean"] < 1e-5


def test_where_no_cluster_answers_nothing_is_started(tmp_path: Path) -> None:
    run = launch(tmp_path / "run", tmp_path / "cache", "run.ray_address=127.0.0.1:1")
    assert run.code == 2
    assert "no Ray cluster answers at run.ray_address=127.0.0.1:1" in run.output and "ray start --head" in run.output
    assert not (tmp_path / "run").exists()
