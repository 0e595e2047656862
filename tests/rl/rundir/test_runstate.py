"""The driver's part of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from rl.rundir.progress import Progress
from rl.rundir.runstate import read_buffer, read_progress, rewrite_progress, write_state
from rollout.buffer.buffer import BufferState
from rollout.buffer.ledger import Ledger
from rollout.types import Group, Task
from tests.samples import failed_trajectory


def test_progress_ledger_and_groups_come_back_and_a_later_evaluation_joins_them(tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.finish(ledger.issue_next(0).id)
    failed = failed_trajectory("t", "g000000")
    group = Group(id="g000000", task=Task(id="t", environment="store", messages=()), trajectories=(failed,))
    buffer = BufferState(ledger=ledger.state_dict(), groups=(group,))
    progress = Progress(step=3, version=3)
    write_state(tmp_path, progress, buffer)
    assert read_progress(tmp_path) == progress and read_buffer(tmp_path) == buffer
    progress.eval_after = {"eval/success": 0.75}
    rewrite_progress(tmp_path, progress)
    assert read_progress(tmp_path) == progress and read_buffer(tmp_path) == buffer
