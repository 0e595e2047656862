"""Groups in files: what is written is read back, and equal groups are equal bytes."""

from __future__ import annotations

from rollout.store.groups import decode_groups, encode_groups
from rollout.types import OBSERVED, Group, Span, Task, Trajectory, Turn
from tests.samples import sample_of

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


def test_equal_groups_are_equal_bytes_whenever_they_are_written() -> None:
    time_of_writing = encode_groups([GROUP])[4:8]  # gzip's header, RFC 1952
    assert time_of_writing == bytes(4)
