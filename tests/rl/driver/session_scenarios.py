"""Trainings that misbehave, each in a real session: `python -m tests.rl.driver.session_scenarios NAME OVERRIDE…`."""

from __future__ import annotations

import ctypes
import math
import sys
import time

import rl.driver.cluster
import rl.processes.lastword
from rl.driver.drive import drive
from rl.driver.session import STALE, Session
from rl.processes.guardian import run_guarded
from rl.processes.tree import new_run_id
from rl.recipe.load import load_recipe
from rl.run import train


def nothing(session: Session) -> None:
    """A training that has nothing to do."""


def outside_of_any_wait(session: Session) -> None:
    (session.directory.path / "reading").touch()
    while True:
        time.sleep(0.01)


def in_a_call_that_never_returns(session: Session) -> None:
    """Like a call into Ray's C++: without the GIL, and it goes on after a signal."""
    rl.processes.lastword.AFTER_S = 1.0
    mutex = ctypes.create_string_buffer(64)
    (session.directory.path / "calling").touch()
    for _ in range(2):
        ctypes.CDLL(None).pthread_mutex_lock(mutex)


def not_a_number(session: Session) -> None:
    session.progress.mismatch_sum, session.progress.mismatch_tokens = math.nan, 1
    raise RuntimeError("boom")


def ray_hangs_at_the_end(session: Session) -> None:
    rl.driver.cluster.CLOSE_S = 1.0
    rl.driver.cluster.ray.shutdown = lambda: time.sleep(300)


def one_more_group_is_stale(session: Session) -> None:
    step = session.step
    step.count_tasks({STALE: step.stale_before + 1})
    print("dropped", step.values["rollout/dropped_stale"], "of", step.ledger_counts[STALE])


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        train,
        nothing,
        outside_of_any_wait,
        in_a_call_that_never_returns,
        not_a_number,
        ray_hangs_at_the_end,
        one_more_group_is_stale,
    )
}


def main() -> None:
    name, *overrides = sys.argv[1:]
    recipe = load_recipe("recipes/quickstart.yaml", ["wandb.mode=disabled", *overrides])
    run_id = new_run_id()
    sys.exit(run_guarded(lambda: drive(recipe, run_id, SCENARIOS[name]), run_id=run_id))


if __name__ == "__main__":
    main()
