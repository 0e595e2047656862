"""A whole run whose policy writes, and whose environment shows, the worst of each kind: it goes on, and all is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from rl.paths import REPOSITORY
from rollout.plain import plain
from rollout.store import read
from rollout.types import Trajectory
from tests.e2e.harness import ONE_RANK, QUICKSTART, launch
from tests.e2e.worst import BROKEN_TASKS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


@pytest.fixture(scope="module")
def members(tmp_path_factory: pytest.TempPathFactory, cold_start: Path, cold_start_cache: Path) -> list[Trajectory]:
    """All trajectories of the run, as its directory holds them."""
    folder = tmp_path_factory.mktemp("worst")
    recipe = yaml.safe_load((REPOSITORY / QUICKSTART).read_text(encoding="utf-8"))
    recipe["tasks"]["sources"] = [{"environment": f"{Path(__file__).with_name('worst.py')}:Showing"}]
    recipe["model"]["renderer"] = f"{Path(__file__).with_name('worst.py')}:Worst"
    recipe["sft"] = None
    recipe["rollout"] |= {"failure_share_limit": 1.0, "infra_retries": 0}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    overrides = (
        f"model.path={cold_start}",
        "run.steps=3",
        "tasks.eval_size=10",
        *ONE_RANK,
    )
    run = launch(folder / "run", cold_start_cache, *overrides, recipe=str(folder / "recipe.yaml"))
    assert run.code == 0 and run.leftovers == (), run.output[-4000:]
    assert run.summary["steps"] == 3 and run.summary["tasks_trained"] == 24
    return [member for stored in read(run.directory) for member in stored.group.trajectories]


def test_what_the_policy_wrote_is_its_own_fault(members: list[Trajectory]) -> None:
    written = {str(message.get("malformed")) for t in members for message in t.messages if "malformed" in message}
    assert all(t.outcome == "scored" for t in members if t.stop_reason == "malformed")
    for problem in (
        "is nested more than 100 levels deep",
        "a is nan",
        "more than 4000 digits",
        "of type object",
        "key 1 of",
    ):
        assert any(problem in text for text in written), (problem, written)


def test_what_the_environment_did_wrong_is_the_machines(members: list[Trajectory]) -> None:
    errors = [str(t.error) for t in members if t.outcome == "infra_error"]
    for problem in ("showed None", "showed b'bytes'", "a turn is nan", "named a state 5", "'score' is nan"):
        assert any(problem in error for error in errors), problem
    assert all(t.reward is None for t in members if t.outcome == "infra_error")


def test_groups_that_cannot_be_stored_are_lost_alone(members: list[Trajectory]) -> None:
    broken = [t for t in members if int(t.task_id.rpartition("-")[2]) % BROKEN_TASKS == BROKEN_TASKS - 1]
    assert broken and all("the group cannot be stored" in str(t.error) for t in broken)
    assert not any("cannot be stored" in str(t.error) for t in members if t not in broken)


def test_what_is_kept_is_plain_and_bounded(members: list[Trajectory]) -> None:
    assert any(t.outcome == "scored" and t.stop_reason == "answered" for t in members)
    for t in members:
        assert plain(list(t.messages), "messages") == list(t.messages)
        assert len(json.dumps(t.messages, allow_nan=False)) < 1_000_000 and len(str(t.error)) < 100_000
