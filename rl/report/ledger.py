"""The ledger's entries of each task, as lists for the page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rollout.store import eventlog

Entry = tuple[str, str, str]
"""The id of the issue, what happened, and the details."""


def ledger_entries(log: Path) -> dict[str, list[Entry]]:
    """By the id of the task what happened to it, in order. What went with lost weights is left out.

    Raises:
        ValueError: a line in the middle of the log is damaged.
    """
    tasks: dict[str, str] = {}
    entries: dict[str, list[Entry]] = {}
    for event in eventlog.read_events(log):
        if event["event"] == "issued":
            tasks[event["id"]] = event["task"]["id"]
        for issue in event.get("ids", [event["id"]] if "id" in event else []):
            if issue in tasks:
                entries.setdefault(tasks[issue], []).append((issue, event["event"], "; ".join(_details(event))))
    return entries


def _details(event: dict[str, Any]) -> Iterator[str]:
    match event["event"]:
        case "issued":
            yield f"while version {event['version']} was published"
        case "finished":
            segment, record = event["address"]
            yield f"segment {segment}, record {record}"
            if event.get("versions"):
                yield "versions {} to {}".format(*event["versions"])
        case "taken":
            yield f"for the step that trains version {event['version']}"
        case "trained":
            yield f"in step {event['step']}"
        case "reissued" | "dropped":
            yield event["reason"]
