"""Code that runs inside vLLM's worker processes: our weight-transfer engine, and worker methods that vLLM lacks.

vLLM imports `WorkerExtension` by name in every worker process (`worker_extension_cls`), also in spawned ones, before
it builds the transfer engine. So registering the engine here needs no installed entry point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

from rollout.cpu import kernels, sampling  # noqa: F401 (registers them in this process)
from rollout.engine.readback import ReadBack, packed_digests
from rollout.engine.reload import Reload
from rollout.lora import cpu  # noqa: F401 (likewise)
from rollout.lora.arguments import Scale
from rollout.lora.worker import drop, put
from rollout.transfer.bucket import Bucket, Receiver, ReceiverPlace, check_digests
from rollout.transfer.config import TransportSettings
from rollout.transfer.registry import make_transport
from rollout.transfer.update import Findings

BACKEND = "sluice"


@dataclass
class TransferInit(WeightTransferInitInfo):
    """Either the transport and the scale of adapters, once after the engine was built, or the data with which the
    transport's receiver joins a sender."""

    transport: TransportSettings | None = None
    scale: Scale | None = None
    membership: dict[str, Any] | None = None


@dataclass
class TransferUpdate(WeightTransferUpdateInfo):
    bucket: Bucket


class TransferEngine(WeightTransferEngine[TransferInit, TransferUpdate]):
    """vLLM's weight-transfer engine over any of our transports, with a reload that can be repeated and that reports
    unknown names."""

    init_info_cls = TransferInit
    update_info_cls = TransferUpdate

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._reload = Reload()
        self._receiver: Receiver | None = None
        self.scale: Scale | None = None

    def init_transfer_engine(self, init_info: TransferInit) -> None:
        if init_info.transport is not None:
            place = ReceiverPlace(device=self.device, parallel_config=self.parallel_config)
            self._receiver = make_transport(init_info.transport).receiver(place)
            self.scale = init_info.scale
        if init_info.membership is not None:
            self._opened().join(init_info.membership)

    def start_weight_update(self) -> None:
        self._reload.begin(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))
        if self.device.type != "cpu":
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: TransferUpdate) -> None:
        self.receive(update_info.bucket, self._load)

    def receive(self, bucket: Bucket, take: Callable[[list[tuple[str, Tensor]]], None]) -> None:
        """Hand every tensor of a bucket to `take`, as it was sent. They may be gone after the call."""

        def checked(tensors: list[tuple[str, Tensor]]) -> None:
            check_digests(bucket, tensors)
            take(tensors)

        self._opened().receive(bucket, checked)

    def _load(self, tensors: list[tuple[str, Tensor]]) -> None:
        self._reload.load(self.model, [(name, tensor.to(self.device)) for name, tensor in tensors])

    def finish_weight_update(self) -> None:
        self._reload.finish(self.model, self.model_config)

    def shutdown(self) -> None:
        if self._receiver is not None:
            self._receiver.close()

    def _opened(self) -> Receiver:
        assert self._receiver is not None, "the transport is named before anything is received"
        return self._receiver


if BACKEND not in WeightTransferEngineFactory._registry:  # once a process: vLLM keeps one registry
    WeightTransferEngineFactory.register_engine(BACKEND, TransferEngine)


class WorkerExtension:
    """Methods added to vLLM's worker class, called through `collective_rpc`."""

    weight_transfer_engine: TransferEngine
    model_runner: Any
    compute_weight_checksums: Callable[[], dict[str, str]]
    _weight_checksum_prefix: Callable[[], str]
    _weight_update_active: bool

    def sluice_abandon_update(self) -> None:
        """Make vLLM accept a new weight update after one that was not finished. The layers stay as they are."""
        self._weight_update_active = False
        self.weight_transfer_engine.reset_weight_update_target()

    def sluice_checksums(self) -> dict[str, str]:
        """Return vLLM's digests of the parameters, and ours of the weights that linear layers on CPU hold packed."""
        prefix = self._weight_checksum_prefix()
        packed = packed_digests(self.model_runner.get_model())
        return self.compute_weight_checksums() | {prefix + name: found for name, found in packed.items()}

    def sluice_begin_read_back(self) -> None:
        """Expect the tensors that the model should compute with."""
        self._read_back = ReadBack(self.model_runner.get_model())

    def sluice_read_back(self, bucket: Bucket, first: int, last: int) -> Findings:
        """Compare the tensors of a bucket from the first up to the last place. Returns what was found since the
        begin."""
        self.weight_transfer_engine.receive(bucket, lambda tensors: self._read_back.compare(tensors[first:last]))
        return self._read_back.found

    def sluice_begin_adapter(self) -> None:
        """Expect the tensors of an adapter."""
        self._adapter: dict[str, Tensor] = {}

    def sluice_receive_adapter(self, bucket: Bucket) -> None:
        """Copy the tensors of a bucket."""

        def keep(tensors: list[tuple[str, Tensor]]) -> None:
            self._adapter |= {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors}

        self.weight_transfer_engine.receive(bucket, keep)

    def sluice_put_adapter(self, version: int) -> None:
        """Put the adapter that has arrived into a slot."""
        scale = self.weight_transfer_engine.scale
        assert scale is not None, "the engine's settings have no adapters"
        put(self.model_runner.lora_manager, version, self._adapter, scale)
        self._adapter = {}

    def sluice_drop_adapter(self, version: int) -> None:
        """Free an adapter's slot."""
        drop(self.model_runner.lora_manager, version)
