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
"""`auto` is here for its name; `resolve_transport` puts another in its place."""


def resolve_transport(sync: WeightSyncConfig, device: Device) -> TransportSettings:
    """`auto` is nccl where the engines have GPUs and shm where they have none.

    Raises:
        ValueError: nccl without GPUs.
    """
    if sync.transport.name == "nccl" and device == "cpu":
        raise ValueError("weight_sync.transport=nccl needs GPUs and this run has none: use auto or shm")
    if sync.transport.name != AUTO:
        return sync.transport
    return NcclSettings(name="nccl") if device == "cuda" else TransportSettings(name="shm")


def make_transport(settings: TransportSettings) -> Transport:
    """The transport that `resolve_transport` chose, in the process of one of its ends."""
    transport: Transport = make(TRANSPORTS, settings.name, settings)
    return transport
