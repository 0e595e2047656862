"""The recipe's `run:` section."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, field_validator, model_validator

from rewards.strict import StrictModel


class RunConfig(StrictModel):
    name: str = Field(default="run", pattern=r"^[^/\\]+$", max_length=100)
    """Names the run in its directory and on the dashboard."""
    dir: str | None = None
    """The run directory; null: runs/<name>-<time> below the working directory."""
    seed: int = Field(default=0, ge=0, lt=2**32)
    """Decides what is random in a run: initial weights, training tasks and their order, and what is sampled. The tasks
    of evaluations are the same for every seed."""
    steps: int = Field(default=30, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where trainer and engines run. auto: cuda where NVIDIA GPUs are seen, else cpu. cuda without GPUs is an error."""
    stall_s: float = Field(default=600.0, gt=0)
    """After this long without progress, dump all stacks, say who waits for whom, and exit. It should be longer than
    rollout.trajectory_timeout_s, because a group that takes all of that is no stall; a run warns when it is not."""
    cache_dir: str = "runs/cache"
    """Cold-started models, keyed by content hash; a relative path is below the working directory."""
    ray_address: str | None = None
    """An existing Ray cluster as HOST:PORT, an IPv6 host in brackets, or `auto`; null: a local instance, started and
    stopped by the run."""
    hostfile: str | None = None
    """A file with the other machines of the run, a line each, which are reached over ssh; null: this machine alone, or
    with it the other nodes of the SLURM job that it is in. They need the same working tree under the same path, and
    run.dir must be shared."""
    ssh: str = "ssh"
    """The command that reaches a machine of the hostfile, with options of yours."""
    host_address: str | None = None
    """The address of this machine that the others reach; null: the one from which the hostfile's first is reached."""

    @model_validator(mode="after")
    def _one_way(self) -> RunConfig:
        if self.ray_address is not None and self.hostfile is not None:
            raise ValueError(
                "hostfile starts a cluster of the run's own and ray_address joins another: set one of them"
            )
        return self

    @field_validator("ray_address")
    @classmethod
    def _no_client(cls, address: str | None) -> str | None:
        if address is not None and "://" in address:
            raise ValueError(
                f"{address} is an address of Ray Client, through which a run cannot be driven: give HOST:PORT of the "
                "cluster's head (6379 unless it was started with another), on a machine of the cluster"
            )
        if address not in (None, "auto") and not re.fullmatch(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):\d{1,5}", address or ""):
            raise ValueError(f"{address} is no HOST:PORT (an IPv6 address in brackets), nor auto")
        return address
