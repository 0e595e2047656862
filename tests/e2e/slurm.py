"""A SLURM cluster on this machine: munge, slurmctld on a login machine, and a slurmd on each other machine of
tests.e2e.hosts. Making it takes root and Debian's packages slurmctld, slurmd and munge."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from rl.paths import REPOSITORY
from tests.e2e.hosts import Machine, machines

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "ip")
READY_S = 60.0
COMMAND_S = 60.0
REQUEUE_S = 6
"""SLURM starts a requeued job no sooner than a credential lives, by default 120 s."""
CONFIG = """
ClusterName=sluice
SlurmctldHost={login.name}({login.address})
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CryptoType=crypto/munge
AuthInfo=socket={folder}/munge/socket,cred_expire={requeue_s}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_min_interval=0,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
"""
NODE = "NodeName={name} NodeAddr={machine.address} NodeHostname={machine.name} CPUs=2 RealMemory=4000\n"
PARTITIONS = """
PartitionName=low Nodes={names} Default=YES PriorityTier=1
PartitionName=patient Nodes={names} PriorityTier=1 GraceTime=20
PartitionName=high Nodes={names} PriorityTier=9 PreemptMode=OFF
"""


def missing_programs() -> list[str]:
    return [name for name in PROGRAMS if not (shutil.which(name) or Path(f"/usr/sbin/{name}").exists())]


@dataclass(frozen=True)
class Slurm:
    """The cluster. Its nodes are called node-1, node-2, and so on, which no resolver knows."""

    login: Machine
    nodes: Sequence[Machine]
    folder: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**os.environ, "SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *words: str, cwd: Path = REPOSITORY) -> str:
        """What one of SLURM's commands prints on the login machine."""
        done = subprocess.run(
            ["ip", "netns", "exec", self.login.name, *words],
            cwd=cwd,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}"
        return done.stdout

    def submit(self, output: Path, *words: str, cwd: Path = REPOSITORY) -> str:
        """The id of a new job, whose output is appended to a file: options of sbatch, the script and its arguments."""
        options = (f"--output={output}", "--open-mode=append")
        return self.ask("sbatch", "--parsable", *options, *words, cwd=cwd).strip()

    def state(self, job: str) -> str:
        found = re.search(r"JobState=(\w+)", self.ask("scontrol", "show", "job", job))
        assert found is not None
        return found[1]

    def await_state(self, job: str, wanted: str, deadline_s: float) -> None:
        end = time.monotonic() + deadline_s
        while (state := self.state(job)) != wanted:
            assert time.monotonic() < end, f"job {job} is {state} and not {wanted}"
            time.sleep(0.5)

    def cancel_all(self) -> None:
        """End every job, and wait until the nodes are idle."""
        self.ask("scancel", "--user=root")
        end = time.monotonic() + READY_S
        while self.ask("squeue", "--noheader").strip():
            assert time.monotonic() < end, self.ask("squeue")
            time.sleep(0.5)


@contextmanager
def slurm(nodes: int) -> Iterator[Slurm]:
    """A login machine and so many nodes. Everything is ended afterwards, the machines with all their processes too."""
    with machines(nodes + 1, serve=False) as made, ExitStack() as stack:
        cluster = Slurm(made[0], made[1:], made[0].folder)
        _configure(cluster)
        _start(stack, cluster, "munged", _munged(cluster.folder))
        _await(lambda: (cluster.folder / "munge" / "socket").exists(), cluster)
        _start(stack, cluster, "slurmctld", cluster.login.command([_path("slurmctld"), "-D", "-i"]))
        for number, machine in enumerate(cluster.nodes, start=1):
            _start(stack, cluster, f"slurmd-{number}", machine.command([_path("slurmd"), "-D", "-N", f"node-{number}"]))
        _await(lambda: _idle(cluster) == nodes, cluster)
        yield cluster


def _path(program: str) -> str:
    return shutil.which(program) or f"/usr/sbin/{program}"


def _configure(cluster: Slurm) -> None:
    folder, count = cluster.folder, len(cluster.nodes)
    text = CONFIG.format(login=cluster.login, folder=folder, requeue_s=REQUEUE_S)
    for number, machine in enumerate(cluster.nodes, start=1):
        text += NODE.format(name=f"node-{number}", machine=machine)
    text += PARTITIONS.format(names=f"node-[1-{count}]")
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")  # the only one that starts without cgroups
    (folder / "state").mkdir()


def _munged(folder: Path) -> list[str]:
    own = folder / "munge"
    own.mkdir()
    (own / "key").write_bytes(os.urandom(128))
    (own / "key").chmod(0o600)
    files = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    return [_path("munged"), "--foreground", "--force", *(f"--{name}={own / file}" for name, file in files.items())]


def _start(stack: ExitStack, cluster: Slurm, name: str, command: Sequence[str]) -> None:
    with (cluster.folder / f"{name}.out").open("wb") as log:
        process = subprocess.Popen(command, env=cluster.environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    stack.callback(_end, process)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()  # of a machine this is `unshare`, with which all processes there end
    process.wait()


def _idle(cluster: Slurm) -> int:
    try:
        return cluster.ask("sinfo", "--noheader", "--Node", "--partition=low", "--format=%t").split().count("idle")
    except (AssertionError, subprocess.TimeoutExpired):  # slurmctld does not answer yet
        return 0


def _await(condition: Callable[[], bool], cluster: Slurm) -> None:
    end = time.monotonic() + READY_S
    while not condition():
        logs = [f"{path.name}:\n{path.read_text(errors='replace')[-1500:]}" for path in cluster.folder.glob("*.out")]
        assert time.monotonic() < end, "\n".join(logs)
        time.sleep(0.3)
