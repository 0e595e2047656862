"""wandb as a sink: one run in `<run directory>/wandb`, which a resumed run goes on with under the same wandb id."""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, assert_never

import psutil

from rl.observe.config import WandbConfig
from rl.observe.metrics import REGISTRY, STEP_KEY
from rl.observe.tracking import workspace
from rl.observe.tracking.sampled import COLUMNS, Chosen, table
from rollout.store.reading import FOLDER

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

log = logging.getLogger(__name__)

Mode = Literal["online", "offline", "disabled"]


def resolve_mode(config: WandbConfig) -> Mode:
    """Resolve `auto`: online when WANDB_API_KEY is set, else offline."""
    if config.mode == "auto":
        return "online" if os.environ.get("WANDB_API_KEY") else "offline"
    return config.mode


class WandbSink:
    """See the module's docstring. `timeout_s` bounds the start of wandb."""

    def __init__(
        self, config: WandbConfig, directory: Path, *, name: str, recipe: Mapping[str, Any], timeout_s: float
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # it prints a greeting before it reads the settings below
        import wandb

        self._wandb = wandb
        self._directory = directory
        mode = resolve_mode(config)
        match mode:
            case "online":
                resume: Literal["allow"] | None = "allow"
            case "offline":
                resume = None  # refused offline; `wandb sync` joins the parts by their id
            case "disabled":
                raise AssertionError("no sink is opened when disabled")
            case _:
                assert_never(mode)
        self._run = wandb.init(
            project=config.project,
            entity=config.entity,
            group=config.group,
            name=name,
            config=dict(recipe),
            dir=directory,
            id=_run_id(directory),
            resume=resume,
            mode=mode,
            settings=wandb.Settings(console="off", silent=True, init_timeout=timeout_s),
        )
        self._run.define_metric(STEP_KEY, hidden=True)
        for metric in REGISTRY.values():
            # wandb globs end in *; every chart gets our step as its x axis, which survives a resume from an older step
            glob = metric.prefix + "*" if metric.is_family else metric.name
            self._run.define_metric(glob, step_metric=STEP_KEY)
        self._folder = directory / "wandb"
        view = self._lay_out(config, name)
        self._view = view if mode == "online" else None

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({STEP_KEY: step} | dict(values))
        if self._view is not None:
            workspace.save_once(self._view, self._folder)
            self._view = None

    def alert(self, title: str, text: str) -> None:
        self._run.alert(title=title, text=text)

    def trajectories(self, step: int, chosen: Sequence[Chosen]) -> None:
        rows = [[row[column] for column in COLUMNS] for row in table(self._directory / FOLDER, step, chosen)]
        shown = self._wandb.Table(columns=list(COLUMNS), data=rows, allow_mixed_types=True)
        self._run.log({STEP_KEY: step, workspace.TABLE: shown})

    def end(self, exit_code: int, summary: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(summary))
        self._run.finish(exit_code=exit_code)
        self._wandb.teardown(exit_code=exit_code)

    def _lay_out(self, config: WandbConfig, name: str) -> Workspace | None:
        """The workspace, which is kept as a file. None without it: the charts are there all the same."""
        try:
            entity = self._run.entity or config.entity or ""
            view = workspace.workspace(entity, config.project, f"sluice · {name}", self._run.id)
            (self._folder / workspace.FILE).write_text(workspace.written(view), encoding="utf-8")
            return view
        except Exception as error:
            log.warning("wandb's workspace is not laid out: %s: %s", type(error).__name__, error)
            return None


def _run_id(directory: Path) -> str:
    folder = directory / "wandb"
    folder.mkdir(exist_ok=True)
    path = folder / workspace.ID_FILE
    if not path.exists():
        path.write_text(uuid.uuid4().hex[:8])
    return path.read_text()


def end_service() -> None:
    """Kill wandb's service if this process started one, so that wandb's atexit hook has nothing left to wait for."""
    for child in psutil.Process().children():
        try:
            if Path(child.exe()).name == "wandb-core":
                child.kill()
                child.wait(timeout=2.0)
        except psutil.Error:
            continue
