"""The ledger's transitions, its balance, and its life inside a checkpoint. The state machine is in test_buffer.py."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rollout.buffer.ledger import Issue, Ledger, Record, counts_of
from rollout.types import Address, Task


def nowhere(event: str, **fields: Any) -> None:
    """Keep no event."""


def task_at(position: int) -> Task:
    return Task(id=f"t{position}", environment="e", messages=({"role": "user", "content": "?"},))


def finish(ledger: Ledger, issue_id: str) -> Issue:
    return ledger.finish(issue_id, Address(segment=1, record=2), (0, 1))


def through_json(ledger: Ledger, record: Record = nowhere) -> Ledger:
    return Ledger.from_state_dict(json.loads(json.dumps(ledger.state_dict())), record, start=2)


def test_an_issue_from_beginning_to_end() -> None:
    ledger = Ledger(nowhere)
    issue = ledger.issue_next(3, task_at)
    assert (issue.id, issue.position, issue.version, issue.parent, issue.state) == ("g1-000000", 0, 3, None, "issued")
    finish(ledger, issue.id)
    ledger.take([issue.id], 0)
    ledger.mark_trained([issue.id], step=1)
    assert ledger.counts() == {"issued": 1, "open": 0, "trained": 1, "dropped": 0, "reissued": 0}


def test_a_reissue_is_a_new_issue_of_the_same_task_and_goes_first() -> None:
    ledger = Ledger(nowhere)
    first, second = ledger.issue_next(0, task_at), ledger.issue_next(0, task_at)
    ledger.reissue(second.id, "stale")
    ledger.reissue(first.id, "infra_error")
    third, fourth, fifth = (ledger.issue_next(1, task_at) for _ in range(3))
    assert (third.position, third.parent, third.failures) == (1, second.id, 0)
    assert (fourth.position, fourth.parent, fourth.failures) == (0, first.id, 1)
    assert (fifth.position, fifth.parent) == (2, None)
    assert len({i.id for i in (first, second, third, fourth, fifth)}) == 5
    counts = ledger.counts()
    assert (counts["reissued/stale"], counts["reissued/infra_error"], counts["open"]) == (1, 1, 3)


def test_dropped_tasks_do_not_come_back() -> None:
    ledger = Ledger(nowhere)
    for _ in range(2):
        ledger.drop(ledger.issue_next(0, task_at).id, "infra_error")
    assert ledger.issue_next(0, task_at).position == 2
    assert ledger.counts()["dropped/infra_error"] == ledger.counts()["dropped"] == 2
    assert through_json(ledger).counts()["dropped/infra_error"] == 2


def test_transitions_that_do_not_exist_are_errors() -> None:
    ledger = Ledger(nowhere)
    issue = ledger.issue_next(0, task_at)
    assert (issue.number, issue.parent) == (0, None)
    with pytest.raises(ValueError, match="issue g1-000000 is issued, expected taken"):
        ledger.mark_trained([issue.id], step=1)
    with pytest.raises(ValueError, match="issue g1-000000 is issued, expected finished"):
        ledger.take([issue.id], 0)
    finish(ledger, issue.id)
    with pytest.raises(ValueError, match="issue g1-000000 is finished, expected issued"):
        finish(ledger, issue.id)
    ledger.take([issue.id], 0)
    ledger.mark_trained([issue.id], step=1)
    with pytest.raises(ValueError, match=r"issue g1-000000 is not open \(unknown, or ended already\)"):
        ledger.mark_trained([issue.id], step=2)
    with pytest.raises(ValueError, match="not open"):
        finish(ledger, "g999999")
    with pytest.raises(ValueError, match="expected issued or finished or taken"):
        ledger.drop("g999999", "stale")


def test_a_step_is_entered_once_and_entirely() -> None:
    ledger = Ledger(nowhere)
    taken, running = ledger.issue_next(0, task_at), ledger.issue_next(0, task_at)
    finish(ledger, taken.id)
    ledger.take([taken.id], 0)
    with pytest.raises(ValueError, match=running.id):
        ledger.mark_trained([taken.id, running.id], step=1)
    assert ledger.counts()["trained"] == 0
    ledger.mark_trained([taken.id], step=1)
    with pytest.raises(ValueError, match="step 1 is in the ledger already"):
        ledger.mark_trained([], step=1)


def test_a_ledger_comes_back_from_a_checkpoint_as_it_was() -> None:
    ledger = Ledger(nowhere)
    issues = [ledger.issue_next(0, task_at) for _ in range(5)]
    for issue in issues[:3]:
        finish(ledger, issue.id)
    ledger.take([issues[0].id, issues[1].id], 0)
    ledger.mark_trained([issues[0].id], step=1)
    ledger.reissue(issues[4].id, "infra_error")
    resumed = through_json(ledger)
    assert resumed.counts() == ledger.counts() == counts_of(ledger.state_dict())
    assert resumed.open("issued", "finished", "taken") == ledger.open("issued", "finished", "taken")
    assert resumed.open("taken")[0].address == Address(segment=1, record=2)
    again = [resumed.issue_next(1, task_at) for _ in range(2)]
    assert [(i.position, i.failures, i.task.id, i.id) for i in again] == [
        (4, 1, "t4", "g2-000005"),
        (5, 0, "t5", "g2-000006"),
    ]
    with pytest.raises(ValueError, match="step 1 is in the ledger already"):
        resumed.mark_trained([], step=1)


def test_events_replayed_onto_the_earlier_state_give_the_same_books_but_nothing_is_taken() -> None:
    """What was trained after a checkpoint is finished again: its step went with the weights."""
    events: list[dict[str, Any]] = []

    def record(event: str, **fields: Any) -> None:
        events.append({"event": event, **fields})

    ledger = Ledger(nowhere)
    first = ledger.issue_next(0, task_at)
    ledger.reissue(ledger.issue_next(0, task_at).id, "infra_error")
    state = through_json(ledger, record)
    ledger.record = record
    issues = [ledger.issue_next(0, task_at) for _ in range(5)]
    for issue in (first, *issues[:4]):
        finish(ledger, issue.id)
    ledger.take([first.id, issues[0].id], 0)
    ledger.mark_trained([first.id], step=1)
    ledger.drop(issues[1].id, "infra_error")
    ledger.reissue(issues[2].id, "stale")
    replayed = list(events)
    for event in json.loads(json.dumps(replayed)):
        state.replay(event)
    assert events[len(replayed) :] == [e for e in replayed if e["event"] not in ("taken", "trained")]
    assert [(i.id, i.state) for i in state.open("issued", "finished", "taken")] == [
        (first.id, "finished"),
        (issues[0].id, "finished"),
        (issues[3].id, "finished"),
        (issues[4].id, "issued"),
    ]
    assert state.counts() == {**ledger.counts(), "trained": 0, "open": 4}
    assert {**state.state_dict(), "open": [], "trained": 1, "last_step": 1} == {**ledger.state_dict(), "open": []}


def test_a_taken_group_may_wait_again() -> None:
    ledger = Ledger(nowhere)
    issue = ledger.issue_next(0, task_at)
    with pytest.raises(ValueError, match="is issued, expected taken"):
        ledger.wait_again(issue.id)
    finish(ledger, issue.id)
    ledger.take([issue.id], 0)
    assert ledger.wait_again(issue.id).state == "finished"
    ledger.take([issue.id], 1)
