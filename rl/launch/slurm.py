"""SLURM: what its environment says of the job that this process is in, and the command that reaches another node.

The driver is on one node of the job, whichever that is. On each of the others a step of the job runs the verb `node`.
What its environment leaves open is asked of `scontrol`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from rl.launch.greeting import OWN
from rl.launch.hosts import Others
from rl.paths import REPOSITORY
from rl.processes.tree import LIFELINE

ASK_S = 60.0
KEPT = ("SLURM_CONF", "SLURM_JWT")
"""How to reach SLURM. Of its other variables most are options of srun as well, meant for the job and not for a step."""
TEMPORARY = ("TMPDIR", "TMP", "TEMP")
STEP = (
    *("--overlap", "--nodes=1", "--ntasks=1", "--mpi=none", "--cpu-bind=none"),
    *("--export=ALL", f"--chdir={REPOSITORY}"),
)
"""One task with all that the job has on a node. It shares that with every other step."""
JOINING = ("env", f"--unset={LIFELINE}", str(REPOSITORY / "launch.sh"), "node")
"""What a step runs. The variable is meant for its srun alone, and `srun --export` cannot change one that is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A job: its id, its name for `scontrol`, its nodes as SLURM abbreviates them (`node-[1-3,7]`) and their number,
    the node of this process, and how often the job was requeued. In a batch job SLURM can start the script again. A
    step that was started from outside of the job (`srun --jobid=12 --pty bash`) does not know the nodes."""

    id: str
    name: str
    """In an array the id of one job may be that of the array, too, and would mean all of them."""
    nodes: str | None
    count: int | None
    here: str
    restarts: int
    batch: bool

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> Self | None:
        """The job whose processes have this environment; None outside of one.

        Raises:
            ValueError: it is a heterogeneous job, whose parts have lists of nodes of their own; or a variable that
                should be a number is none.
        """
        if not environment.get("SLURM_JOB_ID") or not environment.get("SLURMD_NODENAME"):
            return None
        if (_number(environment, "SLURM_HET_SIZE") or 1) > 1:
            raise ValueError(
                f"the SLURM job {environment['SLURM_JOB_ID']} is heterogeneous, and only the nodes of its first part "
                "would be used: submit one part (no `:` or `hetjob`), or name the machines in a run.hostfile"
            )
        own, array, task = (environment.get(f"SLURM_{of}_ID") for of in ("JOB", "ARRAY_JOB", "ARRAY_TASK"))
        return cls(
            id=environment["SLURM_JOB_ID"],
            name=f"{array}_{task}" if array and task else str(own),
            nodes=environment.get("SLURM_JOB_NODELIST") or None,
            count=_number(environment, "SLURM_JOB_NUM_NODES"),
            here=environment["SLURMD_NODENAME"],
            restarts=_number(environment, "SLURM_RESTART_COUNT") or 0,
            batch="SLURM_STEP_ID" not in environment,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What a job has on a node. `memory_bytes` is None where SLURM does not allot memory."""

    cores: int
    gpus: int
    memory_bytes: int | None


def shares(job: Job) -> dict[str, Share]:
    """What a job has on each of its nodes, by name.

    Raises:
        ValueError: SLURM does not say it.
    """
    described = _ask("--details", "show", "job", job.name)
    return {
        name: share
        for nodes, share in shares_in(described).items()
        for name in _ask("show", "hostnames", nodes).split()
    }


def shares_in(described: str) -> dict[str, Share]:
    """What `scontrol --details show job` prints of a job's nodes, by their names as SLURM abbreviates them."""
    lines = re.findall(r"^ +Nodes=(\S+) CPU_IDs=(\S+) Mem=(\d+) GRES=(\S*)", described, flags=re.MULTILINE)
    return {
        nodes: Share(
            cores=sum(int(last or first) - int(first) + 1 for first, last in re.findall(r"(\d+)(?:-(\d+))?", cores)),
            gpus=sum(int(count) for count in re.findall(r"gpu(?::[^:,()]+)?:(\d+)", gres)),
            memory_bytes=int(memory) * 2**20 or None,
        )
        for nodes, cores, memory, gres in lines
    }


def over_srun(job: Job) -> Others | None:
    """The other nodes of a job; None if it has one node.

    Raises:
        ValueError: SLURM does not say which.
    """
    nodes, count = job.nodes, job.count
    if nodes is None or count is None:
        shown = fields_in(_ask("--oneliner", "show", "job", job.name))
        nodes, count = shown.get("NodeList", job.here), int(shown.get("NumNodes", "1"))
    if count <= 1:
        return None
    names = _ask("show", "hostnames", nodes).split()
    others = [name for name in names if name != job.here]
    if len(others) != count - 1:
        raise ValueError(
            f"the SLURM job {job.id} has {count} nodes, and `scontrol show hostnames {nodes}` gives {names} "
            f"around {job.here}: name the machines in a run.hostfile"
        )
    return Others(
        source=f"the SLURM job {job.id}",
        commands={name: [*srun(job.id, name), *JOINING] for name in others},
        environment=step_environment(os.environ),
        first=fields_in(_ask("--oneliner", "show", "node", others[0])).get("NodeAddr", others[0]),
    )


def to_requeue(job: Job) -> bool:
    """Whether a batch job is being preempted and has to be requeued by itself.

    In a partition with a GraceTime SLURM ends the steps on the other nodes at once, and a run with them. By itself it
    requeues only a job that is still going when that time is over.
    """
    try:
        return job.batch and is_preempted(_ask("--oneliner", "show", "job", job.name))
    except ValueError:
        return False


def requeue(job: Job) -> None:
    """Let SLURM start a batch job again. SLURM ends it first, and with it this process.

    Raises:
        ValueError: SLURM does not want to.
    """
    _ask("requeue", job.name)


def is_preempted(described: str) -> bool:
    """Whether a job that may be requeued is being preempted, from what `scontrol --oneliner show job` prints."""
    fields = fields_in(described)
    return fields.get("Requeue") == "1" and fields.get("PreemptTime", "None") != "None"


def srun(job: str, node: str) -> list[str]:
    """The start of a command on a node of a job."""
    return ["srun", f"--jobid={job}", *STEP, f"--nodelist={node}"]


def step_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a step on another node, and of the srun that starts it: this one, without what SLURM has set
    for the processes here, and without what means something else on another machine."""
    unwanted = ("SLURM", "SRUN_", "SBATCH_", "SALLOC_")
    kept = {
        name: value
        for name, value in environment.items()
        if name in KEPT or not (name.startswith(unwanted) or name in OWN or name in TEMPORARY)
    }
    named = {"SLUICE_VENV": sys.prefix} if "SLUICE_VENV" in environment else {}
    return {**kept, **named, LIFELINE: "1"}


def fields_in(described: str) -> dict[str, str]:
    """The fields that `scontrol --oneliner show` prints as words `Name=value`."""
    return dict(word.partition("=")[::2] for word in described.split() if "=" in word)


def _number(environment: Mapping[str, str], name: str) -> int | None:
    value = environment.get(name)
    if value and not value.isdecimal():
        raise ValueError(f"{name}={value} in the environment is no number: SLURM sets it, so unset yours")
    return int(value) if value else None


def _ask(*words: str) -> str:
    command = ["scontrol", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=ASK_S, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or error
        raise ValueError(
            f"`{' '.join(command)}` fails ({str(said).strip()}), and SLURM is asked which nodes the job has: put its "
            "commands on PATH, or name the machines in a run.hostfile"
        ) from None
    return done.stdout
