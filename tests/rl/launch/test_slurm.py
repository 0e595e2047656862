from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from rl.driver.config import RunConfig
from rl.launch.others import other_machines, unused_nodes
from rl.launch.slurm import (
    Job,
    Share,
    fields_in,
    is_preempted,
    over_srun,
    requeue,
    shares,
    shares_in,
    step_environment,
    to_requeue,
)
from rl.paths import REPOSITORY
from rl.processes.tree import LIFELINE
from rl.recipe.machine import cpu_count

BATCH = {
    "SLURM_JOB_ID": "12",
    "SLURM_JOB_NODELIST": "gpu[01-02],cpu-7",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURMD_NODENAME": "gpu01",
}
SHOWN = "JobId=12 JobName=launch.sh Requeue={requeue} Restarts=0 PreemptEligibleTime=2026-11-30T07:20:40 {preempted}"
"""A part of what SLURM 22.05 prints."""
DETAILS = """JobId=12 JobName=launch.sh
   NumNodes=3 NumCPUs=25 NumTasks=3 CPUs/Task=N/A ReqB:S:C:T=0:0:*:*
   JOB_GRES=gpu:9
     Nodes=gpu[01-02] CPU_IDs=0-3,8-15 Mem=64000 GRES=gpu:h100:4(IDX:0-3)
     Nodes=cpu-7 CPU_IDs=5 Mem=0 GRES=gpu:1(IDX:0),shard:2
   MinCPUsNode=1 MinMemoryCPU=1000M MinTmpDiskNode=0
"""
"""The same of `--details`."""
SCONTROL = """#!/bin/sh
echo "$@" >>"$CALLS"
case "$*" in
    "show hostnames gpu[01-02],cpu-7") printf 'gpu01\\ngpu02\\ncpu-7\\n' ;;
    "--oneliner show node gpu02") echo "NodeName=gpu02 Arch=x86_64 NodeAddr=10.1.0.2 NodeHostName=rack4-2" ;;
    "--oneliner show job 12") echo "$SHOWN" ;;
    "--details show job 12") echo "$DETAILS" ;;
    "show hostnames gpu[01-02]") printf 'gpu01\\ngpu02\\n' ;;
    "show hostnames cpu-7") echo cpu-7 ;;
    "requeue 12" | "requeue 12_2") ;;
    *) echo "slurm_load: Unable to contact slurm controller" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def scontrol(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program that answers as SLURM's does. Returns the file with what it was asked."""
    program = tmp_path / "scontrol"
    program.write_text(SCONTROL)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for name, value in BATCH.items():
        monkeypatch.setenv(name, value)
    return tmp_path / "calls"


def job(**changed: str) -> Job:
    found = Job.of(BATCH | changed)
    assert found is not None
    return found


def test_what_a_job_has_on_each_node(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETAILS", DETAILS)
    many, few = Share(cores=12, gpus=4, memory_bytes=64000 * 2**20), Share(cores=1, gpus=1, memory_bytes=None)
    assert shares(job()) == {"gpu01": many, "gpu02": many, "cpu-7": few}
    assert shares_in("JobId=12\n   NodeList=(null)\n") == {}


def test_outside_of_a_job_and_on_a_login_machine_there_is_none() -> None:
    assert Job.of({}) is None
    assert Job.of({name: value for name, value in BATCH.items() if name != "SLURMD_NODENAME"}) is None


def test_a_job_of_an_array_is_asked_for_and_requeued_by_its_own_name(scontrol: Path) -> None:
    """Its id may be that of the array, which `scontrol requeue 12` would requeue whole."""
    own = job(SLURM_ARRAY_JOB_ID="12", SLURM_ARRAY_TASK_ID="2")
    requeue(own)
    to_requeue(own)
    asked = scontrol.read_text()
    assert "requeue 12_2" in asked and "show job 12_2" in asked
    assert job().name == job().id


def test_a_variable_that_should_be_a_number_is_named() -> None:
    with pytest.raises(ValueError, match="SLURM_JOB_NUM_NODES=abc in the environment is no number"):
        job(SLURM_JOB_NUM_NODES="abc")


def test_a_batch_job_and_a_step_of_one() -> None:
    batch = job(SLURM_RESTART_COUNT="2")
    assert (batch.id, batch.count, batch.here, batch.restarts, batch.batch) == ("12", 3, "gpu01", 2, True)
    assert not job(SLURM_STEP_ID="0").batch and job().restarts == 0


def test_a_heterogeneous_job_is_refused() -> None:
    with pytest.raises(ValueError, match="the SLURM job 12 is heterogeneous"):
        job(SLURM_HET_SIZE="2")


def test_the_other_nodes_are_those_of_which_scontrol_tells(scontrol: Path) -> None:
    others = over_srun(job())
    assert others is not None and list(others.commands) == ["gpu02", "cpu-7"]
    assert others.source == "the SLURM job 12" and others.first == "10.1.0.2"
    command = others.commands["cpu-7"]
    assert command[:3] == ["srun", "--jobid=12", "--overlap"] and "--nodelist=cpu-7" in command
    assert command[-4:] == ["env", f"--unset={LIFELINE}", f"{REPOSITORY}/launch.sh", "node"]
    assert over_srun(job(SLURM_JOB_NUM_NODES="1")) is None


def test_nodes_that_do_not_fit_and_a_scontrol_that_fails_are_told(scontrol: Path) -> None:
    with pytest.raises(ValueError, match=r"has 4 nodes, and `scontrol show hostnames"):
        over_srun(job(SLURM_JOB_NUM_NODES="4"))
    with pytest.raises(ValueError, match=r"has 3 nodes.* around node9"):
        over_srun(job(SLURMD_NODENAME="node9"))
    with pytest.raises(ValueError, match=r"`scontrol show hostnames other` fails \(slurm_load: Unable to contact"):
        over_srun(job(SLURM_JOB_NODELIST="other"))


def test_a_hostfile_and_an_address_go_before_the_nodes(scontrol: Path, tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("node-2\n")
    named = RunConfig(hostfile=str(tmp_path / "hosts"))
    others = other_machines(named)
    assert others is not None and others.source == "run.hostfile" and others.first == "node-2"
    assert "not the 3 nodes of the SLURM job 12" in str(unused_nodes(named))
    assert str(unused_nodes(RunConfig(ray_address="auto"))).startswith("run.ray_address says")
    found = other_machines(RunConfig())
    assert found is not None and found.source == "the SLURM job 12" and unused_nodes(RunConfig()) is None


def test_a_step_gets_the_environment_without_what_belongs_to_this_node(monkeypatch: pytest.MonkeyPatch) -> None:
    here = {"SLURM_CONF": "/etc/slurm.conf", "SLURM_NTASKS": "8", "SLURM_CPUS_PER_TASK": "4", "SRUN_CPUS_PER_TASK": "4"}
    kept = {"WANDB_MODE": "offline", "PATH": "/bin", "SLUICE_DEVICE": "cuda"}
    found = step_environment(
        here | kept | {"CUDA_VISIBLE_DEVICES": "3", "TMPDIR": "/scratch/12", "SLURMD_NODENAME": "a"}
    )
    assert found == kept | {"SLURM_CONF": "/etc/slurm.conf", LIFELINE: "1"}


def test_the_fields_that_scontrol_shows() -> None:
    shown = "NodeName=a NodeAddr=fd00::2 Extra= OS=Linux 6.1 #1 Gres=gpu:h200:8(S:0-1)"
    assert fields_in(shown) == {
        "NodeName": "a",
        "NodeAddr": "fd00::2",
        "Extra": "",
        "OS": "Linux",
        "Gres": "gpu:h200:8(S:0-1)",
    }


def test_a_step_that_does_not_know_the_nodes_asks_for_them(scontrol: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOWN", "JobId=12 NodeList=gpu[01-02],cpu-7 BatchHost=gpu01 NumNodes=3 NumCPUs=6")
    others = over_srun(job(SLURM_JOB_NODELIST="", SLURM_JOB_NUM_NODES=""))
    assert others is not None and list(others.commands) == ["gpu02", "cpu-7"]
    monkeypatch.setenv("SHOWN", "JobId=12 NodeList=gpu01 BatchHost=gpu01 NumNodes=1 NumCPUs=6")
    assert over_srun(job(SLURM_JOB_NODELIST="", SLURM_JOB_NUM_NODES="")) is None


@pytest.mark.parametrize(
    ("may", "preempted", "found"),
    [
        ("1", "PreemptTime=2026-11-30T07:20:45", True),
        ("0", "PreemptTime=2026-11-30T07:20:45", False),
        ("1", "PreemptTime=None", False),
        ("1", "", False),
    ],
)
def test_only_a_preempted_job_that_may_be_requeued_is(
    may: str, preempted: str, found: bool, scontrol: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = SHOWN.format(requeue=may, preempted=preempted)
    monkeypatch.setenv("SHOWN", shown)
    assert is_preempted(shown) is found
    assert to_requeue(job()) is found
    assert not to_requeue(job(SLURM_STEP_ID="0"))
    requeue(job())
    assert scontrol.read_text().splitlines()[-1] == "requeue 12"


def test_a_job_with_fewer_cpus_than_the_node_counts_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = len(os.sched_getaffinity(0))
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "1")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    assert cpu_count() == allowed
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    assert cpu_count() == 1
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", str(allowed + 1))
    assert cpu_count() == allowed
