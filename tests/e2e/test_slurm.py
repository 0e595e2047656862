"""Runs in a real SLURM cluster of three machines: sbatch, preemption, salloc, and what is refused."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rl.observe.metrics_log import read_metrics
from rl.paths import REPOSITORY
from tests.e2e.harness import COLD_START, DEADLINE_S, ONE_RANK, QUICKSTART
from tests.e2e.slurm import COMMAND_S, Slurm, missing_programs, slurm

pytestmark = [
    pytest.mark.slow,
    pytest.mark.slurm,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root may make machines of namespaces"),
    pytest.mark.skipif(
        bool(missing_programs()),
        reason=f"{missing_programs()} are missing; install them: apt-get install slurmctld slurmd munge iproute2",
    ),
]
SETTINGS = (COLD_START, *ONE_RANK, "rollout.workers=2", "tasks.eval_size=8", "checkpoint.every=1")
LEFT = (
    "ls -d /tmp/sluice-* /dev/shm/* 2>/dev/null; "
    "ps -eo stat=,args= | grep -v ^Z | grep -E '[r]aylet|[r]ay::|[r]l.cli'; true"
)
"""Prints nothing on a node without anything of a run. The first process of a node is slurmd, which reaps no orphans."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Slurm]:
    with slurm(2) as made:
        yield made


@pytest.fixture(autouse=True)
def idle(request: pytest.FixtureRequest, cluster: Slurm, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SLUICE_VENV", sys.prefix)
    yield
    cluster.cancel_all()


@pytest.fixture(scope="module")
def cache(cluster: Slurm, cold_start_cache: Path) -> str:
    """The cold start, where all machines see it, as an override."""
    shared = cluster.folder / "cache"
    shutil.copytree(cold_start_cache, shared)
    return f"run.cache_dir={shared}"


def steps_done(directory: Path) -> list[int]:
    path = directory / "metrics.jsonl"
    return [step for step, values in read_metrics(path) if "time/step_s" in values] if path.exists() else []


def await_that(condition: Callable[[], bool], output: Path, deadline_s: float = DEADLINE_S) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, output.read_text(errors="replace")[-4000:]
        time.sleep(0.5)


def left_on_nodes(cluster: Slurm) -> str:
    """What is left of runs on the nodes of an idle cluster."""
    return cluster.ask("srun", "--nodes=2", "--ntasks=2", "--chdir=/", "bash", "-c", LEFT)


def test_a_preempted_batch_job_goes_on_from_its_checkpoint_on_both_nodes(cluster: Slurm, cache: str) -> None:
    directory, output = cluster.folder / "preempted", cluster.folder / "preempted.out"
    options = ("--nodes=2", "--exclusive", "--requeue", "--partition=low")
    words = (*options, "launch.sh", QUICKSTART, "run.steps=40", f"run.dir={directory}", cache, *SETTINGS)
    job = cluster.submit(output, *words)
    await_that(lambda: (directory / "checkpoints" / "step-000001").exists(), output)
    other = ("--nodes=2", "--exclusive", "--partition=high", "--wrap", f"srun bash -c {LEFT!r}")
    looked = cluster.folder / "looked.out"
    preempting = cluster.submit(looked, *other)
    cluster.await_state(preempting, "COMPLETED", 120)
    assert looked.read_text().strip() == "", "the preempted run has left something on a node"
    first = steps_done(directory)
    assert f"JOB {job} ON node-1 CANCELLED" in output.read_text()
    assert (directory / "summary.json").exists(), output.read_text(errors="replace")[-4000:]
    assert json.loads((directory / "summary.json").read_text())["exit_reason"] == "SIGTERM"
    await_that(lambda: len(steps_done(directory)) > len(first), output)
    said = output.read_text()
    assert f"the SLURM job {job} was requeued, so resume=auto" in said and "resuming after step" in said
    steps = steps_done(directory)
    assert steps == list(range(1, len(steps) + 1)), "every step once, whichever start did it"
    placed = {line.split()[0]: line for line in said.splitlines() if line.strip().startswith("10.77.0.")}
    assert {"trainer-0,", "worker-0"} <= set(placed["10.77.0.2"].split()) and "worker-1" in placed["10.77.0.3"]
    cluster.cancel_all()
    assert left_on_nodes(cluster) == ""


def test_what_would_start_twice_or_from_nowhere_is_refused(cluster: Slurm) -> None:
    twice = cluster.folder / "twice.out"
    job = cluster.submit(twice, "--nodes=2", "--ntasks=2", "--wrap", f"srun {REPOSITORY}/launch.sh {QUICKSTART}")
    cluster.await_state(job, "FAILED", COMMAND_S)
    assert twice.read_text().count("srun starts this 2 times") == 2
    shutil.copy(REPOSITORY / "launch.sh", cluster.folder / "copied.sh")
    elsewhere = cluster.folder / "elsewhere.out"
    job = cluster.submit(elsewhere, "copied.sh", "recipe.yaml", cwd=cluster.folder)
    cluster.await_state(job, "FAILED", COMMAND_S)
    assert f"({cluster.folder}/copied.sh recipe.yaml)" in elsewhere.read_text()


def test_a_plan_knows_what_the_job_has_on_each_node(cluster: Slurm) -> None:
    output = cluster.folder / "plan.out"
    job = cluster.submit(output, "--nodes=2", "--ntasks=3", "launch.sh", "plan", QUICKSTART, "run.device=cpu")
    cluster.await_state(job, "COMPLETED", COMMAND_S)
    said = output.read_text()
    rooms = re.findall(r"1 machine of (\d) CPU cores, [^,]+?(?= and|, as the SLURM job has them$)", said, re.MULTILINE)
    assert sorted(rooms) == ["1", "2"] and "2 machines: 0 GPUs, 3 CPU cores" in said, said


@pytest.mark.long
def test_a_run_from_salloc_on_the_login_machine_is_on_the_nodes_and_ends_there_when_its_driver_is_killed(
    cluster: Slurm, cache: str
) -> None:
    directory, output = cluster.folder / "interactive", cluster.folder / "interactive.out"
    run = f"./launch.sh {QUICKSTART} run.steps=200 run.dir={directory} {cache} {' '.join(SETTINGS)}"
    look = f"srun --nodes=2 --ntasks=2 --chdir=/ bash -c {LEFT!r}"
    doctor = f"./launch.sh doctor {QUICKSTART} run.device=cpu; echo doctor ended with $?"
    script = f"{doctor}; {run}; echo ended with $?; {look}; echo looked"
    command = ["salloc", "--nodes=2", "--exclusive", "bash", "-c", script]
    with output.open("wb") as log:
        shell = subprocess.Popen(
            cluster.login.command(command),
            cwd=REPOSITORY,
            env=cluster.environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        await_that(lambda: bool(steps_done(directory)), output)
        os.kill(driver_of(directory), signal.SIGKILL)
        shell.wait(120)
    finally:
        shell.kill()
        shell.wait()
    said = output.read_text()
    assert said.count("this machine is not in the SLURM job") == said.count("going on on its first node, node-1") == 2
    assert "doctor ended with 0" in said and re.search(r"machines +10\.77\.0\.2 .*, 10\.77\.0\.3 ", said), said
    assert re.search(r"^  10\.77\.0\.3 .*worker-1$", said, flags=re.MULTILINE), said
    assert re.search(r"ended with 137\n(salloc.*\n|srun.*\n)*looked", said), said[-3000:]


def driver_of(directory: Path) -> int:
    """The id of the driver of a run: its parent, the guardian, has the same command line."""
    found = {
        process.pid: process.info["ppid"]
        for process in psutil.process_iter(["cmdline", "ppid"])
        if {"rl.cli", f"run.dir={directory}"} <= set(process.info["cmdline"] or ())
    }
    (guardian,) = (pid for pid, parent in found.items() if parent not in found)
    (driver,) = (pid for pid, parent in found.items() if parent == guardian)
    return driver


@pytest.mark.long
def test_a_job_that_is_preempted_with_a_grace_time_is_requeued(cluster: Slurm, cache: str) -> None:
    directory, output = cluster.folder / "patient", cluster.folder / "patient.out"
    options = ("--nodes=2", "--exclusive", "--requeue", "--partition=patient")
    job = cluster.submit(
        output, *options, "launch.sh", QUICKSTART, "run.steps=40", f"run.dir={directory}", cache, *SETTINGS
    )
    await_that(lambda: (directory / "checkpoints" / "step-000001").exists(), output)
    other = ("--nodes=2", "--exclusive", "--partition=high", "--wrap", "true")
    preempting = cluster.submit(cluster.folder / "other.out", *other)
    cluster.await_state(preempting, "COMPLETED", 120)
    assert f"the SLURM job {job} is being preempted, so it is requeued" in output.read_text()
    first = steps_done(directory)
    await_that(lambda: len(steps_done(directory)) > len(first), output)
    assert "resuming after step" in output.read_text()


@pytest.mark.long
def test_a_task_of_an_array_requeues_itself_alone(cluster: Slurm) -> None:
    """The last task's id is also that of the array, by which `scontrol requeue` would requeue its sibling, too."""
    script = cluster.folder / "task.py"
    script.write_text(
        "import os, sys, time\n"
        "from rl.launch.slurm import Job, requeue\n"
        "job = Job.of(os.environ)\n"
        "print(job.name, job.restarts, flush=True)\n"
        "if job.name.endswith('_2') and not job.restarts:\n"
        "    requeue(job)\n"
        "time.sleep(300)\n"
    )
    options = ("--nodes=1", "--exclusive", "--requeue", "--array=1-2")
    words = (*options, f"--export=ALL,PYTHONPATH={REPOSITORY}", "--wrap", f"exec {sys.executable} {script}")
    job = cluster.submit(cluster.folder / "task-%a.out", *words)
    first, last = (cluster.folder / f"task-{number}.out" for number in (1, 2))
    await_that(lambda: last.exists() and f"{job}_2 1" in last.read_text(), last, 2 * COMMAND_S)
    assert first.read_text() == f"{job}_1 0\n" and cluster.state(f"{job}_1") == "RUNNING"
