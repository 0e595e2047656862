from __future__ import annotations

import json
import math
import multiprocessing
import time
from multiprocessing.synchronize import Event as Synchronized
from pathlib import Path

import pytest

from rl.rundir.atomic import atomic_write_json
from rl.rundir.directory import RunDir


def test_a_new_directory_gets_the_layout(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "a" / "b", resume="never", run_id="r1") as run:
        assert not run.resumed
        assert run.previous_run_id is None
        assert run.trajectories.is_dir()
        assert run.checkpoints.is_dir()
        assert run.logs.is_dir()


def test_an_earlier_run_needs_resume(tmp_path: Path) -> None:
    RunDir.open(tmp_path / "run", resume="never", run_id="r1").close()
    with pytest.raises(ValueError, match="set resume=auto to go on"):
        RunDir.open(tmp_path / "run", resume="never", run_id="r2")
    with RunDir.open(tmp_path / "run", resume="auto", run_id="r2") as run:
        assert run.resumed
        assert run.previous_run_id == "r1"
        (run.checkpoints / "step-000001").mkdir()
    with RunDir.open(tmp_path / "run", resume="must", run_id="r3") as run:
        assert run.previous_run_id == "r2"


def test_a_directory_in_which_nothing_started_is_taken_away_and_one_with_an_earlier_run_is_not(tmp_path: Path) -> None:
    for start in range(2):
        with RunDir.open(tmp_path / "run", resume="never", run_id=f"r{start}") as run:
            run.discard()
        assert not (tmp_path / "run").exists()
    RunDir.open(tmp_path / "run", resume="never", run_id="r2").close()
    with RunDir.open(tmp_path / "run", resume="auto", run_id="r3") as run:
        run.discard()
    assert (tmp_path / "run").exists()


def test_a_lock_without_an_id_is_an_earlier_run_all_the_same(tmp_path: Path) -> None:
    """A power cut may have emptied it. Such a directory is never taken away."""
    RunDir.open(tmp_path / "run", resume="never", run_id="a long id").close()
    (tmp_path / "run" / "run.lock").write_text("")
    with RunDir.open(tmp_path / "run", resume="auto", run_id="r2") as run:
        assert run.resumed and run.previous_run_id is None
        run.discard()
    assert (tmp_path / "run" / "run.lock").read_text() == "r2"
    RunDir.open(tmp_path / "run", resume="auto", run_id="a longer id").close()
    RunDir.open(tmp_path / "run", resume="auto", run_id="r4").close()
    assert (tmp_path / "run" / "run.lock").read_text() == "r4"


def test_resume_must_needs_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"resume=must, but .* holds no checkpoint"):
        RunDir.open(tmp_path / "run", resume="must", run_id="r1")
    assert not (tmp_path / "run").exists()
    with RunDir.open(tmp_path / "run", resume="never", run_id="r1") as run:
        (run.checkpoints / ".step-000001.partial").mkdir()
    with pytest.raises(ValueError, match=r"resume=must, but .* holds no checkpoint"):
        RunDir.open(tmp_path / "run", resume="must", run_id="r2")


def test_a_foreign_directory_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("mine")
    for resume in ("never", "auto"):
        with pytest.raises(ValueError, match="not a run directory"):
            RunDir.open(tmp_path, resume=resume, run_id="r1")
    assert [entry.name for entry in tmp_path.iterdir()] == ["thesis.tex"]
    with pytest.raises(ValueError, match="is a file"):
        RunDir.open(tmp_path / "thesis.tex", resume="auto", run_id="r1")


def hold(path: Path, opened: Synchronized) -> None:
    """Open a run directory and keep it until the process is killed."""
    with RunDir.open(path, resume="never", run_id="r1"):
        opened.set()
        time.sleep(60)


def test_two_runs_at_once_are_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    opened = processes.Event()
    first = processes.Process(target=hold, args=(tmp_path / "run", opened))
    first.start()
    try:
        assert opened.wait(60)
        for resume in ("never", "auto"):
            with pytest.raises(ValueError, match="in use by a run"):
                RunDir.open(tmp_path / "run", resume=resume, run_id="r2")
    finally:
        first.kill()
        first.join()
    with RunDir.open(tmp_path / "run", resume="auto", run_id="r2") as run:
        assert run.previous_run_id == "r1"


def test_json_is_replaced_whole_and_a_failure_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "summary.json"
    atomic_write_json(path, {"steps": 3})
    with pytest.raises(ValueError, match="JSON compliant"):
        atomic_write_json(path, {"steps": math.nan})
    assert json.loads(path.read_text()) == {"steps": 3}
    assert [entry.name for entry in tmp_path.iterdir()] == ["summary.json"]


def test_evaluations_of_lost_steps_are_forgotten(tmp_path: Path) -> None:
    with RunDir.open(tmp_path / "run", resume="never", run_id="a") as run:
        for step in (0, 5, 10):
            run.evaluation(step).parent.mkdir(exist_ok=True)
            run.evaluation(step).write_text("{}")
        (run.evaluation(0).parent / "step-mine.json").write_text("{}")
        run.forget_evaluations(after=5)
        assert sorted(path.name for path in run.evaluation(0).parent.iterdir()) == [
            "step-000000.json",
            "step-000005.json",
            "step-mine.json",
        ]
