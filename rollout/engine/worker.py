"""What runs inside vLLM's worker processes: our weight-transfer engines and the worker methods that vLLM lacks.

vLLM imports `WorkerExtension` by name in every worker process (`worker_extension_cls`), also in spawned ones, before
it builds the transfer engine. So registering the engines here needs no installed entry point.
"""

from __future__ import annotations

from collections.abc import Callable
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
from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_consumer

from rollout.engine.readback import packed_digests
from rollout.engine.reload import Reload
from rollout.transfer.bucket import DTYPES, check_digests
from rollout.transfer.nccl import NcclBucket
from rollout.transfer.shm import ShmBucket, read_bucket

BACKENDS = {"shm": "sluice_shm", "nccl": "sluice_nccl"}


@dataclass
class ShmInit(WeightTransferInitInfo):
    """Shared memory needs no rendezvous."""


@dataclass
class ShmUpdate(WeightTransferUpdateInfo):
    bucket: ShmBucket


class ShmTransferEngine(WeightTransferEngine[ShmInit, ShmUpdate]):
    """Loads buckets of `ShmSender`; with tensor parallelism every worker reads the full tensors."""

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
        tensors = read_bucket(update_info.bucket)
        check_digests(update_info.bucket, tensors)
        self._reload.load(self.model, [(name, tensor.to(self.device)) for name, tensor in tensors])

    def finish_weight_update(self) -> None:
        self._reload.finish(self.model, self.model_config)

    def shutdown(self) -> None:
        pass


@dataclass
class NcclUpdate(WeightTransferUpdateInfo):
    bucket: NcclBucket


class NcclTransferEngine(NCCLWeightTransferEngine):
    """vLLM's own NCCL engine, with a group that can be replaced and our reload: repeatable, and no name goes amiss."""

    update_info_cls = NcclUpdate

    def __init__(
        self, config: WeightTransferConfig, vllm_config: VllmConfig, device: torch.device, model: nn.Module
    ) -> None:
        super().__init__(config, vllm_config, device, model)
        self._reload = Reload()

    def init_transfer_engine(self, init_info: NCCLWeightTransferInitInfo) -> None:
        # The sender replaces the group after a failed push.
        self.shutdown()
        super().init_transfer_engine(init_info)

    def start_weight_update(self) -> None:
        self._reload.begin(self.model, self.model_config)

    def receive_weights(self, update_info: NcclUpdate) -> None:
        bucket = update_info.bucket

        def load(tensors: list[tuple[str, torch.Tensor]]) -> None:
            check_digests(bucket, tensors)
            self._reload.load(self.model, tensors)

        packed_nccl_broadcast_consumer(
            iterator=iter([(spec.name, (list(spec.shape), DTYPES[spec.dtype])) for spec in bucket.tensors]),
            group=self.model_update_group,
            src=0,
            post_unpack_func=load,
            buffer_size_bytes=self.packed_buffer_size_bytes,
            num_buffers=self.packed_num_buffers,
            device=self.device,
        )

    def finish_weight_update(self) -> None:
        self._reload.finish(self.model, self.model_config)


for _name, _engine in ((BACKENDS["shm"], ShmTransferEngine), (BACKENDS["nccl"], NcclTransferEngine)):
    # Once a process; vLLM keeps one registry.
    if _name not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(_name, _engine)


class WorkerExtension:
    """Methods added to vLLM's worker class, called through `collective_rpc`."""

    weight_transfer_engine: WeightTransferEngine[Any, Any]
    model_runner: Any
    compute_weight_checksums: Callable[[], dict[str, str]]
    _weight_checksum_prefix: Callable[[], str]
    _weight_update_active: bool

    def sluice_abandon_update(self) -> None:
        """Forget a weight update that was not finished; the next one starts from the layers as they are."""
        self._weight_update_active = False
        self.weight_transfer_engine.reset_weight_update_target()

    def sluice_checksums(self) -> dict[str, str]:
        """vLLM's digests of the parameters, and ours of what the CPU's linear layers hold instead of one."""
        prefix = self._weight_checksum_prefix()
        packed = packed_digests(self.model_runner.get_model())
        return self.compute_weight_checksums() | {prefix + name: found for name, found in packed.items()}
