"""A machine joins the Ray cluster of a run, gets the engine that the run began without, and leaves again."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from rl.paths import REPOSITORY
from tests.e2e.harness import COLD_START, DEADLINE_S, ONE_RANK, QUICKSTART, Run
from tests.e2e.hosts import Machine, machines, run_on

pytestmark = [
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make machines of namespaces"),
]
RAY = f"{sys.executable} -m ray.scripts.scripts start --num-cpus=4"
HEAD = f"{RAY} --head --node-ip-address=$HEAD --port=6399 --include-dashboard=false >&2 && exec ./launch.sh "
NODE = f"exec {RAY} --address=$HEAD:6399 --node-ip-address=$OWN --block"


def environment(machine: Machine, head: Machine) -> dict[str, str]:
    own = {"SLUICE_VENV": sys.prefix, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    return os.environ | own | {"HEAD": head.address, "OWN": machine.address}


def run_with_late_engine(head: Machine, directory: Path, *overrides: str) -> Run:
    cluster = ("run.ray_address=" + head.address + ":6399", "inference.replicas=2", "inference.min_replicas=1")
    words = shlex.join([QUICKSTART, COLD_START, *ONE_RANK, f"run.dir={directory}", *cluster, *overrides])
    done = run_on(head, ["bash", "-c", HEAD + words], environment(head, head), REPOSITORY, DEADLINE_S)
    return Run(code=done.returncode, output=done.stdout, directory=directory, leftovers=())


def wait(condition: Callable[[], bool], going: Future[Run]) -> None:
    end = time.monotonic() + 400
    while not condition():
        assert not going.done(), going.result().output[-3000:]
        assert time.monotonic() < end
        time.sleep(0.5)


def test_a_machine_brings_an_engine_and_takes_it_along(cold_start_cache: Path) -> None:
    with machines(2, serve=False) as (head, late), ThreadPoolExecutor(1) as background:
        directory = head.folder / "run"
        shutil.copytree(cold_start_cache, head.folder / "cache")
        more = (f"run.cache_dir={head.folder}/cache", "tasks.eval_size=8", "run.steps=60")
        going = background.submit(run_with_late_engine, head, directory, *more)

        def serving() -> list[float]:
            return Run(code=0, output="", directory=directory, leftovers=()).column("policy/engines_serving")

        wait(lambda: (directory / "metrics.jsonl").exists() and len(serving()) >= 2, going)
        with subprocess.Popen(
            late.command(["bash", "-c", NODE]), cwd=REPOSITORY, env=environment(late, head), stdout=subprocess.DEVNULL
        ) as node:
            wait(lambda: serving()[-1] == 2, going)
            joined = len(serving())
            wait(lambda: len(serving()) >= joined + 3, going)
            node.kill()
        run = going.result()
        assert run.code == 0, run.output[-3000:]
        print(run.output)
        assert "engine-1 serves from now on, with version" in run.output
        assert "its machine is gone, and it waits for another one" in run.output
        assert run.column("policy/engines_serving")[0] == run.column("policy/engines_serving")[-1] == 1
        assert run.summary["steps"] == 60 and max(run.column("mismatch/logprob_abs_mean")) < 1e-5
