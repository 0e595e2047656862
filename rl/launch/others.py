"""Where the other machines of a run come from: a hostfile, or the SLURM job that the run is in."""

from __future__ import annotations

import os
from pathlib import Path

from rl.driver.config import RunConfig
from rl.launch.hostfile import read_hostfile
from rl.launch.hosts import Others
from rl.launch.slurm import Job, Share, over_srun, shares
from rl.launch.ssh import over_ssh


def other_machines(run: RunConfig) -> Others | None:
    """The other machines of a run whose cluster is its own; None if there are none. A hostfile goes before SLURM.

    Raises:
        ValueError: the hostfile is wrong, or SLURM does not answer.
    """
    if run.hostfile is not None:
        return over_ssh(read_hostfile(Path(run.hostfile)), run.ssh)
    job = Job.of(os.environ)
    return over_srun(job) if job is not None else None


def allotted(run: RunConfig) -> dict[str, Share]:
    """What a SLURM job has on each of its nodes, by name, if a run is on these; else nothing.

    Raises:
        ValueError: SLURM does not answer.
    """
    job = Job.of(os.environ) if run.hostfile is None and run.ray_address is None else None
    return shares(job) if job is not None else {}


def unused_nodes(run: RunConfig) -> str | None:
    """A sentence if the recipe says which machines to use and the nodes of the SLURM job are others; else None."""
    count, job = int(os.environ.get("SLURM_JOB_NUM_NODES") or 1), os.environ.get("SLURM_JOB_ID")
    named = [key for key in ("hostfile", "ray_address") if getattr(run, key) is not None]
    if not job or count <= 1 or not named:
        return None
    return f"run.{named[0]} says which machines are used, and not the {count} nodes of the SLURM job {job}"
