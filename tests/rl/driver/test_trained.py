from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rl.batch.plan import GroupPlace, PlannedBatch, PlannedRow, RankPlan, build
from rl.driver.trained import TrainedRecord
from rollout.store.config import TrajectoriesConfig
from rollout.store.shared import RunFolder
from rollout.store.trained import FOLDER, read_trained
from rollout.types import Address, Sample
from tests.samples import sample_of

ADDRESS = Address(segment=3, record=1)


def sample(*mask: int) -> Sample:
    versions = [0 if one else -1 for one in mask]
    return sample_of(
        token_ids=range(len(mask)), loss_mask=mask, logprobs=[-1.0 * one for one in mask], versions=versions
    )


SAMPLES = (sample(0, 1, 1), sample(0, 0, 1, 0, 1, 1))


def planned(number: int, advantages: tuple[float, ...], counts: tuple[int, ...]) -> PlannedRow:
    return PlannedRow(
        group=7,
        sample=number,
        length=len(SAMPLES[number]),
        advantages=advantages,
        temperatures=(1.0,) * len(counts),
        counts=counts,
        weight=0.1,
    )


def part() -> RankPlan:
    """Two micro-batches: one with both samples, and a filler."""
    rows = (planned(1, (0.5, -1.0), (1, 2)), planned(0, (2.0,), (2,)))
    batches = (PlannedBatch(rows=rows, shared=(0, 0)), PlannedBatch(rows=(), shared=()))
    return RankPlan(groups={7: GroupPlace(address=ADDRESS)}, micro_batches=batches)


def record(tmp_path: Path, **settings: bool) -> TrainedRecord:
    return TrainedRecord(RunFolder(path=str(tmp_path), run_id="x"), TrajectoriesConfig(**settings))


def step(made: TrainedRecord, number: int) -> None:
    for batch in build(part(), lambda _: SAMPLES):
        made.seen(batch, torch.arange(len(batch.labels), dtype=torch.bfloat16))
    made.write(part(), number)


def test_each_row_of_a_step_is_kept_with_its_own_tokens(tmp_path: Path) -> None:
    made = record(tmp_path)
    for number in (1, 2):
        step(made, number)
    found = list(read_trained(tmp_path))
    assert [(one.step, one.address, one.sample) for one in found[:2]] == [(1, ADDRESS, 1), (1, ADDRESS, 0)]
    assert found[0].advantages.tolist() == [0.5, -1.0, -1.0] and found[0].logprobs.tolist() == [0, 1, 2]
    assert found[1].advantages.tolist() == [2.0, 2.0] and found[1].logprobs.tolist() == [3, 4]
    assert [one.step for one in found] == [1, 1, 2, 2] and found[0].logprobs.dtype == np.float32


def test_it_can_be_turned_off(tmp_path: Path) -> None:
    step(record(tmp_path, trained_tokens=False), 1)
    assert not (tmp_path / FOLDER).exists()


def test_what_cannot_be_written_is_told_once_and_the_steps_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FOLDER).write_text("a file where the folder should be")
    made = record(tmp_path)
    for number in (1, 2):
        step(made, number)
    made.close()
    assert caplog.text.count("trained tokens are no longer recorded") == 1
