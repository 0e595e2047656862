"""What a resumed run takes over from a checkpoint, the log and the store. The state machine is in test_buffer.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from rollout.store import read
from rollout.store.eventlog import read_events
from rollout.store.segments import seal
from rollout.types import Address
from tests.rollout.buffer.buffer_support import Run, group, ids


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A run at version 0 whose gate admits four groups: two steps of two."""
    run = Run(tmp_path, staleness=1, step=2)
    run.buffer.published(0)
    return run


def step(run: Run, version: int) -> list[str]:
    """Train one step and publish its weights. Returns the ids of its groups."""
    trained = ids(run.buffer.take(version))
    assert trained is not None
    run.buffer.mark_trained(trained, version + 1)
    run.buffer.published(version + 1)
    return trained


def test_finished_groups_wait_again_and_what_was_under_way_is_issued_again(run: Run) -> None:
    issued = run.issue_all()
    for issue in (issued[1], issued[3]):
        run.put(group(*issue, 0))
    run.resume(run.state())
    run.buffer.published(0)
    again = run.issue_all()
    assert [task.id for _, task in again] == ["t0", "t2"]
    assert [issue_id for issue_id, _ in again] == ["g2-000004", "g2-000005"], "the number of the start is in the id"
    cards = run.buffer.take(0)
    assert ids(cards) == [issued[1][0], issued[3][0]]
    assert cards is not None and [card.address for card in cards] == [Address(segment=1, record=i) for i in (0, 1)]
    assert run.buffer.ledger.counts()["reissued/interrupted"] == 2


def test_groups_of_the_checkpoints_weights_wait_again_even_when_later_steps_trained_them(run: Run) -> None:
    """The checkpoint is of version 1. Two steps more are lost with their weights, and with them what versions 2 and 3
    sampled."""
    first = run.issue_all()
    for issue in first:
        run.put(group(*issue, 0))
    assert step(run, 0) == [first[0][0], first[1][0]]
    saved = run.state()
    second = run.issue_all()
    run.put(group(*second[0], 1))
    run.put(group(*second[1], 1, 2))
    assert step(run, 1) == [first[2][0], first[3][0]]
    third = run.issue_all()
    run.put(group(*third[0], 2))
    assert step(run, 2) == [second[0][0], second[1][0]]
    run.resume(saved)
    assert run.told[-1] == (
        "3 finished groups wait again (3 of them were trained after the checkpoint); issued again: 1 under way, "
        "2 sampled by weights that are lost, 0 too old"
    )
    run.buffer.published(1)
    assert ids(run.buffer.take(1)) == [first[2][0], first[3][0]]
    counts = run.buffer.ledger.counts()
    assert counts["reissued/orphaned"] == 2 and counts["reissued/interrupted"] == 1
    run.buffer.mark_trained([first[2][0], first[3][0]], 2)
    run.buffer.published(2)
    assert sorted(task.id for _, task in run.issue_all()) == ["t5", "t6", "t7"]
    steps = {stored.group.id: stored.step for stored in read(run.directory)}
    assert steps == {
        **dict.fromkeys([first[0][0], first[1][0]], 1),
        **dict.fromkeys([first[2][0], first[3][0]], 2),
        **dict.fromkeys([second[0][0], second[1][0], third[0][0]], None),
    }


def test_a_smaller_bound_makes_groups_too_old(run: Run) -> None:
    issued = run.issue_all()
    for issue in issued:
        run.put(group(*issue, 0))
    step(run, 0)
    saved = run.state()
    run.staleness = 0
    run.resume(saved)
    assert run.buffer.ledger.counts()["reissued/stale"] == 2


def test_a_durable_group_that_was_never_handed_in_waits_and_a_failed_one_is_issued_again(run: Run) -> None:
    issued = run.issue_all()
    saved = run.state()
    run.store(group(*issued[0], 0))
    run.store(group(*issued[1], failed=True))
    run.store(group("eval-0-0", issued[2][1], 0))
    run.resume(saved)
    assert [issue.id for issue in run.buffer.ledger.open("finished")] == [issued[0][0]]
    assert run.buffer.ledger.counts()["reissued/interrupted"] == 3


def test_a_durable_group_in_a_segment_that_was_sealed_is_found_too(run: Run) -> None:
    issued = run.issue_all()
    saved = run.state()
    run.store(group(*issued[0], 0))
    assert run._segment is not None
    seal(run._segment.path)
    run.resume(saved)
    assert [issue.id for issue in run.buffer.ledger.open("finished")] == [issued[0][0]]


def test_a_kill_between_finishing_and_failing_a_group_does_not_train_it(run: Run) -> None:
    issued = run.issue_all()
    saved = run.state()
    card = run.store(group(*issued[0], failed=True))
    run.buffer.ledger.finish(card.id, card.address, None)
    run.resume(saved)
    assert run.buffer.ledger.open("finished") == []
    assert run.buffer.ledger.counts()["reissued/infra_error"] == 1


def test_an_unlogged_record_that_cannot_be_read_costs_its_group_only(run: Run) -> None:
    issued = run.issue_all()
    saved = run.state()
    for issue in issued[:2]:
        run.store(group(*issue, 0))
    assert run._segment is not None
    content = bytearray(run._segment.path.read_bytes())
    content[-300:] = bytes(300)
    run._segment.path.write_bytes(content)
    run.resume(saved)
    assert any("cannot be read" in line for line in run.told)
    assert run.buffer.ledger.counts()["reissued/interrupted"] >= 3
    run.buffer.published(0)
    assert len(run.issue_all()) >= 3


def test_a_group_without_sampled_tokens_ages_from_its_issue(run: Run) -> None:
    issued = run.issue_all()
    run.put(group(*issued[0]))
    for issue in issued[1:]:
        run.put(group(*issue, 0))
    step(run, 0)
    saved = run.state()
    later = run.issue_all()
    run.put(group(*later[0]))
    run.put(group(*later[1], 1))
    step(run, 1)
    last = run.issue_all()
    run.put(group(*last[0]))
    run.resume(saved)
    kept = {issue.id for issue in run.buffer.ledger.open("finished")}
    assert kept == {issued[2][0], issued[3][0], later[0][0], later[1][0]}
    assert run.buffer.ledger.counts()["reissued/orphaned"] == 1


def test_a_run_that_is_killed_again_and_again_loses_no_finished_group(run: Run) -> None:
    issued = run.issue_all()
    saved = run.state()
    for position, issue in enumerate(issued):
        run.put(group(*issue, 0))
        run.resume(saved)
        waiting = {waiting.id for waiting in run.buffer.ledger.open("finished")}
        assert waiting == {issue_id for issue_id, _ in issued[: position + 1]}
        run.buffer.published(0)
        for issue_id, task in run.issue_all():
            if task.id == issued[min(position + 1, 3)][1].id:
                issued[position + 1 :] = [(issue_id, task), *issued[position + 2 :]]
    assert [event["event"] for event in read_events(run.directory / "ledger.log")].count("finished") == 4


def test_a_group_whose_record_is_gone_is_told_and_issued_again(run: Run) -> None:
    issued = run.issue_all()
    for issue in issued[:2]:
        run.put(group(*issue, 0))
    saved = run.state()
    next(run.folder.iterdir()).unlink()
    run.resume(saved)
    assert sum("segment-000001" in line and line.endswith("its task is issued again") for line in run.told) == 2
    assert run.buffer.ledger.counts()["reissued/interrupted"] == 4


@pytest.mark.parametrize("size", [0, 100, -1, -20])
def test_a_damaged_segment_costs_its_own_groups_and_is_named(run: Run, size: int) -> None:
    issued = run.issue_all()
    for issue in issued[:2]:
        run.put(group(*issue, 0))
    assert run._segment is not None
    seal(run._segment.path)
    run._segment = None
    for issue in issued[2:]:
        run.put(group(*issue, 0))
    saved = run.state()
    sealed = run.folder / "segment-000001.parquet"
    sealed.write_bytes(sealed.read_bytes()[:size])
    run.resume(saved)
    assert sum("segment-000001.parquet" in line and "issued again" in line for line in run.told) == 2
    assert [issue.id for issue in run.buffer.ledger.open("finished")] == [issue_id for issue_id, _ in issued[2:]]


@pytest.mark.parametrize("checkpoint", [False, True])
def test_no_damaged_stream_of_groups_that_were_trained_is_deleted(run: Run, checkpoint: bool) -> None:
    """Not by damage of the header, which hides all, nor by damage of the only record."""
    issued = run.issue_all()
    run.put(group(*issued[0], 0))
    only = run._segment
    assert only is not None
    run._segment = None
    run.put(group(*issued[1], 0))
    second = run._segment
    assert second is not None
    step(run, 0)
    saved = run.state() if checkpoint else None
    only.path.write_bytes(only.path.read_bytes()[:-9])
    content = bytearray(second.path.read_bytes())
    content[5] ^= 1
    second.path.write_bytes(content)
    run.resume(saved)
    assert only.path.exists() and second.path.exists()
    assert sum("damaged" in line and "it is left as it is" in line for line in run.told) == 2


def test_without_a_checkpoint_everything_is_issued_again_under_new_ids(run: Run) -> None:
    issued = run.issue_all()
    run.put(group(*issued[0], 0))
    run.resume(None)
    assert run.told == ["there is no checkpoint to go on from: every task is issued again"]
    run.buffer.published(0)
    again = run.issue_all()
    assert [task.id for _, task in again] == [task.id for _, task in issued]
    assert again[0][0] == "g2-000000" and not {i for i, _ in again} & {i for i, _ in issued}


def test_the_log_tells_the_order_of_arrivals_the_groups_of_each_step_and_the_seed(run: Run) -> None:
    issued = run.issue_all()
    for issue in reversed(issued[:3]):
        run.put(group(*issue, 0))
    trained = step(run, 0)
    events = read_events(run.directory / "ledger.log")
    assert events[0] == {"event": "started", "start": 1, "seed": 0}
    assert [e["id"] for e in events if e["event"] == "finished"] == [i for i, _ in reversed(issued[:3])]
    assert [e["address"] for e in events if e["event"] == "finished"] == [[1, 0], [1, 1], [1, 2]]
    (taken,) = (e for e in events if e["event"] == "taken")
    assert taken == {"event": "taken", "version": 0, "ids": trained}
    first = next(e for e in events if e["event"] == "issued")
    assert (first["id"], first["position"], first["version"], first["parent"]) == (issued[0][0], 0, 0, None)
    assert first["task"]["id"] == "t0" and first["task"]["environment"] == "e"
    assert [e["version"] for e in events if e["event"] == "published"] == [0, 1]
