"""A run as the page shows it, but for its groups: curves, evaluations, the timeline, how it ended."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from rl.observe.metrics import metric_for
from rl.observe.metrics_log import read_metrics
from rl.observe.sections import laid_out
from rl.observe.timeline import OPENED, Event, read_timeline
from rl.report.load import Load, Times
from rl.rundir.checkpoint import MODEL, CheckpointStore

CONFIG = "config.yaml"


def curves(metrics: Path) -> list[dict[str, Any]]:
    """One entry for each metric that was logged, in the order of its section: what it is, and its points."""
    points: dict[str, dict[int, float | None]] = {}
    for step, values in read_metrics(metrics) if metrics.exists() else ():
        for name, value in values.items():
            points.setdefault(name, {})[step] = value if math.isfinite(value) else None
    known = [name for name in points if _known(name)]
    return [
        {
            "section": section,
            "name": name,
            "unit": metric_for(name).unit,
            "meaning": metric_for(name).meaning,
            "steps": list(points[name]),
            "values": list(points[name].values()),
        }
        for section, names in laid_out(known).items()
        for name in names
    ]


def _known(name: str) -> bool:
    try:
        metric_for(name)
    except ValueError:  # of another version of Sluice
        return False
    return True


def timeline(path: Path, load: Load) -> dict[str, Any] | None:
    """The driver's events, and how many trajectories were in which stage, in seconds since the run began. None where a
    run has neither.

    The time in which no process of the run was alive, before it was resumed, is taken out; `resumed` has the moments at
    which it went on.
    """
    events = read_timeline(path)
    gaps = _gaps(events)
    events = [event for event in events if event.name != OPENED]
    bounds = [*(load.bounds() or ()), *(time for event in events for time in (event.start, event.end))]
    if not bounds:
        return None
    start, end = min(bounds), max(bounds)

    def clock(times: Times) -> Times:
        away = sum((np.clip(times, *gap) - gap[0] for gap in gaps), np.zeros_like(times))
        since: Times = times - start - away
        return since

    length = float(clock(np.array([end]))[0])
    edges = clock(np.array([[event.start, event.end] for event in events]).reshape(-1, 2)).round(3).tolist()
    return {
        "length": length,
        "resumed": clock(np.array([gap[1] for gap in gaps])).tolist(),
        "events": [
            [event.name, event.step, *edge, event.waited_for] for event, edge in zip(events, edges, strict=True)
        ],
        "load": load.averages(length, clock) if load.bounds() else {},
    }


def _gaps(events: Sequence[Event]) -> list[tuple[float, float]]:
    """When no driver was there: from the last event of a start to the first of the next."""
    ended, gaps = math.inf, []
    for event in events:
        if event.name == OPENED and event.start > ended:
            gaps.append((ended, event.start))
        ended = event.end if ended == math.inf else max(ended, event.end)
    return gaps


def about(run: Path) -> dict[str, Any]:
    """What the run is called, its recipe as text, and how it ended: None while it has not."""
    text = (run / CONFIG).read_text(encoding="utf-8", errors="replace")
    summary = None
    with suppress(OSError, ValueError):
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return {"name": _entry(text, "run", "name") or run.name, "recipe": text, "summary": summary}


def tokenizers(run: Path) -> list[Path]:
    """The folders that may hold the tokenizer of a run's model, the best first."""
    return list(_tokenizers(run))


def _tokenizers(run: Path) -> Iterator[Path]:
    for saved in reversed(CheckpointStore.steps(run / "checkpoints")):
        yield saved / MODEL
    model = _entry((run / CONFIG).read_text(encoding="utf-8", errors="replace"), "model", "path")
    if not model:
        return
    yield Path(model)
    with suppress(Exception):
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, "tokenizer.json")
        if isinstance(cached, str):
            yield Path(cached).parent


def _entry(text: str, section: str, key: str) -> str:
    """A text in a recipe; empty where it is not there."""
    with suppress(yaml.YAMLError):
        found = yaml.safe_load(text)
        below = found.get(section) if isinstance(found, dict) else None
        value = below.get(key) if isinstance(below, dict) else None
        return value if isinstance(value, str) else ""
    return ""
