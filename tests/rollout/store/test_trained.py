from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rollout.store.trained import FOLDER, TrainedLog, TrainedReader, TrainedSample, paths, read_trained, trim
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


def test_a_damaged_record_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / FOLDER
    for steps_of_file in ((1, 2, 3), (4,), (5,)):
        log = TrainedLog(folder, 1e9)
        for step in steps_of_file:
            log.append([sample(step, 1, tokens=20_000)])
        log.close()
    first, *_ = paths(folder).values()
    content = bytearray(first.read_bytes())
    middle = len(content) // 2
    content[middle - 4096 : middle + 4096] = bytes(8192)
    first.write_bytes(content)
    assert steps(tmp_path)[0] == 1 and steps(tmp_path)[-2:] == [4, 5] and 2 not in steps(tmp_path)
    assert TrainedReader(tmp_path).of(2, Address(segment=1, record=2)) == {}
    assert [path.stem for path in trim(folder, {7}, 1)] == ["trained-000001", "trained-000002"]


def test_a_reader_finds_what_each_step_made_of_a_group(tmp_path: Path) -> None:
    ranks = [TrainedLog(tmp_path / FOLDER, 1e9) for _ in range(2)]
    ranks[0].append([sample(1, 4), sample(1, 5)])
    ranks[1].append([replace(sample(1, 4), sample=0)])
    ranks[0].append([sample(2, 4)])
    again = TrainedLog(tmp_path / FOLDER, 1e9)  # a resumed run takes step 2 again
    again.append([replace(sample(2, 4), logprobs=np.ones(3, np.float32))])
    reader = TrainedReader(tmp_path)
    assert sorted(reader.of(1, Address(segment=4, record=2))) == [0, 1]
    assert reader.of(2, Address(segment=4, record=2))[1].logprobs.tolist() == [1, 1, 1]
    assert reader.of(2, Address(segment=5, record=2)) == {}


def test_a_deleted_folder_does_not_disturb_its_writer(tmp_path: Path) -> None:
    log = TrainedLog(tmp_path / FOLDER, 1e9)
    log.append([sample(1, 1)])
    shutil.rmtree(tmp_path / FOLDER)
    log.close()
    log.close()
    log.append([sample(2, 1)])
    assert steps(tmp_path) == [2]


@pytest.mark.parametrize("first_own", [1, 9])
def test_files_about_deleted_groups_go_but_for_those_that_grow(tmp_path: Path, first_own: int) -> None:
    folder = tmp_path / FOLDER
    old, mixed, growing, newest = (TrainedLog(folder, 1e9) for _ in range(4))
    for log, segments in ((old, [1, 2]), (mixed, [2, 3]), (growing, [1]), (newest, [1])):
        log.append([sample(1, segment) for segment in segments])
    old.close(), mixed.close()
    deleted = [path.stem for path in trim(folder, {3, 4}, first_own)]
    assert deleted == ["trained-000001"] + ["trained-000003"] * (first_own == 9)


def test_a_run_without_records_has_none(tmp_path: Path) -> None:
    assert steps(tmp_path) == []
