"""Buckets in shared memory: the same bits arrive, and nothing stays behind, even when the sender is killed."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
from dataclasses import replace

import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rl.paths import REPOSITORY
from rollout.transfer.bucket import ReceiverPlace, SenderPlace, check_digests, describe, digests_of
from rollout.transfer.config import NcclSettings, TransportSettings, WeightSyncConfig
from rollout.transfer.registry import make_transport, resolve_transport
from rollout.transfer.segment import Reader
from rollout.transfer.shm import Shm, ShmSender, ShmStage


@given(
    shapes=st.lists(st.lists(st.integers(0, 5), max_size=3), min_size=1, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_a_bucket_arrives_bit_for_bit(shapes: list[list[int]], dtype: torch.dtype) -> None:
    sent = [(f"layer.{i}", torch.randn(shape).to(dtype)) for i, shape in enumerate(shapes)]
    sender = ShmSender("test")
    bucket = sender.send(sent)
    received = Reader().read(bucket)
    sender.close()
    assert [name for name, _ in received] == [name for name, _ in sent] == list(bucket.names)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for (_, a), (_, b) in zip(sent, received, strict=True))


def test_non_contiguous_tensors_arrive() -> None:
    sender = ShmSender("test")
    tensor = torch.arange(12.0).reshape(3, 4).T
    ((_, received),) = Reader().read(sender.send([("w", tensor)]))
    sender.close()
    assert torch.equal(received, tensor)


def test_a_version_stays_until_the_next_one_takes_its_place() -> None:
    sender = ShmSender("test")
    first, second, third = (sender.send([("w", torch.full((1000,), float(i)))]) for i in range(3))
    assert [first.sequence, second.sequence, third.sequence] == [0, 1, 2]
    sender.rest()
    assert [Reader().read(bucket)[0][1][0] for bucket in (first, second, third)] == [0, 1, 2]
    next_version = sender.send([("w", torch.full((1000,), 3.0))])
    for bucket in (first, second, third):
        with pytest.raises(RuntimeError, match=f"bucket {bucket.sequence} was overwritten"):
            Reader().read(bucket)
    assert Reader().read(next_version)[0][1][0] == 3
    assert next_version.start == first.start, "its memory is used again"
    sender.close()


def test_memory_of_another_machine_is_refused_by_name() -> None:
    sender = ShmSender("test")
    bucket = sender.send([("w", torch.zeros(8))])
    with pytest.raises(RuntimeError, match=r"shared memory of elsewhere, .*weight_sync.transport=shm reaches .*gloo"):
        ShmStage().receive(replace(bucket, host="elsewhere/boot/pid:[1]"))
    sender.close()


def test_an_engine_checks_what_it_collects_and_passes_it_on_to_its_workers() -> None:
    sender = ShmSender("test")
    tensors = [("w", torch.arange(3.0)), ("v", torch.empty(0))]
    bucket = sender.send(tensors, digests_of(tensors))
    stored = ShmStage().receive(bucket)
    assert bucket.digests and not stored.digests, "checked once"
    assert Reader().read(stored)[0][1].tolist() == [0.0, 1.0, 2.0]
    os.pwrite(bucket.fd, b"\x01", bucket.start + bucket.offsets[0])
    with pytest.raises(ValueError, match=r"not the bytes that were sent: w$"):
        ShmStage().receive(bucket)
    sender.close()


def test_digests_name_what_was_damaged_or_exchanged_on_the_way() -> None:
    sender = ShmSender("test")
    tensors = {
        "a": torch.arange(12.0).reshape(3, 4).T,
        "b": torch.zeros(3, 4),
        "c": torch.tensor(1.0),
        "d": torch.empty(0),
    }
    bucket = sender.send([*tensors.items()], digests_of([*tensors.items()]))
    check_digests(bucket, Reader().read(bucket))
    exchanged = replace(bucket, offsets=(bucket.offsets[1], bucket.offsets[0], *bucket.offsets[2:]))
    with pytest.raises(ValueError, match=r"not the bytes that were sent: a, b$"):
        check_digests(exchanged, Reader().read(exchanged))
    os.pwrite(bucket.fd, b"\x01", bucket.start + bucket.offsets[1] + 5)
    with pytest.raises(ValueError, match=r"bucket 0: not the bytes that were sent: b$"):
        check_digests(bucket, Reader().read(bucket))
    unverified = sender.send([("a", torch.zeros(2))])
    check_digests(unverified, [("a", torch.ones(2))])
    sender.close()


def test_a_reader_keeps_the_pages_from_push_to_push_and_gets_those_that_were_added() -> None:
    sender, other, reader = ShmSender("test"), ShmSender("test"), Reader()

    def read(value: float, count: int, by: ShmSender = sender) -> int:
        """Where the tensor of a new push lies in this process."""
        by.rest()
        ((_, tensor),) = reader.read(by.send([("w", torch.full((count,), value))]))
        assert torch.equal(tensor, torch.full((count,), value))
        return tensor.data_ptr()

    first = read(1.0, 5000)
    assert read(2.0, 5000) == first and read(3.0, 7) == first
    grown = read(4.0, 1 << 16)
    assert read(5.0, 7) == grown, "the larger one is kept"
    read(6.0, 9, by=other)
    read(7.0, 11)
    reader.close()
    read(8.0, 5)
    for one in (sender, other, reader):
        one.close()


def test_another_file_under_the_same_number_is_noticed() -> None:
    sender, other = ShmSender("test"), ShmSender("test")
    bucket, strange = sender.send([("w", torch.zeros(8))]), other.send([("w", torch.ones(8))])
    with pytest.raises(RuntimeError, match="overwritten"):
        Reader().read(replace(bucket, fd=strange.fd))
    other.close()
    sender.close()


def test_a_receiver_of_an_overwritten_bucket_is_told_and_not_killed_by_a_segment_that_shrank() -> None:
    sender = ShmSender("test")
    large = sender.send([("w", torch.ones(1 << 16))])
    with (
        open(f"/proc/{large.pid}/fd/{large.fd}", "rb") as file,
        mmap.mmap(file.fileno(), large.start + large.size, prot=mmap.PROT_READ) as mapped,
    ):
        sender.rest()
        small = sender.send([("w", torch.ones(1))])
        assert small.size < large.size
        mapped[large.start + large.size - 1]  # a page beyond the end of a file raises SIGBUS
    with pytest.raises(RuntimeError, match="overwritten"):
        Reader().read(large)
    assert torch.equal(Reader().read(small)[0][1], torch.ones(1))
    sender.close()


def test_closing_frees_the_memory_and_is_idempotent() -> None:
    before = set(os.listdir("/proc/self/fd"))
    sender = ShmSender("test")
    bucket = sender.send([("w", torch.zeros(8))])
    sender.close()
    sender.close()
    assert set(os.listdir("/proc/self/fd")) == before
    with pytest.raises(RuntimeError, match="gone"):
        Reader().read(bucket)
    with pytest.raises(RuntimeError, match="closed"):
        sender.send([("w", torch.zeros(8))])


def test_a_killed_sender_leaves_nothing_and_the_receiver_is_told() -> None:
    command = [sys.executable, "-m", "tests.rollout.transfer.shm_sender"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY) as child:
        assert child.stdout is not None
        pid, fd, nonce, imports_vllm = child.stdout.readline().split()
        assert imports_vllm == "False"
        own = ShmSender("test")
        bucket = replace(own.send([("w", torch.zeros(6))]), pid=int(pid), fd=int(fd), nonce=int(nonce))
        own.close()
        assert torch.equal(Reader().read(bucket)[0][1], torch.arange(6.0))
        named = [region.path for region in psutil.Process(child.pid).memory_maps() if "/dev/shm" in region.path]
        assert not named, "such a file would stay behind"
        child.send_signal(signal.SIGKILL)
        child.wait()
        with pytest.raises(RuntimeError, match="gone"):
            Reader().read(bucket)


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(ValueError, match="counts is int64"):
        describe("counts", torch.zeros(1, dtype=torch.int64))


def test_the_transport_follows_the_device() -> None:
    shm = WeightSyncConfig(transport=TransportSettings(name="shm"))
    nccl = WeightSyncConfig(transport=NcclSettings(name="nccl", buffer_mb=7))
    assert resolve_transport(WeightSyncConfig(), "cpu").name == "shm"
    assert resolve_transport(WeightSyncConfig(), "cuda").name == "nccl"
    assert resolve_transport(shm, "cuda").name == "shm"
    assert resolve_transport(nccl, "cuda") == nccl.transport
    with pytest.raises(ValueError, match="needs GPUs"):
        resolve_transport(nccl, "cpu")


def test_both_ends_of_the_transport_agree() -> None:
    shm = make_transport(TransportSettings(name="shm"))
    assert isinstance(shm, Shm)
    place = SenderPlace(run_id="test", device="cpu", address="127.0.0.1", sync=WeightSyncConfig())
    sender = shm.sender(place)
    receiver = shm.receiver(ReceiverPlace(device=torch.device("cpu"), parallel_config=None))
    bucket = sender.send([("w", torch.arange(3.0))])
    assert bucket.join(0) is None, "there is no rendezvous"
    received: list[tuple[str, torch.Tensor]] = []
    receiver.receive(bucket, received.extend)
    sender.close()
    ((name, tensor),) = received
    assert name == "w" and tensor.tolist() == [0.0, 1.0, 2.0]
