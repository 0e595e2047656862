"""Every way a session ends: exit code, summary, directory. Real Ray, with a `train` that misbehaves."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rl.paths import REPOSITORY
from rl.rundir.checkpoint import CheckpointStore
from rl.rundir.directory import RunDir
from rl.rundir.progress import Progress
from rl.rundir.runstate import write_state
from tests.rollout.buffer.buffer_support import Run


def start(scenario: str, *overrides: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.rl.driver.session_scenarios", scenario, *overrides],
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(scenario: str, *overrides: str) -> tuple[int, str]:
    process = start(scenario, *overrides)
    output, _ = process.communicate(timeout=110)
    return process.returncode, output


def summary(directory: Path) -> dict[str, object]:
    values: dict[str, object] = json.loads((directory / "summary.json").read_text())
    return values


def earlier_run(directory: Path) -> None:
    """Make the directory of a run that finished after 3 steps, in which two groups had become stale."""
    with RunDir.open(directory, resume="never", run_id="earlier") as run:
        buffer = Run(directory)
        buffer.buffer.published(3)
        for issue_id, _ in buffer.issue_all():
            buffer.buffer.ledger.reissue(issue_id, "stale")
        store = CheckpointStore(run.checkpoints, keep=1)
        progress = Progress(step=3, version=3, eval_after={"eval/success": 0.5})
        write_state(store.begin(3), progress, buffer.state())
        store.publish(3)


@pytest.mark.slow
def test_a_resumed_run_counts_what_is_dropped_from_its_checkpoint_on(tmp_path: Path) -> None:
    earlier_run(tmp_path / "run")
    code, output = run("one_more_group_is_stale", f"run.dir={tmp_path / 'run'}", "resume=auto")
    assert code == 0 and "dropped 1.0 of 3" in output


@pytest.mark.slow
def test_resuming_a_finished_run_starts_nothing_and_keeps_its_summary(tmp_path: Path) -> None:
    earlier_run(tmp_path / "run")
    code, output = run("train", f"run.dir={tmp_path / 'run'}", "resume=auto", "run.steps=3")
    assert code == 0 and "nothing to resume" in output
    told = summary(tmp_path / "run")
    assert (told["steps"], told["eval_success_after"], told["tasks_issued"]) == (3, 0.5, 2)
    assert not list((tmp_path / "run" / "logs").iterdir())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damaged", "content", "message"),
    [
        ("checkpoints/step-000003/run.json", b"{", "step-000003 cannot be read (JSONDecodeError: "),
        ("checkpoints/step-000003/run.json", b"{}", "step-000003 cannot be read (KeyError: 'progress')"),
        ("ledger.log", b"", "the ledger's log cannot be gone on from ("),
        ("ledger.log", b"garbage\n" * 200, "the ledger's log cannot be gone on from ("),
    ],
)
def test_a_state_that_cannot_be_read_starts_nothing_and_loses_nothing(
    tmp_path: Path, damaged: str, content: bytes, message: str
) -> None:
    earlier_run(tmp_path / "run")
    (tmp_path / "run" / damaged).write_bytes(content)
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 9}\n', encoding="utf-8")
    names = ("run.json", "metrics.jsonl", "ledger.log")
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.name in names}
    code, output = run("train", f"run.dir={tmp_path / 'run'}", "resume=auto")
    assert code == 2 and message in output
    assert "Traceback" not in output and len(before) == 3
    assert all(path.read_bytes() == content for path, content in before.items())


@pytest.mark.slow
def test_ctrl_c_is_heard_outside_of_any_wait(tmp_path: Path) -> None:
    process = start("outside_of_any_wait", f"run.dir={tmp_path / 'run'}")
    while not (tmp_path / "run" / "reading").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert summary(tmp_path / "run")["exit_reason"] == "SIGINT"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "code", "reason"), [("run.stall_s=600", 143, "SIGTERM"), ("run.stall_s=1", 75, "no progress for")]
)
def test_a_driver_whose_main_thread_never_comes_back_leaves_its_summary(
    tmp_path: Path, override: str, code: int, reason: str
) -> None:
    process = start("in_a_call_that_never_returns", f"run.dir={tmp_path / 'run'}", override)
    while not (tmp_path / "run" / "calling").exists():
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    if reason == "SIGTERM":
        process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code, output
    assert f"error: {reason}" in output and "the driver did not stop by itself" in output
    assert summary(tmp_path / "run")["exit_reason"].startswith(reason)


@pytest.mark.slow
def test_the_summary_is_written_whatever_the_numbers_are(tmp_path: Path) -> None:
    code, output = run("not_a_number", f"run.dir={tmp_path / 'run'}")
    assert code == 1 and "the driver failed: RuntimeError: boom" in output
    assert summary(tmp_path / "run")["mismatch_logprob_abs_mean"] is None


@pytest.mark.slow
def test_an_end_that_hangs_does_not_change_the_exit_code(tmp_path: Path) -> None:
    code, output = run("ray_hangs_at_the_end", f"run.dir={tmp_path / 'run'}")
    assert code == 0, output
    assert "Current thread" in output and "_shut_down" in output
    assert summary(tmp_path / "run")["exit_reason"] == "finished"


@pytest.mark.slow
def test_missing_hardware_starts_nothing_and_leaves_the_directory_free(tmp_path: Path) -> None:
    code, output = run("not_a_number", f"run.dir={tmp_path / 'run'}", "run.device=cuda", "trainer.ranks=998")
    assert code == 2, output
    assert "GPUs" in output
    assert not (tmp_path / "run").exists()


def test_a_directory_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    code, output = run("not_a_number", f"run.dir={tmp_path / 'file' / 'run'}")
    assert code == 2
    assert output.splitlines()[-1].startswith("error: run.dir=") and "Not a directory" in output
    assert "Traceback" not in output
