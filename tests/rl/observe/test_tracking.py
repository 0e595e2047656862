"""Real wandb, offline; the failures are made with a stand-in `wandb` module that breaks or hangs on purpose."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import psutil
import pytest
from tensorboardX.proto import event_pb2

from rl.observe.config import WandbConfig
from rl.observe.metrics import REGISTRY
from rl.observe.sections import laid_out
from rl.observe.tracking.sampled import COLUMNS
from rl.observe.tracking.trackers import wandb_tracker
from rl.observe.tracking.wandb_sink import resolve_mode
from rl.observe.tracking.workspace import ID_FILE
from rl.paths import REPOSITORY
from rl.processes.tree import RUN_ID_VARIABLE, kill_run, new_run_id, processes_of_run
from tests.rl.observe.wandb_records import records

PROGRAM = [sys.executable, "-m", "tests.rl.observe.tracked_run"]


def clean_environment(**changes: str) -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")} | changes


def run(folder: Path, name: str = "finish", **environment: str) -> list[str]:
    done = subprocess.run(
        [*PROGRAM, name, str(folder)],
        cwd=REPOSITORY,
        env=clean_environment(**environment),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def broken_wandb(folder: Path, source: str) -> str:
    """Write a module `wandb` with this source, and return the folder that is to be searched first."""
    (folder / "broken" / "wandb").mkdir(parents=True)
    (folder / "broken" / "wandb" / "__init__.py").write_text(source)
    return str(folder / "broken")


@pytest.mark.parametrize(
    ("mode", "key", "resolved"),
    [
        ("auto", "x" * 40, "online"),
        ("auto", "", "offline"),
        ("offline", "x" * 40, "offline"),
        ("disabled", "x", "disabled"),
    ],
)
def test_auto_is_online_only_with_a_key(monkeypatch: pytest.MonkeyPatch, mode: str, key: str, resolved: str) -> None:
    monkeypatch.setenv("WANDB_API_KEY", key)
    assert resolve_mode(WandbConfig.model_validate({"mode": mode})) == resolved


def test_disabled_starts_nothing(tmp_path: Path) -> None:
    assert wandb_tracker(WandbConfig(mode="disabled"), tmp_path, name="x", recipe={}, warn=pytest.fail) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_offline_run_is_recorded_resumed_under_its_id_and_leaves_no_process(tmp_path: Path) -> None:
    for _ in range(2):
        warnings, children = run(tmp_path)
        assert warnings == "0"
        assert children == "[]"
        time.sleep(1.1)  # wandb names the directory by the second
    assert [section["name"] for section in sections_of(tmp_path)] == [*laid_out(REGISTRY), "Trajectories"]
    run_id = (tmp_path / "wandb" / ID_FILE).read_text()
    files = list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(files) == 2
    for file in files:
        written = records(file)
        (sent,) = [record.run for record in written if record.HasField("run")]
        assert (sent.project, sent.entity, sent.run_group) == ("a-project", "an-entity", "a-group")
        assert (sent.run_id, sent.display_name) == (run_id, "quickstart")
        assert {item.key: item.value_json for item in sent.config.update}["seed"] == "1"
        logged = [values_of(record.history.item) for record in written if record.HasField("history")]
        rows = [row for row in logged if "reward/mean" in row]
        assert [(row["step"], row["reward/mean"], row["reward/part/tests"]) for row in rows] == [
            (1, 0.25, 1.0),
            (2, 0.5, 1.0),
        ]
        (alert,) = [record.alert for record in written if record.HasField("alert")]
        assert (alert.title, alert.text) == ("entropy", "step 2: it is 0")
        (ended,) = [record.exit for record in written if record.HasField("exit")]
        assert ended.exit_code == 0
        (table,) = file.parent.glob("files/media/table/trajectories_*.table.json")
        shown = json.loads(table.read_text())
        (row,) = [dict(zip(shown["columns"], data, strict=True)) for data in shown["data"]]
        assert tuple(row) == COLUMNS
        assert (row["step"], row["task"], row["reward"], row["success"], row["advantage"]) == (
            2,
            "t1",
            0.5,
            True,
            -0.25,
        )
        assert (row["parts"], row["versions"], row["tokens"]) == ("tests 1, brevity -0.5", "3–4", 2)
        assert "Add 1 and 2." in row["conversation"] and row["ending"].startswith("answered · reward 0.5")
        summaries = [values_of(record.summary.update) for record in written if record.HasField("summary")]
        assert any(summary.get("steps") == 2 for summary in summaries)


def sections_of(folder: Path) -> list[Any]:
    """The sections of the workspace that a run left as a file."""
    view = json.loads((folder / "wandb" / "workspace.json").read_text())
    found: list[Any] = view["section"]["panelBankConfig"]["sections"]
    return found


def values_of(items: Iterable[Any]) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_after_a_crash_the_reaper_finds_wandbs_service(tmp_path: Path) -> None:
    run_id = new_run_id()
    environment = clean_environment(**{RUN_ID_VARIABLE: run_id})
    driver = subprocess.Popen([*PROGRAM, "forever", str(tmp_path)], cwd=REPOSITORY, env=environment)
    try:
        end = time.monotonic() + 200
        while not any("wandb-core" in process.name() for process in processes_of_run(run_id)):
            assert time.monotonic() < end, "wandb-core never came up"
            time.sleep(0.1)
        service = next(process for process in processes_of_run(run_id) if "wandb-core" in process.name())
    finally:
        driver.kill()
        driver.wait()
    assert kill_run(run_id) == []
    assert not service.is_running() or service.status() == psutil.STATUS_ZOMBIE


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("raise ImportError('libfoo is missing')", "ImportError: libfoo is missing"),
        ("Settings = dict\ndef init(**_): raise RuntimeError('no disk')", "RuntimeError: no disk"),
        ("Settings = dict\ndef init(**_): raise SystemExit(1)", "SystemExit: 1"),
    ],
)
def test_a_failing_wandb_is_one_warning(tmp_path: Path, source: str, reason: str) -> None:
    warnings, _ = run(tmp_path, PYTHONPATH=broken_wandb(tmp_path, source))
    assert warnings == f"1|wandb is off for the rest of this run ({reason}); metrics.jsonl goes on"


@pytest.mark.timeout(120)
def test_a_hanging_wandb_delays_nothing(tmp_path: Path) -> None:
    hanging = broken_wandb(tmp_path, "import time\ntime.sleep(600)")
    warnings, _ = run(tmp_path, PYTHONPATH=hanging, DEADLINES="90 0.5")
    assert warnings.startswith("1|wandb is off for the rest of this run (not finished after")
    warnings, _ = run(tmp_path, "log_later", PYTHONPATH=hanging, DEADLINES="0.2 60")
    assert warnings.startswith("1|wandb is off for the rest of this run (no answer for")


@pytest.mark.timeout(120)
def test_tensorboard_goes_on_while_wandb_fails(tmp_path: Path) -> None:
    warnings, _ = run(tmp_path, "both", PYTHONPATH=broken_wandb(tmp_path, "raise ImportError('libfoo is missing')"))
    assert warnings.startswith("1|wandb is off")
    scalars, texts = tensorboard_events(tmp_path)
    assert scalars == {
        ("reward/mean", 1): 0.25,
        ("reward/mean", 2): 0.5,
        ("reward/part/tests", 1): 1.0,
        ("reward/part/tests", 2): 1.0,
    }
    assert texts["alerts/text_summary"] == "**entropy**: step 2: it is 0"
    assert "advantage -0.25, versions 3–4" in texts["trajectories/0/text_summary"]
    assert "      Add 1 and 2." in texts["trajectories/0/text_summary"]


def tensorboard_events(folder: Path) -> tuple[dict[tuple[str, int], float], dict[str, str]]:
    """The scalars of event files by name and step, and the last text of each name.

    Each record of the files is its length (8 bytes), a crc (4), the event, and another crc (4).
    """
    scalars, texts = {}, {}
    for file in (folder / "tensorboard").glob("events.out.tfevents.*"):
        data, position = file.read_bytes(), 0
        while position < len(data):
            (length,) = struct.unpack_from("<Q", data, position)
            event = event_pb2.Event.FromString(data[position + 12 : position + 12 + length])
            position += 12 + length + 4
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars[value.tag, event.step] = value.simple_value
                else:
                    texts[value.tag] = value.tensor.string_val[0].decode()
    return scalars, texts
