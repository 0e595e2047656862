from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rollout.store.trained import FOLDER, TrainedLog, TrainedSample, paths, read_trained, trim
from rollout.types import Address


def sample(step: int, segment: int, tokens: int = 3) -> TrainedSample:
    values = np.arange(tokens, dtype=np.float32)
    return TrainedSample(
        step=step, address=Address(segment=segment, record=2), sample=1, advantages=-values, logprobs=values / 4
    )


def steps(run: Path) -> list[int]:
    return [one.step for one in read_trained(run)]


def test_what_ranks_append_is_read_back_also_while_they_write(tmp_path: Path) -> None:
    ranks = [TrainedLog(tmp_path / FOLDER, 1e9) for _ in range(2)]
    ranks[0].append([sample(1, 4), sample(1, 5, tokens=0)])
    ranks[1].append([sample(1, 6)])
    ranks[0].append([sample(2, 7)])
    assert steps(tmp_path) == [1, 1, 2, 1]
    first, empty, *_ = read_trained(tmp_path)
    assert (first.address, first.sample) == (Address(segment=4, record=2), 1)
    assert first.advantages.tolist() == [0, -1, -2] and first.logprobs.tolist() == [0, 0.25, 0.5]
    assert empty.advantages.tolist() == []
    ranks[0].close()
    assert [path.name for path in paths(tmp_path / FOLDER).values()] == [
        "trained-000001.arrows",
        "trained-000002.growing",
    ]
    ranks[0].append([sample(3, 8)])
    assert steps(tmp_path) == [1, 1, 2, 1, 3]


def test_a_full_file_is_finished_and_another_begun(tmp_path: Path) -> None:
    log = TrainedLog(tmp_path / FOLDER, 1.0)
    for step in (1, 2):
        log.append([sample(step, 1)])
    assert [path.suffix for path in paths(tmp_path / FOLDER).values()] == [".arrows", ".arrows"]


def test_a_torn_record_is_left_out(tmp_path: Path) -> None:
    log = TrainedLog(tmp_path / FOLDER, 1e9)
    for step in (1, 2):
        log.append([sample(step, 1)])
    (path,) = paths(tmp_path / FOLDER).values()
    path.write_bytes(path.read_bytes()[:-5])
    assert steps(tmp_path) == [1]


@pytest.mark.parametrize("first_own", [1, 9])
def test_files_about_deleted_groups_go_but_for_those_that_grow(tmp_path: Path, first_own: int) -> None:
    folder = tmp_path / FOLDER
    old, mixed, growing = (TrainedLog(folder, 1e9) for _ in range(3))
    for log, segments in ((old, [1, 2]), (mixed, [2, 3]), (growing, [1])):
        log.append([sample(1, segment) for segment in segments])
    old.close(), mixed.close()
    deleted = [path.stem for path in trim(folder, {3, 4}, first_own)]
    assert deleted == ["trained-000001"] + ["trained-000003"] * (first_own == 9)


def test_a_run_without_records_has_none(tmp_path: Path) -> None:
    assert steps(tmp_path) == []
