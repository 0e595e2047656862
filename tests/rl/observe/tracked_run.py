"""A run with a real tracker: `python -m tests.rl.observe.tracked_run NAME FOLDER`.

$DEADLINES holds two numbers: the seconds that a call into wandb may take, and those that `finish` may take.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

from rl.observe.config import TensorBoardConfig, WandbConfig
from rl.observe.tracking.sampled import Chosen
from rl.observe.tracking.trackers import Trackers, tensorboard_tracker, wandb_tracker
from rollout.store.reading import FOLDER
from rollout.store.segments import Segment
from rollout.types import Address, Group, Task, Trajectory
from tests.samples import sample_of

CONFIG = WandbConfig(mode="offline", project="a-project", entity="an-entity", group="a-group")


def stored(folder: Path) -> list[Chosen]:
    """A trajectory in the run's store, and one that is not there any more."""
    sample = sample_of(token_ids=[5, 6, 7], loss_mask=[0, 1, 1], logprobs=[0, -0.5, -1], versions=[-1, 3, 4])
    trajectory = Trajectory(
        task_id="t1",
        group_id="g1",
        samples=(sample,),
        messages=({"role": "user", "content": "Add 1 and 2."}, {"role": "assistant", "content": "3"}),
        stop_reason="answered",
        outcome="scored",
        reward=0.5,
        success=True,
        reward_parts={"tests": 1.0, "brevity": -0.5},
    )
    task = Task(id="t1", environment="reasoning", source="sums", messages=())
    segment = Segment(folder / FOLDER)
    address = segment.append(Group(id="g1", task=task, trajectories=(trajectory,)), "train")
    segment.close()
    return [Chosen(address, 0, -0.25), Chosen(Address(segment=77, record=0), 0, None)]


def main(name: str, folder: Path) -> None:
    call_s, end_s = (float(text) for text in os.environ.get("DEADLINES", "90 60").split())
    warnings: list[str] = []
    trackers = Trackers(
        [
            *wandb_tracker(
                CONFIG, folder, name="quickstart", recipe={"seed": 1}, warn=warnings.append, deadline_s=call_s
            ),
            *tensorboard_tracker(
                TensorBoardConfig(enabled=name == "both"),
                folder,
                recipe={"seed": 1},
                first_step=1,
                warn=warnings.append,
            ),
        ]
    )
    for step in (1, 2):
        trackers.log(step, {"reward/mean": step / 4, "reward/part/tests": 1.0})
    trackers.alert("entropy", "step 2: it is 0")
    trackers.trajectories(2, stored(folder))
    while name == "forever":
        time.sleep(1)
    if name == "log_later":
        time.sleep(0.3)
        trackers.log(3, {"reward/mean": 1.0})
    trackers.finish(0, {"steps": 2}, deadline_s=end_s)
    trackers.finish(0, {"steps": 2})
    print(len(warnings), *warnings, sep="|")
    print([child.cmdline() for child in psutil.Process().children(recursive=True)])


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
