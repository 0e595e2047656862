"""The Ray instance of a run's own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import ray
from ray._private import ray_constants

LOOPBACK = "127.0.0.1"
NEEDED = (ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER)


def start_ray(address: str, object_store_bytes: int, folder: Path, cpus: int | None) -> None:
    """Start Ray on this machine, with this address, and join it. On loopback it listens nowhere else.

    Raises:
        ValueError: RAY_AUTH_MODE would let processes in that do not have its token.
    """
    if (mode := os.environ.get("RAY_AUTH_MODE") or "token") != "token":
        raise ValueError(f"RAY_AUTH_MODE={mode} would open the run's own Ray to everybody who can reach it: unset it")
    with _loopback_kept() if address == LOOPBACK else nullcontext():
        ray.init(
            "local",
            include_dashboard=False,
            log_to_driver=False,
            logging_level="error",
            object_store_memory=object_store_bytes,
            _temp_dir=str(folder),
            _node_ip_address=address,
            num_cpus=cpus,
        )


def ended_here() -> list[str]:
    """The processes of this process's own Ray that everything depends on and that have ended, in words."""
    node = ray._private.worker._global_node
    dead = [] if node is None else node.dead_processes()
    return [f"this one, whose {kind} (Ray's) ended with exit code {one.poll()}" for kind, one in dead if kind in NEEDED]


@contextmanager
def _loopback_kept() -> Iterator[None]:
    """Keep Ray from taking the address of the way out instead of the loopback address, which it does where it may have
    more than one machine."""
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before
