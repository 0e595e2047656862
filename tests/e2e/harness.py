"""Real runs through launch.sh, as a newcomer starts them, and what they leave behind."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors.torch import load_file

from rl.observe.metrics_log import read_metrics
from rl.paths import REPOSITORY
from rl.processes.tree import kill_run, processes_of_run, resource_prefix

QUICKSTART = "recipes/quickstart.yaml"
DEADLINE_S = 900.0
"""Limit of one run. Only a run that hangs reaches it."""
END_S = 120.0
"""Limit of an ending. Sluice promises 30 s on a quiet machine, but tests may run on a busy one, so `Launched.finish`
only prints the time."""
COLD_START = "sft.steps=300"
"""A shorter cold start than the quickstart's. It is the same in all runs, so that they share its result."""
ONE_RANK = ("trainer.ranks=1", "trainer.expert_parallel=1")
"""For tests in which the number of trainers makes no difference: one process less to start."""
SHORT = ("run.steps=2", "tasks.eval_size=8", "checkpoint.every=1")


@dataclass(frozen=True)
class Run:
    """A run that ended: its exit code, everything it printed, its directory, and what it left elsewhere."""

    code: int
    output: str
    directory: Path
    leftovers: tuple[str, ...]

    @property
    def summary(self) -> dict[str, Any]:
        values: dict[str, Any] = json.loads((self.directory / "summary.json").read_text())
        return values

    def column(self, name: str) -> list[float]:
        """The values of one metric, from the steps that have it."""
        return [values[name] for _, values in read_metrics(self.directory / "metrics.jsonl") if name in values]

    @property
    def state(self) -> dict[str, Any]:
        """The driver's part of the newest checkpoint."""
        values: dict[str, Any] = json.loads((Path(self.summary["checkpoint"]) / "run.json").read_text())
        return values


class Launched:
    """A run under way, whose temp directory nobody else uses."""

    def __init__(self, directory: Path, process: subprocess.Popen[bytes], log: Path, temp: Path) -> None:
        self.directory, self.process, self._log, self._temp = directory, process, log, temp

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def run_id(self) -> str:
        return (self.directory / "run.lock").read_text().strip()

    def wait_until(self, condition: Callable[[], bool], what: str, deadline_s: float = DEADLINE_S) -> None:
        """Poll until `condition` holds. Fail when the run ends first or `deadline_s` passes."""
        end = time.monotonic() + deadline_s
        while not condition():
            assert self.process.poll() is None, f"the run ended before {what}:\n{self.output[-3000:]}"
            assert time.monotonic() < end, f"no {what} in {deadline_s:.0f} s:\n{self.output[-3000:]}"
            time.sleep(0.2)

    def steps_done(self) -> int:
        path = self.directory / "metrics.jsonl"
        return max((step for step, _ in read_metrics(path)), default=0) if path.exists() else 0

    def pid_of(self, role: str) -> int:
        """The id of the process whose standard error goes to `<role>.log`."""
        found = [process.pid for process in processes_of_run(self.run_id) if self._writes_to(process, role)]
        assert found, f"no process of this run writes to {role}.log"
        return found[0]

    def _writes_to(self, process: psutil.Process, role: str) -> bool:
        try:
            return os.readlink(f"/proc/{process.pid}/fd/2") == str(self.directory / "logs" / f"{role}.log")
        except OSError:  # it has ended
            return False

    def has_role(self, role: str) -> bool:
        """Whether the process that `pid_of` looks for is there."""
        return (self.directory / "run.lock").exists() and any(
            self._writes_to(process, role) for process in processes_of_run(self.run_id)
        )

    def driver_pid(self) -> int:
        """The id of the driver. launch.sh has become the guardian, whose first child is the driver."""
        return psutil.Process(self.process.pid).children()[0].pid

    def finish(self, deadline_s: float = DEADLINE_S) -> Run:
        """Wait for the end and print how long it took, to be compared with the promised 30 s (pytest -rP shows it)."""
        begin = time.monotonic()
        code = self.process.wait(deadline_s)
        print(f"exit code {code} after {time.monotonic() - begin:.1f} s")
        return Run(code=code, output=self.output, directory=self.directory, leftovers=self.leftovers())

    def leftovers(self) -> tuple[str, ...]:
        """Processes and shared memory that carry the run's id, and whatever there is in its temp directory."""
        left = [str(path) for path in self._temp.iterdir()]
        if (self.directory / "run.lock").exists():  # else nothing was started
            left += [f"{p.pid} {' '.join(p.cmdline())}" for p in processes_of_run(self.run_id)]
            left += map(str, Path("/dev/shm").glob(resource_prefix(self.run_id) + "*"))
        return tuple(left)


@contextmanager
def launched(directory: Path, cache: Path, *overrides: str, recipe: str = QUICKSTART) -> Iterator[Launched]:
    """Start `./launch.sh recipe overrides…` in this test's environment. Kill the run if it still goes on at the end."""
    log = directory.with_suffix(".out")
    temp = Path(tempfile.mkdtemp(prefix="sl-", dir="/tmp"))  # short: Ray's socket paths have 107 bytes at most
    environment = os.environ | {"SLUICE_VENV": sys.prefix, "PYTHONUNBUFFERED": "1", "TMPDIR": str(temp)}
    shared = [COLD_START] if recipe == QUICKSTART else []
    command = ["./launch.sh", recipe, f"run.dir={directory}", f"run.cache_dir={cache}", *shared, *overrides]
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, cwd=REPOSITORY, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    run = Launched(directory, process, log, temp)
    try:
        yield run
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
            if (directory / "run.lock").exists():
                kill_run(run.run_id)
        shutil.rmtree(temp, ignore_errors=True)


def launch(directory: Path, cache: Path, *overrides: str, recipe: str = QUICKSTART) -> Run:
    """Run to the end."""
    with launched(directory, cache, *overrides, recipe=recipe) as run:
        return run.finish()


def weights_of(model: Path) -> dict[str, torch.Tensor]:
    """Every tensor of an exported model, by name."""
    return {name: tensor for file in sorted(model.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def in_the_loop(run: Launched) -> None:
    """Wait until the run has done a step."""
    run.wait_until(lambda: run.steps_done() >= 1, "the first step")


def check_end(run: Launched, code: int, *texts: str) -> Run:
    """Check that the run ends early with this exit code, prints these texts and leaves nothing behind."""
    ended = run.finish(END_S)
    assert ended.code == code, ended.output[-3000:]
    for text in texts:
        assert text in ended.output, f"{text!r} is not in:\n{ended.output[-3000:]}"
    assert ended.summary["exit_reason"] != "finished"
    assert ended.leftovers == ()
    return ended
