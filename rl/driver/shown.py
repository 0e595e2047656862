"""Which trajectories of a step people are shown by the trackers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rl.batch.plan import PlannedRow
from rl.driver.session import Session
from rl.driver.steps import due
from rl.observe.tracking.sampled import Chosen
from rollout.cards import Card


def show(run: Session, cards: Sequence[Card], rows: Sequence[PlannedRow]) -> None:
    """Hand some trajectories of the step that was just trained to the trackers, if it is one of those shown."""
    shown = run.recipe.shown
    if due(run.progress.step - 1, shown.every):
        run.tracker.trajectories(run.progress.step, choose(cards, rows, shown.count))


def choose(cards: Sequence[Card], rows: Sequence[PlannedRow], count: int) -> list[Chosen]:
    """At most `count` trajectories of a step: of groups at even distances the one with the highest reward and the one
    with the lowest. `rows` are what the step trains of `cards`."""
    advantages = _advantages(cards, rows)
    wanted = max(1, count // 2)
    groups = sorted({round(i * (len(cards) - 1) / max(wanted - 1, 1)) for i in range(min(wanted, len(cards)))})
    found = []
    for number in groups:
        card = cards[number]
        rewarded = [(t.reward, member) for member, t in enumerate(card.trajectories) if t.reward is not None]
        for _, member in dict.fromkeys([max(rewarded), min(rewarded)] if rewarded else []):
            found.append(Chosen(card.address, member, advantages.get((number, member))))
    return found[:count]


def _advantages(cards: Sequence[Card], rows: Sequence[PlannedRow]) -> dict[tuple[int, int], float]:
    """The mean advantage of the trained tokens of each trajectory, by the numbers of its group and of itself."""
    sums: dict[tuple[int, int], float] = defaultdict(float)
    counts: dict[tuple[int, int], int] = defaultdict(int)
    for row in rows:
        place = row.group, _member(cards[row.group], row.sample)
        sums[place] += sum(a * n for a, n in zip(row.advantages, row.counts, strict=True))
        counts[place] += sum(row.counts)
    return {place: sums[place] / counts[place] for place in sums}


def _member(card: Card, sample: int) -> int:
    """The number of the trajectory that has a sample of the group."""
    for member, trajectory in enumerate(card.trajectories):
        if sample < len(trajectory.samples):
            return member
        sample -= len(trajectory.samples)
    raise ValueError(f"group {card.id} has no sample with that number")
