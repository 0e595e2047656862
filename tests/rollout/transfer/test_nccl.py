"""The nccl transport: the sender's rules over a group of threads, and real NCCL where there are two GPUs."""

from __future__ import annotations

import asyncio
import os
import pickle
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rl.paths import REPOSITORY
from rollout.transfer.bucket import Member, ReceiverPlace, SenderPlace, describe, digest, digests_of
from rollout.transfer.config import WeightSyncConfig
from rollout.transfer.nccl import NcclBucket, NcclReceiver, NcclRendezvous, NcclSender, meet_members
from rollout.transfer.registry import make_transport, resolve_transport
from tests.rollout.engine import inference_support as support


class Broken(RuntimeError):
    """A broadcast that was aborted."""


class ThreadGroup:
    """A group as `NcclSender` sees one: a broadcast ends when the engine has received it, or when the group is left."""

    def __init__(self, rendezvous: NcclRendezvous) -> None:
        self.rendezvous = rendezvous
        self.received: queue.Queue[str] = queue.Queue()
        self.left = threading.Event()
        self._wanted = threading.Semaphore(0)

    def receive(self) -> str:
        self._wanted.release()
        return self.received.get(timeout=30)

    def broadcast(self, bucket: Sequence[tuple[str, Tensor]]) -> None:
        while not self._wanted.acquire(timeout=0.01):
            if self.left.is_set():
                raise Broken
        self.received.put(f"{bucket[0][0]}{bucket[0][1].tolist()}")

    def leave(self) -> None:
        self.left.set()


class Network:
    """Opens groups for a sender while `gate` is set. The engines' side takes each from `opened`."""

    def __init__(self) -> None:
        self.opened: queue.Queue[ThreadGroup] = queue.Queue()
        self.gate = threading.Event()
        self.gate.set()

    def open(self, rendezvous: NcclRendezvous, listening: socket.socket) -> ThreadGroup:
        assert self.gate.wait(30)
        group = ThreadGroup(rendezvous)
        self.opened.put(group)
        return group

    def sender(self) -> NcclSender:
        return NcclSender(place(), 5, self.open)


def place() -> SenderPlace:
    return SenderPlace(run_id="r", device="cuda", address="127.0.0.1", sync=WeightSyncConfig(timeout_s=30))


def member(replica: int, workers: int = 1, process: str = "first") -> Member:
    return Member(replica=replica, process=process, workers=workers)


def bucket(name: str) -> list[tuple[str, Tensor]]:
    return [(name, torch.zeros(2))]


def test_buckets_go_one_after_the_other_through_one_group() -> None:
    network = Network()
    sender = network.sender()
    first = sender.send(bucket("a"))
    group = network.opened.get(timeout=30)
    assert group.receive() == "a[0.0, 0.0]"
    ((_, reused),) = gathered = bucket("b")
    second = sender.send(gathered, digests_of(gathered))
    reused.fill_(7)
    assert group.receive() == "b[0.0, 0.0]", "the source's tensors end with the next bucket, the broadcast later"
    assert first.rendezvous == second.rendezvous == group.rendezvous and group.rendezvous.address == "127.0.0.1"
    assert (first.sequence, second.sequence, len(first.digests), len(second.digests)) == (0, 1, 0, 1)
    sender.close()
    assert group.left.is_set()


def test_a_bucket_that_no_engine_received_does_not_stop_the_next_push() -> None:
    network = Network()
    sender = network.sender()
    lost = sender.send(bucket("a"))
    old = network.opened.get(timeout=30)
    assert sender.abandon() is None
    assert old.left.wait(30)
    again = sender.send(bucket("a"))
    new = network.opened.get(timeout=30)
    assert new.receive() == "a[0.0, 0.0]"
    assert again.rendezvous == new.rendezvous != lost.rendezvous, "engines that stayed in the old group would hang"
    sender.close()


def test_a_group_that_opens_after_it_was_given_up_is_left() -> None:
    network = Network()
    network.gate.clear()
    sender = network.sender()
    sender.send(bucket("a"))
    sender.abandon()
    network.gate.set()
    assert network.opened.get(timeout=30).left.wait(30)
    sender.close()


def test_what_failed_in_the_senders_thread_is_returned() -> None:
    def refuse(rendezvous: NcclRendezvous, listening: socket.socket) -> ThreadGroup:
        raise OSError("no route to host")

    sender = NcclSender(place(), 5, refuse)
    sender.send(bucket("a"))
    with pytest.raises(OSError, match="no route"):
        sender.send(bucket("b"))
    assert str(sender.abandon()) == "no route to host"
    assert sender.abandon() is None
    sender.close()


@pytest.mark.slow
@pytest.mark.parametrize(("address", "family"), [("127.0.0.1", socket.AF_INET), ("::1", socket.AF_INET6)])
def test_a_group_meets_at_a_port_that_was_taken_before_anybody_knew_it(
    address: str, family: socket.AddressFamily
) -> None:
    from vllm.distributed.utils import StatelessProcessGroup

    met: queue.Queue[StatelessProcessGroup] = queue.Queue()

    def rank_0(rendezvous: NcclRendezvous, listening: socket.socket) -> ThreadGroup:
        members = meet_members(rendezvous, listening)
        members.broadcast_obj("an id", src=0)
        met.put(members)  # the store ends with it
        return ThreadGroup(rendezvous)

    sender = NcclSender(replace(place(), address=address), 5, rank_0)
    sender.send_to((member(0),))
    sent = sender.send(bucket("a"))
    assert isinstance(sent, NcclBucket)
    with socket.socket(family) as late, pytest.raises(OSError, match="in use"):
        late.bind((address, sent.rendezvous.port))
    worker = StatelessProcessGroup.create(address, sent.rendezvous.port, rank=1, world_size=sent.rendezvous.world_size)
    assert worker.broadcast_obj(None, src=0) == "an id" and met.get(timeout=30).world_size == 2
    sender.close()


@pytest.mark.slow
def test_vllms_workers_of_all_replicas_get_every_rank_once() -> None:
    from vllm.distributed.weight_transfer.nccl_common import NCCLWeightTransferInitInfo

    engines = (member(0, workers=2), member(2, workers=1), member(3, workers=4))
    group = NcclRendezvous(address="a", port=1, engines=engines, buffer_bytes=5)
    arriving = NcclBucket(rendezvous=group, sequence=0, tensors=())
    joins = [NCCLWeightTransferInitInfo(**arriving.join(engine.replica)) for engine in engines]
    # nccl_common.worker_init_process_group: the worker's own rank is added to rank_offset.
    ranks = [info.rank_offset + i for info, own in zip(joins, engines, strict=True) for i in range(own.workers)]
    assert [0, *ranks] == list(range(joins[0].world_size))
    assert all(info.packed and info.packed_buffer_size_bytes == 5 for info in joins)


@pytest.mark.slow
def test_what_arrives_over_nccl_passes_the_checks_of_every_push(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's receiving loop needs a GPU. A stand-in hands over the received tensor, which our engine must check."""
    from types import SimpleNamespace

    from vllm.distributed.weight_transfer import packed_tensor

    from rollout.engine import worker as vllm_worker

    class Model(torch.nn.Module):
        def load_weights(self, weights: list[tuple[str, Tensor]]) -> set[str]:
            return {name for name, _ in weights if name == "known"}

    def engine_receives(name: str, sent: Tensor, received: Tensor) -> None:
        def consumer(*, iterator, post_unpack_func, **_: object) -> None:
            assert list(iterator) == [(name, ([2], torch.float32))]
            post_unpack_func([(name, received)])

        monkeypatch.setattr(packed_tensor, "packed_nccl_broadcast_consumer", consumer)
        settings = SimpleNamespace(parallel_config=None, model_config=None)
        engine = vllm_worker.TransferEngine(None, settings, torch.device("cpu"), Model())
        engine._receiver = NcclReceiver(ReceiverPlace(device=torch.device("cpu"), parallel_config=None))
        group = NcclRendezvous(address="a", port=1, engines=(member(0),), buffer_bytes=5)
        arriving = NcclBucket(rendezvous=group, sequence=3, tensors=(describe(name, sent),), digests=(digest(sent),))
        engine.receive_weights(engine.parse_update_info({"bucket": arriving}))

    engine_receives("known", torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="no weights named unknown"):
        engine_receives("unknown", torch.ones(2), torch.ones(2))
    with pytest.raises(ValueError, match="bucket 3: not the bytes that were sent: known"):
        engine_receives("known", torch.ones(2), torch.zeros(2))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_push_over_nccl_equals_a_fresh_load(tmp_path: Path) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs: one to send, one to receive")
    support.make_llama(tmp_path / "llama")
    weights = {name: tensor.cuda(0) for name, tensor in support.checkpoint_weights(tmp_path / "llama").items()}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.rollout.transfer.nccl_engine"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "1"},
        cwd=REPOSITORY,
    ) as child:
        assert child.stdin is not None and child.stdout is not None

        def start(*call: object) -> None:
            child.stdin.write(pickle.dumps(call))
            child.stdin.flush()

        def call(*call: object) -> object:
            start(*call)
            return pickle.load(child.stdout)

        child.stdin.write(pickle.dumps(support.settings(tmp_path / "llama", device="cuda")))
        local = replace(place(), address="127.0.0.1")
        sender = make_transport(resolve_transport(WeightSyncConfig(), "cuda")).sender(local)
        sender.send_to((member(0),))
        call("pause")
        call("begin_update", 1, [describe(name, tensor) for name, tensor in weights.items()])
        for part in support.in_buckets(weights):
            call("load_bucket", sender.send(part, digests_of(part)))
        sender.abandon()
        call("begin_update", 1, [describe(name, tensor) for name, tensor in weights.items()])
        for part in support.in_buckets(weights):
            call("load_bucket", sender.send(part, digests_of(part)))
        call("finish_update", 1)
        pushed = call("checksums")
        child.stdin.write(pickle.dumps(None))
        child.stdin.flush()
        sender.close()

    async def fresh() -> dict[str, str]:
        engine = await support.start(tmp_path / "llama", version=0, device="cuda")
        checksums = await engine.checksums()
        await engine.shutdown()
        return checksums

    assert pushed == asyncio.run(fresh())
