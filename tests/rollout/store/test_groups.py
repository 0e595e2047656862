"""Groups as record batches: what is written is read back, and equal groups are equal bytes."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rollout.store.groups import decode, encode, header, schema
from rollout.store.streams import END
from rollout.types import OBSERVED, Group, Span, Split, Task, Trajectory, Turn
from tests.samples import failed_trajectory, sample_of

GROUP = Group(
    id="g1-000007",
    task=Task(id="t7", environment="store", messages=({"role": "user", "content": "lone \ud800"},)),
    trajectories=(
        Trajectory(
            task_id="t7",
            group_id="g1-000007",
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


def decoded(content: bytes) -> list[tuple[Group, Split]]:
    with pa.ipc.open_stream(header() + content + END) as stream:
        return [decode(batch) for batch in stream]


@settings(deadline=None, max_examples=30)
@given(reward=st.floats(allow_nan=False, allow_infinity=False), text=st.text(st.characters()))
@example(reward=0.0, text="\ud800")
def test_groups_come_back_as_they_were_written(reward: float, text: str) -> None:
    (member,) = GROUP.trajectories
    said = replace(member, reward=reward, messages=({"role": "assistant", "content": text, "tool_calls": []},))
    group = replace(GROUP, trajectories=(said, failed_trajectory("t7", "g1-000007", text)))
    content = encode(GROUP, "train") + encode(group, "eval")
    assert decoded(content) == [(GROUP, "train"), (group, "eval")]


def test_equal_groups_are_equal_bytes_wherever_they_stand() -> None:
    ((again, _),) = decoded(encode(GROUP, "train"))
    assert encode(again, "train") == encode(GROUP, "train") != encode(replace(GROUP, id="g1-000008"), "train")


def test_members_may_have_no_sample_or_several_of_any_length() -> None:
    (member,) = GROUP.trajectories
    long = sample_of(token_ids=range(5), loss_mask=[0] * 5, logprobs=[0.0] * 5, versions=[OBSERVED] * 5)
    empty = sample_of(token_ids=(), loss_mask=(), logprobs=(), versions=())
    failed = replace(failed_trajectory("t7", "g1-000007", "lost \udfff"), metrics={"turns": 1.0})
    several = replace(member, samples=(*member.samples, long, empty, *member.samples))
    for members in ((failed,), (failed, several), (several, failed, member, several)):
        group = replace(GROUP, trajectories=members)
        assert decoded(encode(group, "train")) == [(group, "train")]


def test_a_group_without_trajectories_is_refused() -> None:
    with pytest.raises(ValueError, match="group g1-000007 has no trajectories"):
        encode(replace(GROUP, trajectories=()), "train")


def test_no_column_is_dictionary_encoded() -> None:
    """Else a record would need the records before it."""
    assert not any(pa.types.is_dictionary(field.type) for field in schema())
