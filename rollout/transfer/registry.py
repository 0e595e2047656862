"""How gathered weights travel from trainer rank 0 to the inference engines: the sender's half and the wire format.

A *bucket* is a list of full tensors under Hugging Face checkpoint names. A sender turns it into a small picklable
description, and the description is the argument of `Inference.load_bucket`. On one host without GPUs the bytes lie in
shared memory (`ShmSender`), between GPUs they go through NCCL (`rollout.transfer.nccl`). Importing this module needs
torch but never vllm: the trainer's processes use it.
"""

from __future__ import annotations

from typing import Literal

from rollout.transfer.bucket import Sender
from rollout.transfer.config import WeightSyncConfig
from rollout.transfer.shm import ShmSender
from rollout.types import Device

Transport = Literal["shm", "nccl"]


def resolve_transport(sync: WeightSyncConfig, device: Device) -> Transport:
    """`auto` is nccl where the engines have GPUs and shm where they have none."""
    if sync.transport == "auto":
        return "nccl" if device == "cuda" else "shm"
    if sync.transport == "nccl" and device == "cpu":
        raise ValueError("weight_sync.transport=nccl needs GPUs and this run has none: use auto or shm")
    return sync.transport


def make_sender(
    sync: WeightSyncConfig,
    run_id: str,
    device: Device,
    replicas: int = 1,
    tensor_parallel: int = 1,
    address: str | None = None,
) -> Sender:
    """The sender of trainer rank 0.

    Args:
        replicas, tensor_parallel: the engines (nccl's group size).
        address: where engines reach this process (nccl); None when all of them run on this host.
    """
    if resolve_transport(sync, device) == "shm":
        return ShmSender(run_id)
    from rollout.transfer.nccl import NcclSender

    return NcclSender(sync, replicas=replicas, tensor_parallel=tensor_parallel, address=address)
