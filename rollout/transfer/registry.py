"""The weight transports, by name, and the choice among them. A new one is a file in this folder and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewards.extension import Entry, Registry, make
from rollout.transfer.config import AUTO, NcclSettings, TransportSettings, WeightSyncConfig
from rollout.types import Device, Placement

if TYPE_CHECKING:
    from rollout.transfer.bucket import Transport

TRANSPORTS: Registry = {
    AUTO: Entry("rollout.transfer.shm:Shm"),
    "shm": Entry("rollout.transfer.shm:Shm"),
    "gloo": Entry("rollout.transfer.gloo:Gloo"),
    "ipc": Entry("rollout.transfer.ipc:Ipc"),
    "nccl": Entry("rollout.transfer.nccl:Nccl", "rollout.transfer.config:NcclSettings"),
}
"""`auto` is listed only so that a recipe can name it; `resolve_transport` replaces it."""


def resolve_transport(
    sync: WeightSyncConfig, device: Device, placement: Placement = "split", machines: int = 1
) -> TransportSettings:
    """Return the settings of the transport to use: `auto` becomes nccl on GPUs, ipc where trainer and engines share
    them, shm on CPU, and gloo where engines are on other machines.

    Raises:
        ValueError: nccl or ipc without GPUs, gloo with them, or a transport that can't reach an engine.
    """
    name = sync.transport.name
    if name in ("nccl", "ipc") and device == "cpu":
        raise ValueError(f"weight_sync.transport={name} needs GPUs and this run has none: use auto, shm or gloo")
    if name == "gloo" and device == "cuda":
        raise ValueError(
            "weight_sync.transport=gloo sends from memory of CPUs, and this run has GPUs: use auto or nccl"
        )
    check_reach(name, placement)
    if name != AUTO:
        return sync.transport
    if device == "cpu":
        return TransportSettings(name="gloo" if machines > 1 and placement == "split" else "shm")
    return TransportSettings(name="ipc") if placement == "colocated" else NcclSettings(name="nccl")


def check_reach(transport: str, placement: Placement) -> None:
    """Raise ValueError for a transport that cannot reach engines with this placement."""
    if transport == "nccl" and placement == "colocated":
        raise ValueError(
            "weight_sync.transport=nccl with placement=colocated: NCCL joins no two processes on one GPU; use auto"
        )
    if transport == "ipc" and placement == "split":
        raise ValueError(
            "weight_sync.transport=ipc with placement=split: it reaches engines on the trainer's own GPUs only; use "
            "auto, or placement=colocated"
        )


def make_transport(settings: TransportSettings) -> Transport:
    """Make the transport that `resolve_transport` chose, in a process that has one of its ends."""
    transport: Transport = make(TRANSPORTS, settings.name, settings)
    return transport
