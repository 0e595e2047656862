"""What a resumed run takes over: the ledger of its checkpoint, what the log knows beyond it, and the finished groups.

A checkpoint of version v was written in the middle of the work. After it, groups were finished and maybe trained, in
steps that went with their weights. A group may still be trained if none of its tokens is newer than v or older than
v - S: then weights sampled it that the resumed run has had, too. Every such group waits again, also one that the store
holds and the log does not know yet, because the run was killed in between. The others are issued again. What an earlier
resume from the same checkpoint has issued again stays so, since its task may have been trained since.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rollout.buffer.buffer import BufferState, fail
from rollout.buffer.ledger import Issue, Ledger, Reason
from rollout.cards import Card, card_of
from rollout.store import eventlog, segments
from rollout.store.eventlog import Event, EventLog
from rollout.types import Address

CLOCKS_S = 3600.0
"""How far the clocks of a run's machines may be apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Beginning:
    """What a buffer begins with, and what people should know about it, in words."""

    ledger: Ledger
    cards: Mapping[str, Card]
    told: Sequence[str]


def begin(log: EventLog, saved: BufferState | None, trajectories: Path, *, max_staleness: int, seed: int) -> Beginning:
    """Begin a run, or go on with it from a checkpoint, and write so into the log. Nobody may be writing segments.

    Args:
        saved: the buffer in the checkpoint that the run goes on from; None without one.
        trajectories: the folder of the run's segments.
        seed: the run's. The log keeps it, because the order of tasks and the sampling follow from it.
    """
    told = [*log.told, *segments.tidy(trajectories, eventlog.records(log.path))]
    if saved is None:
        if log.start == 1:
            log.append("started", start=1, seed=seed)
        else:
            log.append("resumed", start=log.start, seed=seed, position=0, then=[])
            told.append("there is no checkpoint to go on from: every task is issued again")
        log.sync()
        return Beginning(ledger=Ledger(log.append, log.start), cards={}, told=told)
    events: list[Event] = []

    def record(event: str, **fields: Any) -> None:
        events.append({"event": event, **fields})

    ledger = Ledger.from_state_dict(saved.ledger, record, log.start)
    for event in log.since:
        ledger.replay(event)
    told += _finish_unlogged(ledger, trajectories, saved.time - CLOCKS_S)
    cards, again, lost = _sort(ledger, saved.version, max_staleness, trajectories)
    log.append("resumed", start=log.start, seed=seed, position=saved.position, then=events)
    log.sync()
    ledger.record = log.append
    return Beginning(ledger=ledger, cards=cards, told=[*told, *lost, _summary(cards, again, log.since)])


def _finish_unlogged(ledger: Ledger, trajectories: Path, since: float) -> list[str]:
    """Finish the issues whose group is durable, but of which the log knows nothing, because the run ended just then.
    Sealed segments are looked at if they were written after `since`. Return a line for each one that cannot be read."""
    running = {issue.id for issue in ledger.open("issued")}
    told = []
    for number, path in segments.paths(trajectories).items():
        if path.suffix == segments.SEALED and path.stat().st_mtime < since:
            continue
        try:
            ids = segments.group_ids(path)
        except Exception as error:  # pyarrow raises many kinds for a damaged file
            told.append(f"{path.name} cannot be read: {error}")
            continue
        unlogged = [record for record, group_id in enumerate(ids) if group_id in running]
        for record, group in segments.read_groups(trajectories, number, unlogged).items():
            if isinstance(group, ValueError):
                told.append(f"{group}; it was not finished")
                continue
            address = Address(segment=number, record=record)
            card = card_of(group, address)
            if card.usable and group.id in running:
                running.remove(group.id)
                ledger.finish(group.id, address, card.version_span())
    return told


def _sort(
    ledger: Ledger, version: int, max_staleness: int, trajectories: Path
) -> tuple[dict[str, Card], Counter[str], list[str]]:
    """Re-issue the open issues whose group cannot be trained any more. Return the cards of the others, the number of
    re-issues by reason, and a line for each group that cannot be read."""
    cards: dict[str, Card] = {}
    again: Counter[str] = Counter()
    lost: list[str] = []
    waiting: dict[int, list[Issue]] = {}
    for issue in ledger.open("issued", "finished", "taken"):
        reason = _reason(issue, version, max_staleness)
        if reason is None:
            assert issue.address is not None, "a finished issue has an address"
            waiting.setdefault(issue.address.segment, []).append(issue)
        else:
            ledger.reissue(issue.id, reason)
            again[reason] += 1
    for segment, issues in waiting.items():
        groups = segments.read_groups(trajectories, segment, [i.address.record for i in issues if i.address])
        for issue in issues:
            assert issue.address is not None, "see above"
            group = groups[issue.address.record]
            if isinstance(group, ValueError):
                lost.append(f"{group}; its task is issued again")
                ledger.reissue(issue.id, "interrupted")
                again["interrupted"] += 1
                continue
            card = card_of(group, issue.address)
            if not card.usable:  # the run ended before it could say so
                fail(ledger, issue)
                continue
            if issue.state == "taken":
                ledger.wait_again(issue.id)
            cards[issue.id] = card
    return cards, again, lost


def _reason(issue: Issue, version: int, max_staleness: int) -> Reason | None:
    """Why an open issue ends when a run goes on from a checkpoint of `version`; None if its group waits again."""
    if issue.state == "issued":
        return "interrupted"
    oldest, newest = issue.versions or (issue.version, issue.version)
    if newest > version:
        return "orphaned"
    return "stale" if oldest < version - max_staleness else None


def _summary(cards: Mapping[str, Card], again: Mapping[str, int], since: Sequence[Event]) -> str:
    trained = {issue_id for event in since if event["event"] == "trained" for issue_id in event["ids"]}
    return (
        f"{len(cards)} finished groups wait again ({len(trained & cards.keys())} of them were trained after the "
        f"checkpoint); issued again: {again['interrupted']} under way, {again['orphaned']} sampled by weights that are "
        f"lost, {again['stale']} too old"
    )
