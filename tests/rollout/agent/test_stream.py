"""`TokenStream` alone writes masks, logprobs and versions: their lengths always agree, and no value is changed."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rollout.agent.stream import TokenStream
from rollout.types import OBSERVED, Completion

tokens = st.lists(st.integers(0, 1000), max_size=5)
sampled = st.lists(st.tuples(st.integers(0, 1000), st.floats(-20, 0), st.integers(0, 9)), max_size=5)


def completion(rows: list[tuple[int, float, int]]) -> Completion:
    ids, logprobs, versions = zip(*rows, strict=True) if rows else ((), (), ())
    return Completion(token_ids=ids, logprobs=logprobs, versions=versions, finish_reason="stop")


def test_by_hand() -> None:
    stream = TokenStream()
    stream.observe([7, 8])
    stream.sampled(completion([(9, -0.5, 3), (10, -0.25, 4)]))
    stream.observe([11])
    sample = stream.finish()
    assert sample.token_ids == (7, 8, 9, 10, 11)
    assert sample.loss_mask == (0, 0, 1, 1, 0)
    assert sample.logprobs == (0.0, 0.0, -0.5, -0.25, 0.0)
    assert sample.versions == (OBSERVED, OBSERVED, 3, 4, OBSERVED)
    assert (sample.trained_tokens, sample.oldest_version()) == (2, 3)


@given(st.lists(st.one_of(tokens, sampled.map(completion))))
def test_what_goes_in_comes_out(parts: list[list[int] | Completion]) -> None:
    stream = TokenStream()
    rows: list[tuple[int, int, float, int]] = []
    for part in parts:
        before = stream.token_ids
        if isinstance(part, Completion):
            stream.sampled(part)
            rows += [(t, 1, p, v) for t, p, v in zip(part.token_ids, part.logprobs, part.versions, strict=True)]
        else:
            stream.observe(part)
            rows += [(t, 0, 0.0, OBSERVED) for t in part]
        assert stream.token_ids[: len(before)] == before
    sample = stream.finish()
    assert list(zip(sample.token_ids, sample.loss_mask, sample.logprobs, sample.versions, strict=True)) == rows
    assert len(stream) == len(rows)


def test_the_stream_cannot_be_written_through_its_view() -> None:
    stream = TokenStream()
    stream.observe([1])
    stream.token_ids.append(2)
    assert stream.finish().token_ids == (1,)
