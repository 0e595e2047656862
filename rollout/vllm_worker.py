"""What runs inside vLLM's worker processes: our weight-transfer engines and the worker methods that vLLM lacks.

vLLM imports `WorkerExtension` by name in every worker process (`worker_extension_cls`), also in spawned ones, before
it builds the transfer engine. So registering the engines here needs no installed entry point.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from vllm.config import VllmConfig
from vllm.config.weight_transfer import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine

from rollout.transfer import ShmBucket, read_bucket
from rollout.vllm_reload import Reload

BACKENDS = {"shm": "sluice_shm", "nccl": "sluice_nccl"}


@dataclass
class ShmInit(WeightTransferInitInfo):
    """Shared memory needs no rendezvous."""


@dataclass
class ShmUpdate(WeightTransferUpdateInfo):
    bucket: ShmBucket


class ShmTransferEngine(WeightTransferEngine[ShmInit, ShmUpdate]):
    """Loads buckets of `rollout.transfer.ShmSender`; with tensor parallelism every worker reads the full tensors."""

    init_info_cls = ShmInit
    update_info_cls = ShmUpdate

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._reload = Reload()

    def init_transfer_engine(self, init_info: ShmInit) -> None:
        pass

    def start_weight_update(self) -> None:
        self._reload.begin(self.model, self.model_config)

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, update_info: ShmUpdate) -> None:
        tensors = [(name, tensor.to(self.device)) for name, tensor in read_bucket(update_info.bucket)]
        self._reload.load(self.model, tensors)

    def finish_weight_update(self) -> None:
        self._reload.finish(self.model, self.model_config)

    def shutdown(self) -> None:
        pass


class NcclTransferEngine(NCCLWeightTransferEngine):
    """vLLM's own NCCL engine, with a reload that can be repeated and that notices missing weights."""

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._reload = Reload()

    def start_weight_update(self) -> None:
        self._reload.begin(self.model, self.model_config)

    def finish_weight_update(self) -> None:
        self._reload.finish(self.model, self.model_config)


for _name, _engine in ((BACKENDS["shm"], ShmTransferEngine), (BACKENDS["nccl"], NcclTransferEngine)):
    # Once a process; vLLM keeps one registry.
    if _name not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(_name, _engine)


class WorkerExtension:
    """Methods added to vLLM's worker class, called through `collective_rpc`."""

    weight_transfer_engine: WeightTransferEngine[Any, Any]
    _weight_update_active: bool

    def sluice_abandon_update(self) -> None:
        """Forget a weight update that was not finished; the next one starts from the layers as they are."""
        self._weight_update_active = False
        self.weight_transfer_engine.reset_weight_update_target()
