"""Weight buckets from trainer rank 0 to GPU engines, over vLLM's own NCCL weight-transfer engine.

The receiving end is vLLM's NCCLWeightTransferEngine; this is the sending end of the same wire format (packed chunks,
`packed_nccl_broadcast_producer`), one bucket at a time instead of vLLM's whole model at a time, so that the trainer
never gathers more than two buckets. Both sides of a broadcast must run at once: `send` starts it on a thread and
returns the description that makes the engines receive. Not run on GPUs yet: tests/rollout/test_transfer_nccl.py is.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rollout.config import WeightSyncConfig
from rollout.transfer import NcclBucket, NcclRendezvous, describe

if TYPE_CHECKING:
    from concurrent.futures import Future

    from vllm.distributed.device_communicators.pynccl import PyNcclCommunicator


class NcclSender:
    """Rank 0 of a group with every worker of every engine; the group is opened by the first bucket.

    `NCCL_CUMEM_ENABLE` must be the same in the trainer's and the engines' environment.
    """

    def __init__(self, sync: WeightSyncConfig, replicas: int, tensor_parallel: int) -> None:
        self._timeout_s = sync.timeout_s
        self._rendezvous = NcclRendezvous(
            address=socket.gethostbyname(socket.gethostname()),
            port=_free_port(),
            replicas=replicas,
            tensor_parallel=tensor_parallel,
            buffer_bytes=int(sync.bucket_mb * 2**20),
        )
        self._device = torch.cuda.current_device()
        self._group: PyNcclCommunicator | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="nccl-sender")
        self._running: Future[None] | None = None
        self._sequence = 0

    def send(self, bucket: Sequence[tuple[str, Tensor]]) -> NcclBucket:
        """Start the broadcast of the bucket, after the one before has ended.

        Raises:
            RuntimeError: the one before did not end in weight_sync.timeout_s, so an engine did not receive it. The
                group is unusable then: end the run.
        """
        self._wait()
        # What the trainer's stream still computes must be there before the broadcast's own stream reads it.
        torch.cuda.current_stream().synchronize()
        self._running = self._worker.submit(self._broadcast, list(bucket))
        sent = NcclBucket(
            rendezvous=self._rendezvous,
            sequence=self._sequence,
            tensors=tuple(describe(name, tensor) for name, tensor in bucket),
        )
        self._sequence += 1
        return sent

    def close(self) -> None:
        """Leave the group. Idempotent; does not wait for engines that are gone."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        if self._group is not None and (self._running is None or self._running.done()):
            self._group.destroy()
        self._group = None

    def _wait(self) -> None:
        if self._running is None:
            return
        try:
            self._running.result(self._timeout_s)
        except FutureTimeoutError as error:
            raise RuntimeError(
                f"weight bucket {self._sequence - 1} was not received in {self._timeout_s:.0f} s: see the engines' logs"
            ) from error

    def _broadcast(self, bucket: list[tuple[str, Tensor]]) -> None:
        from vllm.distributed.weight_transfer.nccl_common import trainer_init
        from vllm.distributed.weight_transfer.packed_tensor import packed_nccl_broadcast_producer

        torch.cuda.set_device(self._device)
        if self._group is None:
            self._group = trainer_init(
                {
                    "master_address": self._rendezvous.address,
                    "master_port": self._rendezvous.port,
                    "world_size": self._rendezvous.world_size,
                }
            )
        packed_nccl_broadcast_producer(
            iterator=iter(bucket),
            group=self._group,
            src=0,
            post_iter_func=_tensor,
            buffer_size_bytes=self._rendezvous.buffer_bytes,
        )


def _tensor(pair: tuple[str, Tensor]) -> Any:
    return pair[1]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        port: int = probe.getsockname()[1]
        return port
