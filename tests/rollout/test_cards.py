"""Cards: what they say of a group, by hand, and that they do not grow with its tokens."""

from __future__ import annotations

import pickle
from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rollout.cards import ERROR_CHARACTERS, SampleCard, Turns, card_of, samples_of, shared_prefix
from rollout.types import OBSERVED, Address, Group, Sample, Task, Trajectory, Turn
from tests.samples import cards_of, failed_trajectory, sample_of

TASK = Task(id="t", environment="e", source="store", messages=({"role": "user", "content": "x" * 1000},))


def sample(tokens: list[int], sampled: int = 1, version: int = 0) -> Sample:
    """A sample whose last `sampled` tokens were sampled by `version`."""
    shown = len(tokens) - sampled
    return sample_of(
        token_ids=tokens,
        loss_mask=[0] * shown + [1] * sampled,
        logprobs=[0.0] * shown + [-1.0] * sampled,
        versions=[OBSERVED] * shown + [version] * sampled,
    )


def trajectory(*samples: Sample) -> Trajectory:
    return Trajectory(
        task_id="t",
        group_id="g",
        samples=samples,
        messages=({"role": "assistant", "content": "y" * 1000},),
        stop_reason="answered",
        outcome="scored",
        reward=0.5,
        success=False,
        reward_parts={"state": 0.5},
        turns=(Turn(sample=0, start=1, stop=2, reward=0.25, state_key="a"),),
        metrics={"turns": 1.0},
    )


def group(*members: Trajectory) -> Group:
    return Group(id="g", task=TASK, trajectories=members)


def test_a_card_by_hand() -> None:
    mixed = sample_of(
        token_ids=[1, 2, 3, 4], loss_mask=[0, 1, 1, 1], logprobs=[0, 0, 0, 0], versions=[OBSERVED, 4, 4, 6]
    )
    failed = failed_trajectory("t", "g", "e" * 2 * ERROR_CHARACTERS)
    card = card_of(group(trajectory(mixed, sample([1, 2, 9])), failed), Address(segment=3, record=4))
    assert (card.id, card.task_id, card.source) == ("g", "t", "store")
    assert card.address == Address(segment=3, record=4) and card.reference is None
    member, lost = card.trajectories
    assert member.samples[0] == SampleCard(length=4, trained_tokens=3, versions={4: 2, 6: 1})
    assert member.samples[1] == SampleCard(length=3, trained_tokens=1, versions={0: 1}, parent=0, shared=2, rank=1)
    assert (member.reward, member.reward_parts, tuple(member.turns)) == (0.5, {"state": 0.5}, trajectory().turns)
    assert member.trained_tokens == 4 and card.usable == (member,)
    assert lost.error == "e" * ERROR_CHARACTERS and (lost.reward, lost.outcome) == (None, "infra_error")
    assert card.versions() == {0, 4, 6} and card.version_span() == (0, 6)
    assert cards_of([group(failed)])[0].version_span() is None


def test_a_card_survives_its_journey() -> None:
    mixed = sample_of(token_ids=[1, 2], loss_mask=[0, 1], logprobs=[0, 0], versions=[OBSERVED, 4])
    (card,) = cards_of([group(trajectory(mixed, sample([1, 2, 9])), failed_trajectory("t", "g", "gone"))])
    again = pickle.loads(pickle.dumps(card))
    assert again == card and again != replace(card, id="other")
    with pytest.raises(FrozenInstanceError):
        again.id = "other"


def test_turns_are_a_sequence() -> None:
    made = [
        Turn(sample=0, start=i, stop=2 * i, temperature=0.5 * i, reward=i or None, state_key=str(i)) for i in range(4)
    ]
    turns = Turns(made)
    assert list(turns) == made and turns[-1] == made[-1] and turns[1:3] == made[1:3] and len(turns) == 4
    assert list(reversed(turns)) == made[::-1] and turns == Turns(made) != Turns(made[1:])
    assert turns.lengths == [0, 1, 2, 3] and list(turns.temperatures) == [0.0, 0.5, 1.0, 1.5]
    assert len(Turns([])) == 0 and repr(Turns(made[:1])) == f"Turns([{made[0]}])"


def test_versions_of_failed_members_do_not_count() -> None:
    failed = replace(failed_trajectory("t", "g"), samples=(sample([1, 2], version=1),))
    assert cards_of([group(trajectory(sample([1, 2], version=5)), failed)])[0].version_span() == (5, 5)


@given(st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6), max_size=8))
def test_parents_form_the_prefix_tree_of_the_group(sequences: list[list[int]]) -> None:
    """In the order of rank, each sample shares as much with its parent as with any sample before it."""
    made = [sample(tokens) for tokens in sequences]
    members = [trajectory(*made[i : i + 2]) for i in range(0, len(made), 2)]
    (card,) = cards_of([group(*members)])
    cards = [sample for member in card.trajectories for sample in member.samples]
    assert sorted(one.rank for one in cards) == list(range(len(made)))
    assert [s.token_ids.tolist() for s in samples_of(group(*members))] == sequences
    for number, one in enumerate(cards):
        earlier = [i for i, other in enumerate(cards) if other.rank < one.rank]
        best = max((shared_prefix(made[number], made[i]) for i in earlier), default=0)
        assert one.shared == best
        assert (one.parent is None) == (best == 0)
        if one.parent is not None:
            assert cards[one.parent].rank == one.rank - 1


def test_token_ids_sort_like_lists_of_numbers() -> None:
    """The order of bytes alone would part 1, 256 and 65536 from their neighbours."""
    sequences = [[70000, 1], [256, 1], [1, 256], [70000, 2], [1, 70000], [256, 2]]
    (card,) = cards_of([group(*(trajectory(sample(tokens)) for tokens in sequences))])
    ranks = [member.samples[0].rank for member in card.trajectories]
    assert ranks == [sorted(sequences).index(tokens) for tokens in sequences]


@pytest.mark.parametrize("members", [1, 16])
def test_a_card_is_as_large_for_long_samples_as_for_short_ones(members: int) -> None:
    def size(tokens: int) -> int:
        random = np.random.default_rng(0)
        made = [sample(random.integers(0, 150_000, tokens).tolist(), sampled=tokens // 2) for _ in range(members)]
        return len(pickle.dumps(cards_of([group(*map(trajectory, made))])[0]))

    assert size(16_384) <= 1.02 * size(1024)
