"""wandb's workspace of a run: charts in the sections of our registry, and the table of trajectories.

Online it is saved as a view of the project when a run starts. The view is also kept as a file in the run directory,
because offline nobody can take it: after `wandb sync`, and with a key, this saves it:

    .venv/bin/python -m rl.observe.tracking.workspace RUN
"""

from __future__ import annotations

import logging
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from rl.observe.config import WandbConfig
from rl.observe.metrics import REGISTRY, STEP_KEY, Metric
from rl.observe.sections import laid_out

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

TABLE = "trajectories"
"""The key of the tables of trajectories."""
FILE = "workspace.json"
"""In the folder `wandb` of a run directory: the view, as wandb's server takes it."""
ID_FILE = "run-id"
_SAVED = "workspace-saved"
_OPEN = 3
"""So many sections are unfolded at first."""


def workspace(entity: str, project: str, name: str, run_id: str) -> Workspace:
    """The view that lays out the metrics of a run, under a name for people. Other runs of the project can be added."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sections = [
        ws.Section(name=section, panels=[_panel(name) for name in names], is_open=number < _OPEN)
        for number, (section, names) in enumerate(laid_out(REGISTRY).items())
    ]
    shown = ws.Section(name="Trajectories", panels=[wr.WeavePanelSummaryTable(table_name=TABLE)], is_open=True)
    return ws.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=[*sections, shown],
        settings=ws.WorkspaceSettings(x_axis=STEP_KEY),
        runset_settings=ws.RunsetSettings(filters=[ws.Metric("ID") == run_id]),
        auto_generate_panels=False,
    )


def written(view: Workspace) -> str:
    """The view as the text that wandb's server takes."""
    text: str = view._to_model().spec.model_dump_json(by_alias=True, exclude_none=True, indent=1)
    return text


def save_once(view: Workspace, folder: Path) -> None:
    """Save the view on wandb's server, once in the life of a run, whose folder `wandb` this is. When that fails, a
    warning says so, and the next start tries again."""
    saved = folder / _SAVED
    if saved.exists():
        return
    try:
        view.save()
        saved.touch()
    except Exception as error:
        log.warning("wandb's workspace is not saved: %s: %s", type(error).__name__, error)


def _panel(name: str) -> Any:
    import wandb_workspaces.reports.v2 as wr

    metric = REGISTRY[name]
    return wr.LinePlot(title=name, x=STEP_KEY, title_y=metric.unit, **_lines(metric))


def _lines(metric: Metric) -> dict[str, Any]:
    """Which logged names a chart shows: of a family, all of them."""
    if metric.is_family:
        return {"metric_regex": f"^{re.escape(metric.prefix)}[^/]+$"}
    return {"y": [metric.name]}


def main(run: Path) -> None:
    """Save the workspace of a run's project on wandb's server."""
    recipe = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    config = WandbConfig.model_validate(recipe.get("wandb") or {})
    entity = config.entity
    if entity is None:
        import wandb

        entity = wandb.Api().default_entity
    run_id = (run / "wandb" / ID_FILE).read_text(encoding="utf-8")
    saved = workspace(entity, config.project, f"sluice · {recipe['run']['name']}", run_id).save()
    print(saved.url)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
