"""The life of a weight version: order of the stages, and what an error in any of them leaves behind."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from rl.weights.publish import PublishError, publish
from rollout.transfer.config import WeightSyncConfig
from rollout.types import WeightSpec

CONFIG = WeightSyncConfig(bucket_mb=1.0)


class Source:
    """A source of three buckets with one tensor each. It counts the buckets that were gathered."""

    def __init__(self) -> None:
        self.walked = 0

    def manifest(self) -> list[WeightSpec]:
        return [WeightSpec(name=f"w{i}", dtype="float32", shape=(2,)) for i in range(3)]

    def buckets(self, max_bytes: int) -> Iterator[list[tuple[str, torch.Tensor]]]:
        for i in range(3):
            self.walked += 1
            yield [(f"w{i}", torch.full((2,), float(i)))]


class Sender:
    """A transport with one slot: a bucket that is sent while the last one is still loading would overwrite it."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.loading = self.verifies = False
        self.abandoned = 0
        self._failure = failure

    def send(self, bucket: Any, verify: bool) -> Any:
        assert not self.loading, "a bucket was sent before every engine had loaded the one before"
        self.loading, self.verifies = True, verify
        return [name for name, _ in bucket]

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
        self._failing, self._checksums = failing, checksums
        self.sender = sender or Sender()

    def start(self, method: str, *args: Any) -> str:
        self.calls.append((method, *args))
        return method

    def wait(self, started: str, timeout_s: float) -> list[Any]:
        if started == self._failing:
            raise RuntimeError("boom")
        if started == "load_bucket":
            self.sender.loading = False
        return list(self._checksums) if started == "checksums" else [None, None]

    def stages(self) -> list[str]:
        return [call[0] for call in self.calls]


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
        "checksums",
        "resume",
    ]
    assert [call[1] for call in engines.calls if call[0] == "load_bucket"] == [["w0"], ["w1"], ["w2"]]
    assert ("finish_update", 7) in engines.calls
    assert report is not None and (report.version, report.bytes, report.buckets) == (7, 24, 3)
    assert engines.sender.verifies and engines.sender.abandoned == 0


@pytest.mark.parametrize("stage", ["pause", "begin_update", "load_bucket", "finish_update", "resume"])
def test_an_error_names_version_and_stage_after_the_collective_has_ended(stage: str) -> None:
    engines, source = Engines(failing=stage), Source()
    with pytest.raises(PublishError, match=rf"version 7.*stage {stage}.*boom"):
        publish(source, 7, CONFIG, engines, engines.sender, verify=False)
    assert engines.sender.abandoned == 1 and not engines.sender.verifies
    assert source.walked == 3, "other ranks would wait in the gather of a bucket that rank 0 never reaches"
    assert engines.stages()[-1] == "resume"
    if stage in ("begin_update", "load_bucket"):
        assert "finish_update" not in engines.stages(), "a part of a version must never be declared whole"


def test_replicas_that_differ_are_named() -> None:
    engines = Engines(checksums=({"a": "1", "b": "2"}, {"a": "1", "b": "3", "c": "4"}))
    with pytest.raises(PublishError, match="engine 1 differs from engine 0 in b, c"):
        publish(Source(), 1, CONFIG, engines, engines.sender, verify=True)
    assert "resume" not in engines.stages(), "one of them would sample under a version that it does not have"


def test_what_failed_at_the_senders_end_is_told_with_what_the_engines_said() -> None:
    engines = Engines(failing="load_bucket", sender=Sender(failure=OSError("no route to host")))
    with pytest.raises(PublishError, match=r"load_bucket failed.*boom; the sender: OSError: no route to host"):
        publish(Source(), 1, CONFIG, engines, engines.sender, verify=False)


def test_other_ranks_walk_the_collective_and_send_nothing() -> None:
    source = Source()
    assert publish(source, 1, CONFIG, None, None, verify=True) is None
    assert source.walked == 3
