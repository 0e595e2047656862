"""The pushes of an adapter over the ranks: the base model once, and after a failure all ranks go on from one place."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rl.weights.adapter_push import AdapterPusher
from rl.weights.publish import PublishError, PublishReport
from rollout.transfer.bucket import Follower, Member
from tests.rl.weights.test_publish import CONFIG, CONTENT, Engines, Source

MEMBERS = tuple(Member(replica=number, process=str(number)) for number in range(2))


class Named(Source):
    """A source that writes into its rank's list when it is walked, which is a collective."""

    def __init__(self, name: str, collectives: list[str]) -> None:
        super().__init__()
        self._name, self._collectives = name, collectives

    def buckets(self, max_bytes):
        self._collectives.append(self._name)
        return super().buckets(max_bytes)


class Ranks:
    """Two ranks whose pushes run one after the other, rank 0 first; each has its list of collectives."""

    def __init__(self) -> None:
        self.collectives: list[list[str]] = [[], []]
        self._decided: list[bool] = []
        self._ranks = [
            AdapterPusher(Named("base", mine), Named("adapter", mine), CONFIG, agreed)
            for mine, agreed in zip(self.collectives, (self._say, self._hear), strict=True)
        ]

    def _say(self, value: bool) -> bool:
        self.collectives[0].append("agree")
        self._decided.append(value)
        return value

    def _hear(self, value: bool) -> bool:
        self.collectives[1].append("agree")
        return self._decided.pop()

    def push(
        self, engines: Engines, base_hash: str = CONTENT, members: tuple[Member, ...] = MEMBERS
    ) -> PublishReport | None:
        try:
            return self._ranks[0].push(3, engines, members, engines.sender, False, base_hash)
        finally:
            assert self._ranks[1].push(3, None, members, Follower(), False, base_hash) is None


def test_the_base_goes_once_and_is_verified() -> None:
    ranks, engines = Ranks(), Engines()
    for _ in range(2):
        report = ranks.push(engines)
        assert report is not None and report.verified == 2
    assert ranks.collectives == [["base", "agree", "adapter", "adapter"]] * 2
    assert engines.stages().count("checksums") == 1 and engines.stages().count("use_adapter") == 2


def test_an_engine_that_was_started_again_gets_the_base_again() -> None:
    ranks, engines = Ranks(), Engines()
    again = replace(MEMBERS[1], process="another")
    for members in (MEMBERS, (again,), (MEMBERS[0], again)):
        ranks.push(engines, members=members)
    assert ranks.collectives == [["base", "agree", "adapter", "base", "agree", "adapter", "adapter"]] * 2


@pytest.mark.parametrize("stage", ["begin_update", "load_bucket", "checksums"])
def test_a_base_that_did_not_arrive_is_sent_again_by_all_ranks(stage: str) -> None:
    ranks = Ranks()
    with pytest.raises(PublishError, match=stage):
        ranks.push(Engines(failing=stage))
    assert ranks.push(Engines()) is not None
    assert ranks.collectives == [["base", "agree", "base", "agree", "adapter"]] * 2


def test_another_base_than_the_trainers_is_refused() -> None:
    ranks = Ranks()
    with pytest.raises(PublishError, match=f"a base model of the content {CONTENT}, not another"):
        ranks.push(Engines(), base_hash="another")
    assert ranks.collectives == [["base", "agree"]] * 2


def test_an_adapter_that_did_not_arrive_is_sent_again_without_the_base() -> None:
    ranks = Ranks()
    with pytest.raises(PublishError, match="finish_adapter"):
        ranks.push(Engines(failing="finish_adapter"))
    ranks.push(Engines())
    assert ranks.collectives == [["base", "agree", "adapter", "adapter"]] * 2
