"""The gloo transport: real groups over loopback, and what happens when a member does not come, or goes."""

from __future__ import annotations

import pickle
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import psutil
import pytest
import torch

from rollout.ports import listen
from rollout.transfer.bucket import Bucket, Member, SenderPlace, StagePlace, Tensors, digests_of
from rollout.transfer.config import TransportSettings, WeightSyncConfig
from rollout.transfer.gloo import GlooSender, GlooStage
from rollout.transfer.registry import make_transport, resolve_transport
from rollout.transfer.segment import Reader

GLOO = WeightSyncConfig(transport=TransportSettings(name="gloo"), timeout_s=20)
BUCKETS: list[Tensors] = [
    [("a", torch.arange(12.0).reshape(3, 4).T), ("b", torch.empty(0))],
    [("c", torch.randn(1000).to(torch.bfloat16)), ("d", torch.tensor(1.5))],
    [("e", torch.empty(0, 3))],
]


def place(address: str = "127.0.0.1", timeout_s: float = 20) -> SenderPlace:
    sync = GLOO.model_copy(update={"timeout_s": timeout_s})
    return SenderPlace(run_id="r", device="cpu", address=address, sync=sync)


class Engine:
    """An engine's end of the transport, on a thread of its own as in an engine."""

    def __init__(self, replica: int, address: str = "127.0.0.1") -> None:
        self.stage = GlooStage(address)
        self.member = Member(replica=replica, process=str(id(self)))
        self._replica = replica
        self._membership: object = None
        self._thread = ThreadPoolExecutor(1)

    def receive(self, bucket: Bucket) -> Future[Bucket]:
        return self._thread.submit(self._receive, pickle.loads(pickle.dumps(bucket)))

    def _receive(self, bucket: Bucket) -> Bucket:
        membership = bucket.join(self._replica)
        assert membership is not None
        if membership != self._membership:
            self.stage.join(membership)
            self._membership = membership
        stored: Bucket = self.stage.receive(bucket)  # type: ignore[arg-type]
        return stored


@contextmanager
def group(engines: int, address: str = "127.0.0.1", timeout_s: float = 20) -> Iterator[tuple[GlooSender, list[Engine]]]:
    sender = GlooSender(place(address, timeout_s))
    members = [Engine(i, address) for i in range(engines)]
    sender.send_to(tuple(engine.member for engine in members))
    try:
        yield sender, members
    finally:
        sender.close()
        for member in members:
            member.stage.close()


def push(sender: GlooSender, engines: list[Engine], *, verify: bool = True) -> list[list[Bucket]]:
    """Send all buckets; return what each engine has of them."""
    sender.send_to(tuple(engine.member for engine in engines))
    for engine in engines:
        engine.stage.begin()
    arrived: list[list[Bucket]] = []
    for bucket in BUCKETS:
        sent = sender.send(bucket, digests_of(bucket) if verify else ())
        arrived.append([waiting.result(60) for waiting in [engine.receive(sent) for engine in engines]])
    sender.rest()
    return [list(own) for own in zip(*arrived, strict=True)]


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_every_engine_gets_every_version_bit_for_bit(address: str) -> None:
    with group(2, address) as (sender, engines):
        for _ in range(2):
            for stored in push(sender, engines):
                for sent, bucket in zip(BUCKETS, stored, strict=True):
                    received = Reader().read(bucket)  # type: ignore[arg-type]
                    assert [name for name, _ in received] == [name for name, _ in sent]
                    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(sent, received, strict=True))


def test_a_bucket_is_sent_before_engines_have_the_one_before() -> None:
    with group(2) as (sender, engines):
        received = []
        for i in range(6):
            tensors = [("a", torch.full((1000,), float(i)))]
            sent = sender.send(tensors, digests_of(tensors))
            received.append([engine.receive(sent) for engine in engines])
            tensors[0][1].zero_()  # the source gathers into it again
            if i:
                assert all(waiting.result(60) for waiting in received[i - 1])
        for i, both in enumerate(received):
            for waiting in both:
                assert Reader().read(waiting.result(60))[0][1].eq(i).all()  # type: ignore[arg-type]


def test_an_engine_that_was_started_again_gets_the_next_version_and_first_one_of_its_own() -> None:
    """Numbers have gaps while an engine is missing; an engine with another process joins another group."""
    with group(3) as (sender, engines):
        push(sender, engines)
        engines[1].stage.close()
        push(sender, [engines[0], engines[2]])
        engines[1] = Engine(1)
        for own in ([engines[1]], engines, engines):
            for stored in push(sender, own):
                assert torch.equal(Reader().read(stored[1])[1][1], torch.tensor(1.5))  # type: ignore[arg-type]


def test_nothing_listens_on_other_addresses() -> None:
    with group(1, "127.0.0.2") as (sender, engines):
        push(sender, engines)
        own = [c for c in psutil.Process().net_connections("tcp") if c.status == psutil.CONN_LISTEN]
        assert {c.laddr.ip for c in own if c.laddr.port == sender._membership.meeting._rendezvous.port} == {"127.0.0.2"}
        assert not [c for c in own if c.laddr.ip in ("0.0.0.0", "::")]


def test_the_port_is_taken_from_the_start() -> None:
    listening = listen("127.0.0.1")
    with pytest.raises(OSError, match="in use"), socket.socket() as other:
        other.bind(listening.getsockname())
    listening.close()


def test_a_damaged_tensor_is_named() -> None:
    with group(1) as (sender, engines):
        engines[0].stage.begin()
        tensors = [("a", torch.zeros(3)), ("b", torch.ones(3))]
        sent = sender.send(tensors, digests_of(tensors))
        exchanged = replace(sent, digests=(sent.digests[0], sent.digests[0]))
        with pytest.raises(ValueError, match=r"not the bytes that were sent: b$"):
            engines[0].receive(exchanged).result(60)


def test_an_engine_that_went_away_is_noticed_and_one_that_was_started_again_joins() -> None:
    with group(2) as (sender, engines):
        push(sender, engines)
        engines[1].stage.close()
        with pytest.raises(Exception, match=r"(?i)closed|peer|left|timed out"):
            for bucket in BUCKETS * 2:  # what was sent to it before its end was noticed counts as sent
                engines[0].receive(sender.send(bucket)).result(60)
        sender.abandon()
        engines[1] = Engine(1)
        assert len(push(sender, engines)) == 2


def test_an_engine_that_never_comes_ends_in_an_error_on_both_sides() -> None:
    with group(2, timeout_s=1) as (sender, engines):
        waiting = engines[0].receive(sender.send(BUCKETS[0]))
        sender.send(BUCKETS[1])
        assert waiting.exception(60) is not None
        with pytest.raises(Exception, match=r"(?i)time"):
            sender.send(BUCKETS[2])
        assert "time" in str(sender.abandon()).lower()
        assert sender.send(BUCKETS[0]).join(0) is not None, "the next push meets elsewhere"


def test_closing_ends_a_receive_that_waits() -> None:
    with group(1, timeout_s=500) as (sender, engines):
        first = sender.send(BUCKETS[0])
        engines[0].receive(first).result(60)
        lost: Future[Bucket] = engines[0].receive(first)  # nobody sends it
        threading.Timer(0.5, engines[0].stage.close).start()
        assert lost.exception(60) is not None


def test_the_choice_of_a_transport() -> None:
    def automatic(machines: int) -> str:
        return resolve_transport(WeightSyncConfig(), "cpu", machines=machines).name

    assert (automatic(1), automatic(2)) == ("shm", "gloo")
    assert resolve_transport(WeightSyncConfig(), "cpu", "colocated", 2).name == "shm"
    assert resolve_transport(GLOO, "cpu").name == "gloo"
    with pytest.raises(ValueError, match="use auto or nccl"):
        resolve_transport(GLOO, "cuda")
    assert isinstance(make_transport(GLOO.transport).stage(StagePlace(address="127.0.0.1")), GlooStage)
