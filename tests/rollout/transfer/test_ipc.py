"""The ipc transport: between processes on a CPU, and from one process to another on a GPU where there is one."""

from __future__ import annotations

import multiprocessing
from pathlib import Path

import pytest
import torch

from rollout.transfer.bucket import Follower, ReceiverPlace, SenderPlace, check_digests
from rollout.transfer.config import TransportSettings, WeightSyncConfig
from rollout.transfer.ipc import CudaMemory, Handle, IpcBucket, IpcReceiver, IpcSender, Lent
from rollout.transfer.registry import make_transport, resolve_transport
from tests.rollout.transfer.ipc_ranks import Pairs, SharedPages, buckets, rank

spawn = multiprocessing.get_context("spawn")


def received(place: str, bucket: IpcBucket) -> Pairs:
    found: Pairs = []
    IpcReceiver(SharedPages(place)).receive(bucket, found.extend)
    return found


def assert_equal(found: Pairs, sent: Pairs) -> None:
    assert [name for name, _ in found] == [name for name, _ in sent]
    for (_, one), (_, other) in zip(found, sent, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_each_engine_reads_what_the_rank_on_its_gpu_lends(tmp_path: Path) -> None:
    pipes = [spawn.Pipe() for _ in range(2)]
    ranks = [
        spawn.Process(target=rank, args=(number, 2, str(tmp_path / "store"), pipes[number][1])) for number in range(2)
    ]
    for process in ranks:
        process.start()
    try:
        for sequence, place in enumerate((0, 1, 3)):  # rank 0 sends no third bucket, and nobody waits for it
            assert pipes[0][0].poll(60)
            bucket = pipes[0][0].recv()
            assert bucket.sequence == sequence and set(bucket.handles) == {"gpu-0", "gpu-1"}
            for number in range(2):
                assert_equal(received(f"gpu-{number}", bucket), buckets(number)[place])
            if place == 0:
                check_digests(bucket, received("gpu-0", bucket))
                with pytest.raises(ValueError, match="not the bytes that were sent"):
                    check_digests(bucket, received("gpu-1", bucket))
            pipes[0][0].send("loaded")
        assert [pipe.recv() for pipe, _ in pipes if pipe.poll(60)] == [0, 1], "nobody opens what rank 0 does not send"
    finally:
        for process in ranks:
            process.join(20)
            process.kill()
    assert [process.exitcode for process in ranks] == [0, 0]


class Pages(SharedPages):
    """Remembers what it has lent."""

    def __init__(self) -> None:
        super().__init__("gpu-0")
        self.lent: list[torch.Tensor] = []

    def lend(self, packed: torch.Tensor) -> Handle:
        self.lent.append(packed)
        return super().lend(packed)


def test_what_is_copied_out_stays_when_the_lender_writes_anew() -> None:
    pages = Pages()
    sender = IpcSender(pages, lambda mine: dict([mine]))
    bucket = sender.send(buckets(0)[1])
    found = received("gpu-0", bucket)
    pages.lent[0].zero_()
    assert_equal(found, buckets(0)[1])
    assert received("gpu-0", bucket)[1][1].sum() == 0, "it is the same memory"


def test_the_last_two_buckets_stay_until_the_push_has_ended() -> None:
    pages = Pages()
    sender = IpcSender(pages, lambda mine: dict([mine]))
    for bucket in buckets(0):
        sender.send(bucket)
    assert [any(kept is lent for kept in sender._lent) for lent in pages.lent] == [False, False, True, True]
    sender.rest()
    assert not sender._lent
    sender.close()


class Full(Pages):
    """Memory without room."""

    def lend(self, packed: torch.Tensor) -> Handle:
        raise MemoryError("no room")


def test_a_rank_without_room_takes_part_and_is_named_by_its_engine() -> None:
    collected: list[tuple[str, Lent]] = []

    def collect(mine: tuple[str, Lent]) -> dict[str, Lent]:
        collected.append(mine)
        return {"gpu-1": (1, 2, 3), **dict([mine])}

    follower = IpcSender(Full(), collect, first=False)
    follower.follow(buckets(0)[0])
    assert collected == [("gpu-0", "MemoryError: no room")] and not follower._lent
    with pytest.raises(MemoryError):
        IpcSender(Full(), collect).send(buckets(0)[0])
    bucket = IpcBucket(sequence=4, tensors=(), handles=dict(collected[:1]))
    with pytest.raises(ValueError, match=r"weight bucket 4: the rank on GPU gpu-0 failed: MemoryError: no room"):
        received("gpu-0", bucket)


def test_an_engine_without_a_rank_on_its_gpu_says_so() -> None:
    bucket = IpcSender(Pages(), lambda mine: dict([mine])).send(buckets(0)[0])
    with pytest.raises(ValueError, match=r"no trainer rank is on GPU gpu-7, and ipc reaches gpu-0 only: use placement"):
        received("gpu-7", bucket)


def test_it_is_chosen_where_trainer_and_engines_share_gpus() -> None:
    sync = WeightSyncConfig()
    assert resolve_transport(sync, "cuda", "colocated").name == "ipc"
    assert resolve_transport(sync, "cuda", "split").name == "nccl"
    assert resolve_transport(sync, "cpu", "colocated").name == "shm"
    named = WeightSyncConfig(transport=TransportSettings(name="ipc"))
    assert resolve_transport(named, "cuda", "colocated").name == "ipc"
    for device, placement, why in (("cpu", "colocated", "needs GPUs"), ("cuda", "split", "placement=split")):
        with pytest.raises(ValueError, match=why):
            resolve_transport(named, device, placement)  # type: ignore[arg-type]
    nccl = WeightSyncConfig(transport=TransportSettings(name="nccl"))
    with pytest.raises(ValueError, match="NCCL joins no two processes on one GPU"):
        resolve_transport(nccl, "cuda", "colocated")


def test_in_other_transports_ranks_that_send_nothing_have_no_part() -> None:
    sync = WeightSyncConfig()
    place = SenderPlace(run_id="r", device="cpu", address="127.0.0.1", sync=sync)
    for transport in ("shm", "nccl"):
        settings = WeightSyncConfig.model_validate({"transport": {"name": transport}}).transport
        if transport == "nccl":
            settings = resolve_transport(sync, "cuda")
        follower = make_transport(settings).follower(place)
        assert type(follower) is Follower
        follower.follow(buckets(0)[0]), follower.rest(), follower.close()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_one_gpu_is_shared_between_two_processes() -> None:
    """The sender's process is another one: CUDA opens no handle in the process that made it."""
    here, there = spawn.Pipe()
    process = spawn.Process(target=lend_on_gpu, args=(there,))
    process.start()
    try:
        receiver = make_transport(TransportSettings(name="ipc")).receiver(
            ReceiverPlace(device=torch.device("cuda", 0), parallel_config=None)
        )
        for sent in buckets(0):
            assert here.poll(120)
            found: Pairs = []
            receiver.receive(here.recv(), found.extend)
            torch.cuda.synchronize()
            here.send("loaded")
            assert_equal([(name, tensor.cpu()) for name, tensor in found], sent)
        assert here.recv() < 2**20, "what was lent is freed when nobody has it open any more"
    finally:
        process.join(60)
        process.kill()
    assert process.exitcode == 0


def lend_on_gpu(pipe: multiprocessing.connection.Connection) -> None:
    """Lend every bucket, and one more that nobody opens, because rank 0's push has failed by then."""
    memory = CudaMemory(0)
    sender = IpcSender(memory, lambda mine: dict([mine]))
    for bucket in buckets(0):
        pipe.send(sender.send([(name, tensor.cuda()) for name, tensor in bucket]))
        pipe.recv()
    sender.rest()
    follower = IpcSender(memory, lambda mine: {"rank 0's": (), **dict([mine])}, first=False)
    follower.follow([("large", torch.zeros(2**22, device="cuda"))])
    follower.rest()
    torch.cuda.ipc_collect()
    pipe.send(torch.cuda.memory_allocated())
