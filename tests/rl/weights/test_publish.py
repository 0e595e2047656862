"""The life of a weight version: order of the stages, and what an error in any of them leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch

from rl.weights.publish import PublishError, publish, publish_adapter
from rl.weights.read_back import ReadBack, ReadBackReport
from rollout.transfer import bucket
from rollout.transfer.config import WeightSyncConfig
from rollout.transfer.content import content_hash
from rollout.transfer.update import Findings
from rollout.types import WeightSpec

CONFIG = WeightSyncConfig(bucket_mb=1.5)
BUCKET_BYTES = 1_572_864


class Source:
    """A source of buckets with one tensor each. It counts the buckets that were gathered."""

    def __init__(self, buckets: int = 3) -> None:
        self.walked, self._buckets = 0, buckets
        self.max_bytes = 0

    def manifest(self) -> list[WeightSpec]:
        return [WeightSpec(name=f"w{i}", dtype="float32", shape=(2,)) for i in range(self._buckets)]

    def buckets(self, max_bytes: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
        self.max_bytes = max_bytes
        for i in range(self._buckets):
            self.walked += 1
            yield [(f"w{i}", torch.full((2,), float(i)))]


class Sent(NamedTuple):
    names: tuple[str, ...]
    digests: tuple[str, ...]


CONTENT = content_hash({f"w{i}": bucket.digest(torch.full((2,), float(i))) for i in range(3)})


class Sender(bucket.Sender):
    """A transport with one slot: a bucket that is sent while the last one is still loading would overwrite it. It
    counts the buckets of which it sends nothing, and the ends of pushes. Engines of `stages` collect them."""

    def __init__(
        self, failure: Exception | None = None, unsendable: str | None = None, *, stages: bool = False
    ) -> None:
        self.stages = stages  # type: ignore[misc]
        self.loading = self.verifies = False
        self.abandoned = self.called = self.followed = self.rested = 0
        self._failure, self._unsendable = failure, unsendable

    def follow(self, bucket: Any) -> None:
        self.followed += 1

    def rest(self) -> None:
        self.rested += 1

    def prepare(self, bucket: Any, verify: bool) -> tuple[str, ...]:
        self.prepared = bucket[0][0]
        return super().prepare(bucket, verify)

    def send(self, bucket: Any, digests: tuple[str, ...] = ()) -> Any:
        self.called += 1
        assert not self.loading, "a bucket was sent before every engine had loaded the one before"
        assert self.prepared == bucket[0][0]
        if bucket[0][0] == self._unsendable:
            raise OSError("no space left")
        self.loading, self.verifies = True, bool(digests)
        return Sent(tuple(name for name, _ in bucket), digests)

    def abandon(self) -> Exception | None:
        self.abandoned += 1
        self.loading = False
        return self._failure


class Engines:
    """Two replicas that write down what they are asked; `failing` names the stage that raises."""

    def __init__(
        self,
        failing: str | None = None,
        checksums: tuple[dict[str, str], ...] = ({}, {}),
        sender: Sender | None = None,
    ) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.waits: list[tuple[str, float]] = []
        self._failing, self._checksums, self.quick = failing, checksums, False
        self.sender = sender or Sender()
        self.contents = (CONTENT, CONTENT)
        self.dead: set[int] = set()
        self.findings: tuple[Findings | None, ...] = (Findings(same=3), Findings(same=3))

    numbers = (0, 1)

    def start(self, method: str, *args: Any) -> str:
        self.calls.append((method, *args))
        return method

    def wait(self, started: str, timeout_s: float) -> list[Any]:
        self.waits.append((started, timeout_s))
        if started == self._failing:
            raise RuntimeError("boom")
        if started in ("load_bucket", "load_adapter"):
            self.sender.loading = False
        if started == "begin_adapter":
            return [1, 2]
        if started == "content":
            return list(self.contents)
        if started == "read_back":
            return list(self.findings)
        return list(self._checksums) if started == "checksums" else [None, None]

    def only(self, number: int) -> One:
        return One(self, number)

    def done(self, started: str) -> bool:
        return self.quick

    def stages(self) -> list[str]:
        return [call[0] for call in self.calls]


class One:
    """One of the two."""

    def __init__(self, both: Engines, number: int) -> None:
        self._both, self._number = both, number

    def start(self, method: str) -> str:
        return self._both.start(method, self._number)

    def wait(self, started: str, timeout_s: float) -> list[Any]:
        if self._number in self._both.dead:
            raise ConnectionError("it died")
        return [self._both.wait(started, timeout_s)[self._number]]


def test_the_stages_run_in_order_and_every_bucket_arrives() -> None:
    engines, source = Engines(), Source()
    report = publish(source, 7, CONFIG, engines, engines.sender, verify=True)
    assert engines.stages() == [
        "pause",
        "begin_update",
        "load_bucket",
        "load_bucket",
        "load_bucket",
        "finish_update",
        "content",
        "checksums",
        "resume",
    ]
    assert [call[1].names for call in engines.calls if call[0] == "load_bucket"] == [("w0",), ("w1",), ("w2",)]
    assert engines.calls[0] == ("pause",)
    assert engines.calls[1] == ("begin_update", 7, source.manifest())
    assert ("finish_update", 7) in engines.calls
    assert engines.waits == [(stage, CONFIG.deadline_s(24)) for stage in engines.stages()], "each is waited for once"
    assert source.max_bytes == BUCKET_BYTES
    assert report is not None
    assert (report.version, report.bytes, report.buckets, report.verified) == (7, 24, 3, 2)
    assert report.content == CONTENT
    assert 0.0 <= report.paused_s < 60.0
    assert engines.sender.verifies and engines.sender.abandoned == 0


def test_engines_that_collect_a_version_stand_still_only_to_load_it() -> None:
    engines = Engines(sender=Sender(stages=True))
    report = publish(Source(), 7, CONFIG, engines, engines.sender, verify=True)
    assert engines.stages() == [
        *("begin_update", "load_bucket", "load_bucket", "load_bucket"),
        *("pause", "finish_update", "content", "resume"),
    ]
    assert report is not None and 0.0 <= report.paused_s < 60.0
    assert (report.verified, report.readable, report.content) == (2, 3, CONTENT)
    report = publish(Source(), 8, CONFIG, engines, engines.sender, verify=False)
    assert report is not None and (report.verified, report.readable) == (0, 0)


def read_back(engines: Engines, numbers: tuple[int, ...] = (0, 1)) -> ReadBackReport:
    return ReadBack(7, engines, 3, CONFIG.deadline_s(24)).finish(numbers)


def test_engines_read_back_while_nobody_waits() -> None:
    engines = Engines()
    reading = ReadBack(7, engines, 3, CONFIG.deadline_s(24))
    assert engines.calls == [("read_back", 0), ("read_back", 1)] and engines.waits == []
    assert reading.finish([0, 1]) == ReadBackReport(read=3)
    assert engines.waits == [("read_back", CONFIG.deadline_s(24))] * 2


def test_an_engine_that_computes_with_other_values_is_named_and_paused_again() -> None:
    engines = Engines()
    engines.findings = (Findings(same=3), Findings(same=2, differ=["w1"]))
    with pytest.raises(
        PublishError, match="version 7: stage read_back failed: engine 1 computes with other values of w1"
    ):
        read_back(engines)
    assert engines.calls[2:] == [("pause", 0), ("pause", 1)]


def test_an_engine_that_died_hides_nothing_of_the_others() -> None:
    engines = Engines()
    engines.dead = {0}
    report = read_back(engines)
    assert report.read == 3 and [*report.failed] == [0] and "engine 0 (deadline" in report.failed[0]
    with pytest.raises(PublishError, match="ConnectionError: it died"):
        report.check()
    assert read_back(engines, (1,)) == ReadBackReport(read=3), "one that is known to be dead is not asked"
    engines.findings = (Findings(same=3), Findings(same=2, differ=["w1"]))
    with pytest.raises(PublishError, match="engine 1 computes with other values of w1"):
        read_back(engines)


@pytest.mark.parametrize("stage", ["read_back", "checksums"])
def test_engines_that_cannot_compare_are_told_of(stage: str) -> None:
    engines = Engines(failing=stage)
    engines.findings = (Findings(same=3), Findings())
    assert "RuntimeError: boom" in read_back(engines).failed[1]


@pytest.mark.parametrize("second", [None, Findings(same=2, unread=["w2"]), Findings(same=2), Findings()])
def test_replicas_are_compared_where_something_cannot_be_read_back(second: Findings | None) -> None:
    engines = Engines()
    engines.findings = (Findings(same=3), second)
    assert read_back(engines) == ReadBackReport(read=0)
    assert engines.stages() == ["read_back"] * 2 + ["checksums"] * 2
    engines = Engines(checksums=({"a": "1"}, {"a": "2"}))
    engines.findings = (Findings(same=3), second)
    with pytest.raises(PublishError, match="engine 1 differs from engine 0 in a"):
        read_back(engines)
    assert engines.stages()[-1] == "pause"


class Keeps(Sender):
    """Its buckets stay where they are until the end of the push."""

    keeps = True

    def send(self, bucket: Any, digests: tuple[str, ...] = ()) -> Any:
        self.loading = False
        return super().send(bucket, digests)


@pytest.mark.parametrize("verify", [False, True])
def test_busy_engines_are_told_at_once_of_all_buckets_that_stay_where_they_are(verify: bool) -> None:
    engines = Engines(sender=Keeps(stages=True))
    publish(Source(), 7, CONFIG, engines, engines.sender, verify=verify)
    assert engines.stages()[:3] == ["begin_update", "load_bucket", "pause"]
    assert [sent.names for sent in engines.calls[1][1:]] == [("w0",), ("w1",), ("w2",)]


def test_idle_engines_are_told_of_each_bucket_as_soon_as_it_is_there() -> None:
    engines = Engines(sender=Keeps(stages=True))
    engines.quick = True
    publish(Source(), 7, CONFIG, engines, engines.sender, verify=True)
    assert engines.stages()[:5] == ["begin_update", *["load_bucket"] * 3, "pause"]
    assert [[sent.names for sent in call[1:]] for call in engines.calls[1:4]] == [[("w0",)], [("w1",)], [("w2",)]]


class Ahead(Sender):
    """A bucket may be sent while one is on its way."""

    ahead = 2
    on_their_way = most = 0

    @property
    def loading(self) -> bool:
        return self.on_their_way == self.ahead

    @loading.setter
    def loading(self, sent: bool) -> None:
        self.on_their_way = self.on_their_way + 1 if sent else max(0, self.on_their_way - 1)
        self.most = max(self.most, self.on_their_way)


def test_a_bucket_is_sent_before_engines_have_the_one_before_where_the_sender_lets_it_wait() -> None:
    engines = Engines(sender=Ahead(stages=True))
    publish(Source(4), 7, CONFIG, engines, engines.sender, verify=False)
    assert engines.stages()[:6] == ["begin_update", *["load_bucket"] * 4, "pause"]
    assert engines.sender.most == 2 and engines.sender.on_their_way == 0
    assert [stage for stage, _ in engines.waits[:6]] == engines.stages()[:6], "nobody stands still before it has all"


@pytest.mark.parametrize(("stage", "sent"), [("begin_update", 0), ("load_bucket", 1)])
def test_no_bucket_is_sent_after_one_of_those_on_their_way_was_lost(stage: str, sent: int) -> None:
    engines, source = Engines(failing=stage, sender=Ahead(stages=True)), Source()
    with pytest.raises(PublishError, match=f"stage {stage} failed"):
        publish(source, 7, CONFIG, engines, engines.sender, verify=True)
    assert (source.walked, engines.sender.called, engines.sender.followed) == (3, sent, 3 - sent)
    assert "pause" not in engines.stages() and engines.sender.abandoned == 1


@pytest.mark.parametrize("stage", ["begin_update", "load_bucket"])
def test_no_bucket_is_sent_after_engines_that_take_them_meanwhile_have_failed(stage: str) -> None:
    engines, source = Engines(failing=stage, sender=Keeps(stages=True)), Source()
    engines.quick = True
    with pytest.raises(PublishError, match=f"stage {stage} failed"):
        publish(source, 7, CONFIG, engines, engines.sender, verify=True)
    assert source.walked == 3 and engines.sender.called == (0 if stage == "begin_update" else 1)
    assert engines.sender.followed == 3 - engines.sender.called


@pytest.mark.parametrize("stage", ["begin_update", "load_bucket"])
def test_engines_that_could_not_collect_a_version_never_stand_still_for_it(stage: str) -> None:
    engines = Engines(failing=stage, sender=Sender(stages=True))
    with pytest.raises(PublishError, match=f"stage {stage} failed"):
        publish(Source(), 7, CONFIG, engines, engines.sender, verify=True)
    assert "pause" not in engines.stages() and "finish_update" not in engines.stages()


@pytest.mark.parametrize("stage", ["pause", "begin_update", "load_bucket", "finish_update", "resume"])
def test_an_error_names_version_and_stage_after_the_collective_has_ended(stage: str) -> None:
    engines, source = Engines(failing=stage), Source()
    with pytest.raises(PublishError) as raised:
        publish(source, 7, CONFIG, engines, engines.sender, verify=False)
    deadline = f"{CONFIG.deadline_s(24):.0f}"
    assert str(raised.value) == (
        f"weights version 7: stage {stage} failed (deadline {deadline} s, 0.0 MiB): RuntimeError: boom"
    )
    assert isinstance(raised.value.__cause__, RuntimeError)
    sender = engines.sender
    assert sender.abandoned == 1 and not sender.verifies
    assert source.walked == 3, "other ranks would wait in the gather of a bucket that rank 0 never reaches"
    assert sender.called + sender.followed == 3 and sender.rested == 1, "nor may they wait for it in a transport"
    assert (sender.followed > 0) == (stage in ("pause", "begin_update", "load_bucket"))
    assert engines.stages()[-1] == "resume"
    if stage in ("begin_update", "load_bucket"):
        assert "finish_update" not in engines.stages(), "a part of a version must never be declared whole"


def test_replicas_that_differ_are_named() -> None:
    engines = Engines(checksums=({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}))
    with pytest.raises(PublishError, match=r"stage verify failed .*engine 1 differs from engine 0 in b, c"):
        publish(Source(), 1, CONFIG, engines, engines.sender, verify=True)
    assert "resume" not in engines.stages(), "one of them would sample under a version that it does not have"


def test_what_failed_at_the_senders_end_is_told_with_what_the_engines_said() -> None:
    engines = Engines(failing="load_bucket", sender=Sender(failure=OSError("no route to host")))
    with pytest.raises(PublishError, match=r"load_bucket failed.*boom; the sender: OSError: no route to host"):
        publish(Source(), 1, CONFIG, engines, engines.sender, verify=False)


def test_other_ranks_walk_the_collective_and_send_nothing() -> None:
    source = Source()
    sender = Sender()
    assert publish(source, 1, CONFIG, None, sender, verify=True) is None
    assert (source.walked, source.max_bytes) == (3, BUCKET_BYTES)
    assert (sender.called, sender.followed, sender.rested) == (0, 3, 1)


def test_engines_that_still_lack_their_kv_cache_are_not_resumed() -> None:
    engines = Engines()
    assert publish(Source(), 1, CONFIG, engines, engines.sender, verify=True, resume=False) is not None
    assert engines.stages()[0] == "pause" and "resume" not in engines.stages()


def test_a_bucket_that_cannot_be_sent_ends_the_push_but_not_the_collective() -> None:
    engines, source = Engines(sender=Sender(unsendable="w1")), Source()
    with pytest.raises(PublishError, match=r"stage send failed .*: OSError: no space left$"):
        publish(source, 1, CONFIG, engines, engines.sender, verify=True)
    assert source.walked == 3
    assert engines.stages() == ["pause", "begin_update", "load_bucket", "resume"]


def test_an_error_at_the_last_bucket_is_named_too() -> None:
    class LastFails(Engines):
        def wait(self, started: str, timeout_s: float) -> list[Any]:
            if started == "load_bucket" and self.stages().count("load_bucket") == 3:
                raise TimeoutError("no answer")
            return super().wait(started, timeout_s)

    engines = LastFails()
    with pytest.raises(PublishError, match=r"stage load_bucket failed .*TimeoutError: no answer"):
        publish(Source(), 1, CONFIG, engines, engines.sender, verify=True)
    assert engines.stages()[-2:] == ["load_bucket", "resume"]


def test_a_push_that_is_not_verified_compares_no_replicas() -> None:
    engines = Engines(checksums=({"a": "1"}, {"a": "2"}))
    report = publish(Source(), 1, CONFIG, engines, engines.sender, verify=False)
    assert report is not None and (report.verified, report.content) == (0, "")
    assert "content" not in engines.stages() and "checksums" not in engines.stages()


def test_a_weight_that_only_the_first_replica_has_is_a_difference() -> None:
    engines = Engines(checksums=({"a": "1", "b": "2"}, {"a": "1"}))
    with pytest.raises(PublishError, match="engine 1 differs from engine 0 in b"):
        publish(Source(), 1, CONFIG, engines, engines.sender, verify=True)


def test_an_engine_that_holds_something_else_than_was_sent_is_named_and_stays_paused() -> None:
    engines = Engines()
    engines.contents = (CONTENT, "another")
    with pytest.raises(PublishError, match=r"stage verify failed .*engine 1 holds weights of another content"):
        publish(Source(), 1, CONFIG, engines, engines.sender, verify=True)
    assert "resume" not in engines.stages()


def test_an_adapter_is_used_once_all_engines_have_it_and_nothing_pauses() -> None:
    engines, source = Engines(), Source()
    report = publish_adapter(source, 7, CONFIG, engines, engines.sender, verify=False)
    assert engines.stages() == ["begin_adapter", *["load_adapter"] * 3, "finish_adapter", "use_adapter"]
    assert engines.calls[0] == ("begin_adapter", 7, source.manifest())
    assert engines.calls[-2:] == [("finish_adapter", 7), ("use_adapter", 7)]
    assert engines.sender.verifies, "digests of an adapter cost nothing"
    assert report is not None and (report.bytes, report.buckets, report.verified, report.paused_s) == (24, 3, 2, 0.0)
    assert report.superseded == 3, "by both engines"
    assert publish_adapter(source, 7, CONFIG, None, bucket.Follower(), verify=False) is None and source.walked == 6


@pytest.mark.parametrize("stage", ["begin_adapter", "load_adapter", "finish_adapter"])
def test_an_adapter_that_one_engine_lacks_is_used_by_none(stage: str) -> None:
    engines, source = Engines(failing=stage), Source()
    with pytest.raises(PublishError, match=f"weights version 7: stage {stage} failed .*boom"):
        publish_adapter(source, 7, CONFIG, engines, engines.sender, verify=True)
    assert "use_adapter" not in engines.stages() and source.walked == 3
