"""The driver's part of a checkpoint."""

from __future__ import annotations

from pathlib import Path

from rl.rundir.progress import Progress
from rl.rundir.runstate import read_buffer, read_progress, rewrite_progress, write_state
from rollout.buffer.buffer import BufferState
from tests.rollout.buffer.buffer_support import Run, group


def test_progress_and_buffer_come_back_and_a_later_evaluation_joins_them(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.buffer.published(0)
    run.put(group(*run.issue_all()[0], 0))
    buffer: BufferState = run.state()
    progress = Progress(step=3, version=3)
    write_state(tmp_path, progress, buffer)
    assert read_progress(tmp_path) == progress and read_buffer(tmp_path) == buffer
    progress.eval_after = {"eval/success": 0.75}
    rewrite_progress(tmp_path, progress)
    assert read_progress(tmp_path) == progress and read_buffer(tmp_path) == buffer
