"""Cards: what buffer and driver know of a group. They never hold a token.

A card's size depends on the number of trajectories, samples and turns, not on their lengths. `card_of` makes it in the
worker that made the group. The arrays stay in the trajectory store, at the card's address, and for a while in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import zip_longest
from operator import attrgetter, sub
from typing import Any, overload

import numpy as np

from rollout.types import Address, Group, Outcome, Sample, StopReason, Trajectory, Turn

ERROR_CHARACTERS = 500
"""The most of an infrastructure failure's text that a card keeps. The store has all of it."""


class Light:
    """A base of frozen, slotted dataclasses that are pickled by the thousand: as their class and a tuple of values, in
    a third of the time that dataclasses take."""

    __slots__ = ()

    def __reduce__(self) -> tuple[Any, ...]:
        kind: Any = type(self)
        return _make, (kind, _values(kind)(self))


@cache
def _values(kind: Any) -> attrgetter[tuple[Any, ...]]:
    return attrgetter(*(field.name for field in fields(kind)))


@cache
def _setters(kind: Any) -> tuple[Any, ...]:
    return tuple(getattr(kind, field.name).__set__ for field in fields(kind))


def _make(kind: Any, values: Sequence[Any]) -> Any:
    made = object.__new__(kind)
    for setter, value in zip(_setters(kind), values, strict=True):
        setter(made, value)
    return made


class Turns(Sequence[Turn]):
    """The turns of a trajectory, in columns: a `Turn` is made when it is asked for."""

    __slots__ = ("_columns",)

    def __init__(self, turns: Sequence[Turn]) -> None:
        self._columns = tuple(tuple(getattr(turn, name) for turn in turns) for name in _TURN)

    @classmethod
    def of(cls, columns: tuple[tuple[Any, ...], ...]) -> Turns:
        """The turns whose `columns` these are."""
        turns = object.__new__(cls)
        turns._columns = columns
        return turns

    @property
    def columns(self) -> tuple[tuple[Any, ...], ...]:
        """The values of each field of `Turn`."""
        return self._columns

    def __len__(self) -> int:
        return len(self._columns[0])

    @overload
    def __getitem__(self, index: int) -> Turn: ...
    @overload
    def __getitem__(self, index: slice) -> list[Turn]: ...
    def __getitem__(self, index: int | slice) -> Turn | list[Turn]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return Turn(**{name: column[index] for name, column in zip(_TURN, self._columns, strict=True)})

    def __eq__(self, other: object) -> bool:
        return self._columns == other._columns if isinstance(other, Turns) else NotImplemented

    def __repr__(self) -> str:
        return f"Turns({list(self)})"

    @property
    def temperatures(self) -> Sequence[float]:
        return self._columns[_TEMPERATURE]

    @property
    def lengths(self) -> list[int]:
        """The number of tokens that each turn sampled."""
        return [*map(sub, self._columns[_STOP], self._columns[_START])]


_TURN = tuple(field.name for field in fields(Turn))
_START, _STOP, _TEMPERATURE = (_TURN.index(name) for name in ("start", "stop", "temperature"))


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleCard:
    """A sample without its tokens.

    `parent` and `shared` describe the prefix tree of the group's samples: the first `shared` tokens of this sample are
    those of sample number `parent`, which has a smaller `rank`. Samples are numbered over the whole group, in order. In
    the order of `rank` each sample's parent is the one before it, so no other sample before it shares more.
    """

    length: int
    trained_tokens: int
    versions: Mapping[int, int]
    """The number of sampled tokens of each policy version."""
    parent: int | None = None
    shared: int = 0
    rank: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryCard:
    """A trajectory without its tokens and messages. For the fields see `rollout.types.Trajectory`."""

    stop_reason: StopReason
    outcome: Outcome
    reward: float | None
    success: bool | None
    reward_parts: Mapping[str, float]
    metrics: Mapping[str, float]
    turns: Turns
    samples: tuple[SampleCard, ...]
    error: str | None
    vote: str | None = None
    """Of an evaluation: a key of its answer, equal for equal answers; None where it gave none."""

    @property
    def trained_tokens(self) -> int:
        return sum(sample.trained_tokens for sample in self.samples)


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A group without its tokens and messages, and where those are.

    `address` holds as long as the store keeps the group. `reference` is a faster way to its samples (`samples_of`): an
    object reference of Ray's, which holds while the worker that made them lives; None where there is none.
    """

    id: str
    task_id: str
    source: str
    trajectories: tuple[TrajectoryCard, ...]
    address: Address
    reference: Any = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Cards are pickled by the thousand: as plain values, in a fraction of the time that objects take."""
        *head, trajectories, address, reference = _values(Card)(self)
        members = [_member_values(one) for one in trajectories]
        return _card, (head, members, (address.segment, address.record), reference)

    @property
    def usable(self) -> tuple[TrajectoryCard, ...]:
        """The members that are trained and form the baseline: all but infrastructure failures."""
        return tuple(t for t in self.trajectories if t.outcome != "infra_error")

    def versions(self) -> set[int]:
        """The policy versions of the sampled tokens of its usable members."""
        return {version for t in self.usable for sample in t.samples for version in sample.versions}

    def version_span(self) -> tuple[int, int] | None:
        """The smallest and the largest of `versions`; None when nothing was sampled."""
        versions = self.versions()
        return (min(versions), max(versions)) if versions else None


def _member_values(member: TrajectoryCard) -> list[Any]:
    values = list(_values(TrajectoryCard)(member))
    values[_TURNS] = member.turns.columns
    values[_SAMPLES] = [_values(SampleCard)(sample) for sample in member.samples]
    return values


_TURNS, _SAMPLES = ([field.name for field in fields(TrajectoryCard)].index(name) for name in ("turns", "samples"))


def _card(head: list[Any], members: list[list[Any]], address: tuple[int, int], reference: Any) -> Card:
    for values in members:
        values[_TURNS] = Turns.of(values[_TURNS])
        values[_SAMPLES] = tuple([_make(SampleCard, sample) for sample in values[_SAMPLES]])
    trajectories = tuple([_make(TrajectoryCard, values) for values in members])
    place = Address(segment=address[0], record=address[1])
    card: Card = _make(Card, (*head, trajectories, place, reference))
    return card


def samples_of(group: Group) -> list[Sample]:
    """The samples of a group by their numbers."""
    return [sample for member in group.trajectories for sample in member.samples]


def card_of(group: Group, address: Address, reference: Any = None, votes: Sequence[str | None] = ()) -> Card:
    """Return the card of a group that lies at `address`. `votes` has one for each trajectory, or is empty."""
    samples = iter(_sample_cards(samples_of(group)))
    return Card(
        id=group.id,
        task_id=group.task.id,
        source=group.task.source,
        trajectories=tuple(
            _trajectory_card(member, tuple(next(samples) for _ in member.samples), vote)
            for member, vote in zip_longest(group.trajectories, votes)
        ),
        address=address,
        reference=reference,
    )


def _trajectory_card(member: Trajectory, samples: tuple[SampleCard, ...], vote: str | None) -> TrajectoryCard:
    return TrajectoryCard(
        stop_reason=member.stop_reason,
        outcome=member.outcome,
        reward=member.reward,
        success=member.success,
        reward_parts=member.reward_parts,
        metrics=member.metrics,
        turns=Turns(member.turns),
        samples=samples,
        error=None if member.error is None else member.error[:ERROR_CHARACTERS],
        vote=vote,
    )


def _sample_cards(samples: Sequence[Sample]) -> list[SampleCard]:
    # As big-endian bytes, token sequences sort like lists of their tokens, and much faster.
    keys = [sample.token_ids.astype(">u4").tobytes() for sample in samples]
    order = sorted(range(len(samples)), key=keys.__getitem__)
    parents = dict(zip(order[1:], order, strict=False))
    ranks = {number: rank for rank, number in enumerate(order)}
    return [_sample_card(sample, parents.get(number), samples, ranks[number]) for number, sample in enumerate(samples)]


def _sample_card(sample: Sample, parent: int | None, samples: Sequence[Sample], rank: int) -> SampleCard:
    shared = 0 if parent is None else shared_prefix(sample, samples[parent])
    versions, counts = np.unique(sample.sampled_versions(), return_counts=True)
    return SampleCard(
        length=len(sample),
        trained_tokens=sample.trained_tokens,
        versions=dict(zip(versions.tolist(), counts.tolist(), strict=True)),
        parent=parent if shared else None,
        shared=shared,
        rank=rank,
    )


def shared_prefix(first: Sample, second: Sample) -> int:
    """The number of tokens with which both samples begin."""
    length = min(len(first), len(second))
    different = np.flatnonzero(first.token_ids[:length] != second.token_ids[:length])
    return int(different[0]) if different.size else length
