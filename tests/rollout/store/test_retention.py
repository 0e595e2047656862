"""What may be deleted: never what an open issue, a kept checkpoint or a step after the oldest kept one needs."""

from __future__ import annotations

from pathlib import Path

from rollout.buffer.buffer import BufferState
from rollout.store.retention import needed, trim
from rollout.store.segments import paths, seal
from tests.rollout.buffer.buffer_support import Run, group, ids


def held(states: list[BufferState]) -> set[int]:
    """The segments of the groups that were open when these checkpoints were written."""
    return {issue["address"]["segment"] for state in states for issue in state.ledger["open"] if issue["address"]}


def step(run: Run, version: int) -> BufferState:
    """Finish all groups that may run, each in a segment of its own, train a step, and return the state after it."""
    for issue in run.issue_all():
        run.put(group(*issue, version))
        assert run._segment is not None
        run._segment.close()
        seal(run._segment.path)
        run._segment = None
    trained = ids(run.buffer.take(version))
    assert trained is not None
    run.buffer.mark_trained(trained, version + 1)
    run.buffer.published(version + 1)
    return run.state()


def test_a_run_goes_on_from_every_kept_checkpoint_after_all_else_was_deleted(tmp_path: Path) -> None:
    run = Run(tmp_path, staleness=1, step=2)
    run.buffer.published(0)
    states = [step(run, version) for version in range(6)]
    kept = states[-2:]
    stay = needed(tmp_path / "ledger.log", kept[0].position, held(kept))
    everything = set(paths(run.folder))
    deleted = trim(run.folder, 0, stay, settled=everything)
    left = set(paths(run.folder))
    assert left == stay and len(deleted) == len(everything) - len(stay) > 0
    for state in kept:
        expected = [issue["id"] for issue in state.ledger["open"] if issue["state"] == "finished"]
        run.resume(state)
        assert not any("cannot be read" in line for line in run.told)
        assert set(expected) <= {issue.id for issue in run.buffer.ledger.open("finished")}


def test_everything_since_the_oldest_kept_checkpoint_stays_also_what_a_resume_has_abandoned(tmp_path: Path) -> None:
    run = Run(tmp_path, staleness=0, step=1)
    run.buffer.published(0)
    saved = step(run, 0)
    step(run, 1)
    run.resume(saved)
    run.buffer.published(1)
    step(run, 1)
    assert needed(tmp_path / "ledger.log", saved.position, held([saved])) == set(paths(run.folder)) - {1}
    assert needed(tmp_path / "ledger.log", 0, set()) == set(paths(run.folder))
