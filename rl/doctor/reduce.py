"""A small all-reduce on the run's backend, gloo or NCCL: one process for each place of a rank."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import ray

from rl.doctor.finding import Finding
from rl.launch.addresses import name_interface
from rollout.actors.process import enter_role
from rollout.ports import listen
from rollout.types import Device


class Rank:
    """One participant."""

    def __init__(self, role: str, logs_dir: str) -> None:
        enter_role(role, logs_dir)

    def ready(self) -> tuple[str, int]:
        """Import torch. Returns the address of this machine, and a port at which rank 0 can listen and does already."""
        name_interface(ray.util.get_node_ip_address())
        import torch.distributed  # noqa: F401

        own = ray.util.get_node_ip_address()
        self._listening = listen(own)
        return own, self._listening.getsockname()[1]

    def reduce(self, rank: int, address: str, port: int, ranks: int, device: Device, limit_s: float) -> float:
        """Add the numbers 1 to `ranks`, of which each rank has one. They meet at the address within `limit_s`.

        Raises:
            RuntimeError: the ranks did not meet; the text of rank 0 names those that did not arrive.
        """
        import torch
        from torch import distributed
        from torch.distributed import TCPStore  # type: ignore[attr-defined]

        place = torch.device("cuda", 0) if device == "cuda" else torch.device("cpu")
        limit = timedelta(seconds=max(limit_s, 1.0))
        fd = self._listening.detach() if rank == 0 else None
        store = TCPStore(address, port, ranks, rank == 0, limit, wait_for_workers=False, master_listen_fd=fd)
        store.set(f"arrived-{rank}", "1")
        try:
            backend = "nccl" if device == "cuda" else "gloo"
            distributed.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=limit)
            total = torch.full((1024,), float(rank + 1), device=place)
            distributed.all_reduce(total)
            return float(total.mean().item())
        except Exception as error:
            raise RuntimeError(f"{missing(store, ranks)}{error}") from None


def missing(store: Any, ranks: int) -> str:
    """Words that name the ranks that have not arrived."""
    absent = [str(rank) for rank in range(ranks) if not store.check([f"arrived-{rank}"])]
    return f"rank {', '.join(absent)} did not arrive; " if absent else ""


def judge(sums: Sequence[float | str], where: Sequence[str], device: Device) -> Finding:
    """The finding, from what each rank computed or its error, and the machine where it is."""
    backend = "nccl" if device == "cuda" else "gloo"
    expected = len(sums) * (len(sums) + 1) / 2
    wrong = [
        f"rank {rank} on {machine}: {found if isinstance(found, str) else f'{found:g} is not {expected:g}'}"
        for rank, (found, machine) in enumerate(zip(sums, where, strict=True))
        if found != expected
    ]
    if wrong:
        fix = "cure the lines above first; TORCH_DISTRIBUTED_DEBUG=DETAIL and NCCL_DEBUG=INFO tell more"
        return Finding("all-reduce", False, f"{backend}, {'; '.join(wrong)}: {fix}")
    ranks = f"{len(sums)} ranks" if len(sums) > 1 else "1 rank"
    return Finding("all-reduce", True, f"{backend}, {ranks} on {len(set(where))} machine{'s' * (len(set(where)) > 1)}")
