"""The ledger's transitions, its balance, and its life inside a checkpoint. The state machine is in test_buffer.py."""

from __future__ import annotations

import json

import pytest

from rollout.buffer.ledger import Ledger


def through_json(ledger: Ledger) -> Ledger:
    return Ledger.from_state_dict(json.loads(json.dumps(ledger.state_dict())))


def test_an_issue_from_beginning_to_end() -> None:
    ledger = Ledger()
    issue = ledger.issue_next(version=3)
    assert (issue.id, issue.position, issue.version, issue.parent, issue.state) == ("g000000", 0, 3, None, "issued")
    ledger.finish(issue.id)
    ledger.take([issue.id])
    ledger.mark_trained([issue.id], step=1)
    assert ledger.counts() == {"issued": 1, "open": 0, "trained": 1, "dropped": 0, "reissued": 0}


def test_a_reissue_is_a_new_issue_of_the_same_task_and_goes_first() -> None:
    ledger = Ledger()
    first, second = ledger.issue_next(0), ledger.issue_next(0)
    ledger.reissue(second.id, "stale")
    ledger.reissue(first.id, "infra_error")
    third, fourth, fifth = (ledger.issue_next(1) for _ in range(3))
    assert (third.position, third.parent, third.failures) == (1, second.id, 0)
    assert (fourth.position, fourth.parent, fourth.failures) == (0, first.id, 1)
    assert (fifth.position, fifth.parent) == (2, None)
    assert len({i.id for i in (first, second, third, fourth, fifth)}) == 5
    counts = ledger.counts()
    assert (counts["reissued/stale"], counts["reissued/infra_error"], counts["open"]) == (1, 1, 3)


def test_dropped_tasks_do_not_come_back() -> None:
    ledger = Ledger()
    for _ in range(2):
        ledger.drop(ledger.issue_next(0).id, "infra_error")
    assert ledger.issue_next(0).position == 2
    assert ledger.counts()["dropped/infra_error"] == ledger.counts()["dropped"] == 2
    assert through_json(ledger).counts()["dropped/infra_error"] == 2


def test_transitions_that_do_not_exist_are_errors() -> None:
    ledger = Ledger()
    issue = ledger.issue_next(0)
    assert (issue.number, issue.parent) == (0, None)
    with pytest.raises(ValueError, match="issue g000000 is issued, expected taken"):
        ledger.mark_trained([issue.id], step=1)
    with pytest.raises(ValueError, match="issue g000000 is issued, expected finished"):
        ledger.take([issue.id])
    ledger.finish(issue.id)
    with pytest.raises(ValueError, match="issue g000000 is finished, expected issued"):
        ledger.finish(issue.id)
    ledger.take([issue.id])
    ledger.mark_trained([issue.id], step=1)
    with pytest.raises(ValueError, match=r"issue g000000 is not open \(unknown, or ended already\)"):
        ledger.mark_trained([issue.id], step=2)
    with pytest.raises(ValueError, match="not open"):
        ledger.finish("g999999")
    with pytest.raises(ValueError, match="expected issued or finished or taken"):
        ledger.drop("g999999", "stale")


def test_a_step_is_entered_once_and_entirely() -> None:
    ledger = Ledger()
    taken, running = ledger.issue_next(0), ledger.issue_next(0)
    ledger.finish(taken.id)
    ledger.take([taken.id])
    with pytest.raises(ValueError, match=running.id):
        ledger.mark_trained([taken.id, running.id], step=1)
    assert ledger.counts()["trained"] == 0
    ledger.mark_trained([taken.id], step=1)
    with pytest.raises(ValueError, match="step 1 is in the ledger already"):
        ledger.mark_trained([], step=1)


def test_resume_reissues_what_was_open_oldest_first_and_never_what_was_trained() -> None:
    ledger = Ledger()
    issues = [ledger.issue_next(0) for _ in range(5)]
    for issue in issues[:3]:
        ledger.finish(issue.id)
    ledger.take([issues[0].id, issues[1].id])
    ledger.mark_trained([issues[0].id], step=1)
    ledger.reissue(issues[4].id, "infra_error")
    resumed = through_json(ledger)
    assert resumed.open("issued", "finished", "taken") == []
    again = [resumed.issue_next(1) for _ in range(5)]
    assert [i.position for i in again] == [1, 2, 3, 4, 5]  # taken, finished, running, waiting, new
    assert [i.failures for i in again] == [0, 0, 0, 1, 0]
    assert again[0].id == "g000005"
    counts = resumed.counts()
    assert (counts["trained"], counts["reissued/interrupted"]) == (1, 3)
    with pytest.raises(ValueError, match="step 1 is in the ledger already"):
        resumed.mark_trained([], step=1)


def test_resume_keeps_finished_issues_whose_groups_were_saved() -> None:
    ledger = Ledger()
    first, second, running = (ledger.issue_next(0) for _ in range(3))
    ledger.finish(first.id)
    ledger.finish(second.id)
    state = json.loads(json.dumps(ledger.state_dict()))
    resumed = Ledger.from_state_dict(state, [second.id])
    assert [(i.id, i.state) for i in resumed.open("issued", "finished", "taken")] == [(second.id, "finished")]
    assert [resumed.issue_next(0).position for _ in range(3)] == [0, 2, 3]
    for wrong in (running.id, "g999999"):
        with pytest.raises(ValueError, match="expected finished"):
            Ledger.from_state_dict(state, [wrong])
