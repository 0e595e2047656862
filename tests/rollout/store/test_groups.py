"""Groups in files: what is written is read back, and equal groups are equal bytes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from rollout.store.groups import decode_groups, encode_groups
from rollout.types import OBSERVED, Group, Span, Task, Trajectory, Turn
from tests.samples import failed_trajectory, sample_of

GROUP = Group(
    id="g000007",
    task=Task(id="t7", environment="store", messages=({"role": "user", "content": "lone \ud800"},)),
    trajectories=(
        Trajectory(
            task_id="t7",
            group_id="g000007",
            samples=(sample_of(token_ids=(1, 2), loss_mask=(0, 1), logprobs=(0.0, -0.5), versions=(OBSERVED, 3)),),
            messages=({"role": "assistant", "content": "a\u2028b"},),
            stop_reason="answered",
            outcome="scored",
            reward=0.5,
            success=False,
            reward_parts={"state": 0.5},
            turns=(Turn(sample=0, start=1, stop=2, reward=0.25),),
            spans=(Span(name="generate", start=1.0, end=2.0),),
        ),
    ),
)


def test_groups_come_back_as_they_were_written() -> None:
    assert decode_groups(encode_groups([GROUP, GROUP])) == [GROUP, GROUP]
    assert decode_groups(encode_groups([])) == []


def test_equal_groups_are_equal_bytes() -> None:
    again = decode_groups(encode_groups([GROUP]))
    assert encode_groups(again) == encode_groups([GROUP]) != encode_groups([replace(GROUP, id="g000008")])


def test_members_may_have_no_sample_or_several_of_any_length() -> None:
    (member,) = GROUP.trajectories
    long = sample_of(token_ids=range(5), loss_mask=[0] * 5, logprobs=[0.0] * 5, versions=[OBSERVED] * 5)
    empty = sample_of(token_ids=(), loss_mask=(), logprobs=(), versions=())
    failed = replace(failed_trajectory("t7", "g000007", "lost \udfff"), metrics={"turns": 1.0})
    several = replace(member, samples=(*member.samples, long, empty, *member.samples))
    for members in ((failed,), (failed, several), (several, failed, member, several)):
        group = replace(GROUP, trajectories=members)
        assert decode_groups(encode_groups([group])) == [group]


def test_a_group_without_trajectories_is_refused() -> None:
    with pytest.raises(ValueError, match="group g000007 has no trajectories"):
        encode_groups([replace(GROUP, trajectories=())])


@pytest.mark.slow
def test_people_read_it_without_sluice(tmp_path: Path) -> None:
    import datasets

    path = tmp_path / "train-000001.arrow"
    path.write_bytes(encode_groups([GROUP, GROUP]))
    rows = datasets.Dataset.from_file(str(path))
    assert rows["reward"] == [0.5, 0.5] and rows[0]["samples"][0]["versions"] == [OBSERVED, 3]
    assert json.loads(rows[0]["messages"]) == [{"role": "assistant", "content": "a\u2028b"}]
