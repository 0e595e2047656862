"""Real wandb, offline; the failures are made with a stand-in `wandb` module that breaks or hangs on purpose."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rl.driver.processes import RUN_ID_VARIABLE, kill_run, new_run_id, processes_of_run
from rl.observe.config import WandbConfig
from rl.observe.tracking import ID_FILE, Tracker, resolve_mode

REPOSITORY = Path(__file__).parents[3]

RUN = """
import os, pathlib, sys, psutil
from rl.observe.config import WandbConfig
from rl.observe.tracking import Tracker
start = [float(x) for x in os.environ.get("DEADLINES", "90 60").split()]
warnings = []
tracker = Tracker(WandbConfig(mode="offline"), pathlib.Path(sys.argv[1]), name="quickstart", recipe={"seed": 1},
                  warn=warnings.append, deadline_s=start[0])
for step in (1, 2):
    tracker.log(step, {"reward/mean": step / 4, "reward/part/tests": 1.0})
"""
FINISH = """
tracker.finish(0, {"steps": 2}, deadline_s=start[1])
tracker.finish(0, {"steps": 2})
print(len(warnings), *warnings, sep="|")
print([p.cmdline() for p in psutil.Process().children(recursive=True)])
"""


def _run(folder: Path, program: str, **environment: str) -> list[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    path = os.pathsep.join([environment.pop("FIRST", ""), str(REPOSITORY)]).lstrip(os.pathsep)
    done = subprocess.run(
        [sys.executable, "-c", program, str(folder)],
        env=clean | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


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
    tracker = Tracker(WandbConfig(mode="disabled"), tmp_path, name="x", recipe={}, warn=pytest.fail)
    tracker.log(1, {"reward/mean": 1.0})
    tracker.finish(0, {})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_an_offline_run_is_recorded_resumed_under_its_id_and_leaves_no_process(tmp_path: Path) -> None:
    for _ in range(2):
        warnings, children = _run(tmp_path, RUN + FINISH)
        assert warnings == "0"
        assert children == "[]"
        time.sleep(1.1)  # wandb names the directory by the second
    run_id = (tmp_path / "wandb" / ID_FILE).read_text()
    records = list((tmp_path / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(records) == 2
    for record in records:
        assert b"reward/part/tests" in record.read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_after_a_crash_the_reaper_finds_wandbs_service(tmp_path: Path) -> None:
    run_id = new_run_id()
    program = RUN + "import time\nwhile True: time.sleep(1)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment |= {"PYTHONPATH": str(REPOSITORY), RUN_ID_VARIABLE: run_id}
    driver = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], env=environment)
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
    (tmp_path / "broken" / "wandb").mkdir(parents=True)
    (tmp_path / "broken" / "wandb" / "__init__.py").write_text(source)
    warnings, _ = _run(tmp_path, RUN + FINISH, FIRST=str(tmp_path / "broken"))
    assert warnings == f"1|wandb is off for the rest of this run ({reason}); metrics.jsonl goes on"


@pytest.mark.timeout(120)
def test_a_hanging_wandb_delays_nothing(tmp_path: Path) -> None:
    (tmp_path / "broken" / "wandb").mkdir(parents=True)
    (tmp_path / "broken" / "wandb" / "__init__.py").write_text("import time\ntime.sleep(600)")
    warnings, _ = _run(tmp_path, RUN + FINISH, FIRST=str(tmp_path / "broken"), DEADLINES="90 0.5")
    assert warnings.startswith("1|wandb is off for the rest of this run (not finished after")
    later = "import time\ntime.sleep(0.3)\ntracker.log(3, {'reward/mean': 1.0})\nprint(tracker.active)\n"
    active, warnings, _ = _run(tmp_path, RUN + later + FINISH, FIRST=str(tmp_path / "broken"), DEADLINES="0.2 60")
    assert active == "False"
    assert warnings.startswith("1|wandb is off for the rest of this run (no answer for")
