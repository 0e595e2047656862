"""The wandb sink. If it fails or hangs, the run prints one warning and goes on without it.

All of wandb, its import included, runs in one background thread that reads a queue; the driver only puts items into it.
Only `finish` waits for the thread, up to a deadline. metrics.jsonl is the truth about a run; wandb is a view of it.
"""

from __future__ import annotations

import os
import queue
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

import psutil

from rl.observe.metrics import REGISTRY, STEP_KEY

if TYPE_CHECKING:
    import wandb

    from rl.observe.config import WandbConfig

Mode = Literal["online", "offline", "disabled"]
ID_FILE = "run-id"


@dataclass(frozen=True, slots=True)
class _Log:
    step: int
    values: dict[str, float]


@dataclass(frozen=True, slots=True)
class _Alert:
    title: str
    text: str


@dataclass(frozen=True, slots=True)
class _Finish:
    exit_code: int
    summary: dict[str, Any]


def resolve_mode(config: WandbConfig) -> Mode:
    """Resolve `auto`: online when WANDB_API_KEY is set, else offline."""
    if config.mode == "auto":
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"
    return config.mode


class Tracker:
    """One wandb run in `<run directory>/wandb`; a resumed run goes on under the same wandb id.

    `warn` is called at most once, from any thread. `deadline_s` bounds every single call into wandb: when a call takes
    longer, the tracker gives up and drops all later metrics.
    """

    def __init__(
        self,
        config: WandbConfig,
        directory: Path,
        *,
        name: str,
        recipe: Mapping[str, Any],
        warn: Callable[[str], None],
        deadline_s: float = 90.0,
    ) -> None:
        self.mode = resolve_mode(config)
        self._config = config
        self._directory = directory
        self._name = name
        self._recipe = dict(recipe)
        self._warn = warn
        self._deadline_s = deadline_s
        self._lock = threading.Lock()
        self._failed = False
        self._busy_since: float | None = None
        self._queue: queue.SimpleQueue[_Log | _Alert | _Finish] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, name="wandb", daemon=True)
        if self.mode != "disabled":
            self._busy_since = time.monotonic()
            self._thread.start()

    @property
    def active(self) -> bool:
        return self.mode != "disabled" and not self._failed

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Hand over a step's metrics and return at once."""
        since = self._busy_since
        if since is not None and time.monotonic() - since > self._deadline_s:
            self._give_up(f"no answer for {self._deadline_s:.0f} s")
        if self.active:
            self._queue.put(_Log(step, dict(values)))

    def alert(self, title: str, text: str) -> None:
        """Hand over an alert, which wandb sends to those who asked for alerts, and return at once."""
        if self.active:
            self._queue.put(_Alert(title, text))

    def finish(self, exit_code: int, summary: Mapping[str, Any], *, deadline_s: float = 30.0) -> None:
        """End the wandb run and its service process. Gives up after `deadline_s`. Idempotent."""
        if self.active and self._thread.is_alive():
            self._queue.put(_Finish(exit_code, dict(summary)))
            self._thread.join(deadline_s)
            if self._thread.is_alive():
                self._give_up(f"not finished after {deadline_s:.0f} s")

    def _give_up(self, why: str) -> None:
        with self._lock:
            if self._failed:
                return
            self._failed = True
        self._warn(f"wandb is off for the rest of this run ({why}); metrics.jsonl goes on")
        _end_service()

    def _work(self) -> None:
        try:
            run = self._start()
            self._busy_since = None
            while not self._failed:
                item = self._queue.get()
                self._busy_since = time.monotonic()
                if isinstance(item, _Finish):
                    return self._end(run, item)
                if isinstance(item, _Alert):
                    run.alert(title=item.title, text=item.text)
                else:
                    run.log({STEP_KEY: item.step} | item.values)
                self._busy_since = None
        except (Exception, SystemExit) as error:
            # Everything is caught here, because a failure inside wandb must not stop a run.
            self._give_up(f"{type(error).__name__}: {error}".splitlines()[0])

    def _start(self) -> wandb.Run:
        os.environ.setdefault("WANDB_SILENT", "true")  # it prints a greeting before it reads the settings below
        import wandb

        match self.mode:
            case "online":
                resume: Literal["allow"] | None = "allow"
            case "offline":
                resume = None  # refused offline; `wandb sync` joins the parts by their id
            case "disabled":
                raise AssertionError("no thread is started when disabled")
            case _:
                assert_never(self.mode)
        run = wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            group=self._config.group,
            name=self._name,
            config=self._recipe,
            dir=self._directory,
            id=self._run_id(),
            resume=resume,
            mode=self.mode,
            settings=wandb.Settings(console="off", silent=True, init_timeout=self._deadline_s),
        )
        run.define_metric(STEP_KEY, hidden=True)
        for metric in REGISTRY.values():
            # wandb globs end in *; every chart gets our step as its x axis, which survives a resume from an older step
            run.define_metric(metric.prefix + "*" if metric.is_family else metric.name, step_metric=STEP_KEY)
        return run

    def _end(self, run: wandb.Run, item: _Finish) -> None:
        import wandb

        run.summary.update(item.summary)
        run.finish(exit_code=item.exit_code)
        wandb.teardown(exit_code=item.exit_code)

    def _run_id(self) -> str:
        folder = self._directory / "wandb"
        folder.mkdir(exist_ok=True)
        path = folder / ID_FILE
        if not path.exists():
            path.write_text(uuid.uuid4().hex[:8])
        return path.read_text()


def _end_service() -> None:
    """Kill wandb's service if this process started one, so that wandb's atexit hook has nothing left to wait for."""
    for child in psutil.Process().children():
        try:
            if Path(child.exe()).name == "wandb-core":
                child.kill()
                child.wait(timeout=2.0)
        except psutil.Error:
            continue
