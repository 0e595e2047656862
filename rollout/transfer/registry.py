"""The weight transports, by name, and the choice among them. A new one is a file in this folder and a line here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rewards.extension import Entry, Registry, make
from rollout.transfer.config import AUTO, NcclSettings, TransportSettings, WeightSyncConfig
from rollout.types import Device

if TYPE_CHECKING:
    from rollout.transfer.bucket import Transport

TRANSPORTS: Registry = {
    AUTO: Entry("rollout.transfer.shm:Shm"),
    "shm": Entry("rollout.transfer.shm:Shm"),
    "nccl": Entry("rollout.transfer.nccl:Nccl", "rollout.transfer.config:NcclSettings"),
}
"""`auto` is listed only so that a recipe can name it; `resolve_transport` replaces it."""


def resolve_transport(sync: WeightSyncConfig, device: Device) -> TransportSettings:
    """Return the settings of the transport to use: `auto` becomes nccl on GPUs, and shm on CPU.

    Raises:
        ValueError: nccl without GPUs.
    """
    if sync.transport.name == "nccl" and device == "cpu":
        raise ValueError("weight_sync.transport=nccl needs GPUs and this run has none: use auto or shm")
    if sync.transport.name != AUTO:
        return sync.transport
    return NcclSettings(name="nccl") if device == "cuda" else TransportSettings(name="shm")


def make_transport(settings: TransportSettings) -> Transport:
    """Make the transport that `resolve_transport` chose, in a process that has one of its ends."""
    transport: Transport = make(TRANSPORTS, settings.name, settings)
    return transport
