"""`TokenStream` alone writes masks, logprobs and versions: their lengths always agree, and no value is changed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.agent.stream import TokenStream
from rollout.types import OBSERVED, SAMPLE_DTYPES, Completion
from tests.samples import sample_of

tokens = st.lists(st.integers(0, 1000), max_size=5)
sampled = st.lists(st.tuples(st.integers(0, 1000), st.floats(-20, 0, width=32), st.integers(0, 9)), max_size=5)


def completion(rows: list[tuple[int, float, int]]) -> Completion:
    ids, logprobs, versions = zip(*rows, strict=True) if rows else ((), (), ())
    return Completion(token_ids=ids, logprobs=logprobs, versions=versions, finish_reason="stop")


def test_by_hand() -> None:
    stream = TokenStream()
    stream.observe([7, 8])
    stream.sampled(completion([(9, -0.5, 3), (10, -0.25, 4)]))
    stream.observe([11])
    sample = stream.finish()
    assert sample == sample_of(
        token_ids=(7, 8, 9, 10, 11),
        loss_mask=(0, 0, 1, 1, 0),
        logprobs=(0.0, 0.0, -0.5, -0.25, 0.0),
        versions=(OBSERVED, OBSERVED, 3, 4, OBSERVED),
    )
    assert (sample.trained_tokens, sample.oldest_version()) == (2, 3)


@given(st.lists(st.one_of(tokens, sampled.map(completion))))
def test_what_goes_in_comes_out(parts: list[list[int] | Completion]) -> None:
    stream = TokenStream()
    rows: list[tuple[int, int, float, int]] = []
    for part in parts:
        before = stream.token_ids
        copy = before.tolist()
        if isinstance(part, Completion):
            stream.sampled(part)
            rows += [(t, 1, p, v) for t, p, v in zip(part.token_ids, part.logprobs, part.versions, strict=True)]
        else:
            stream.observe(part)
            rows += [(t, 0, 0.0, OBSERVED) for t in part]
        assert before.tolist() == copy == stream.token_ids[: len(before)].tolist()
    sample = stream.finish()
    columns = (sample.token_ids, sample.loss_mask, sample.logprobs, sample.versions)
    assert list(zip(*(column.tolist() for column in columns), strict=True)) == rows
    assert len(stream) == len(sample) == len(rows)


def test_the_stream_cannot_be_written_through_its_view() -> None:
    stream = TokenStream()
    stream.observe([1])
    with pytest.raises(ValueError, match="read-only"):
        stream.token_ids[0] = 2
    sample = stream.finish()
    with pytest.raises(ValueError, match="read-only"):
        sample.token_ids[0] = 2
    assert sample.token_ids.tolist() == [1]


def test_a_stream_grows_in_few_large_steps_and_its_sample_keeps_no_room_to_spare() -> None:
    stream, arrays = TokenStream(), set()
    for turn in range(2000):
        stream.observe([turn] * 5)
        arrays.add(id(stream.token_ids.base))
    sample = stream.finish()
    assert len(sample) == 10_000 and len(arrays) <= 7
    assert sum(getattr(sample, name).nbytes for name in SAMPLE_DTYPES) == 13 * len(sample)
    assert all(getattr(sample, name).base is None for name in SAMPLE_DTYPES)
