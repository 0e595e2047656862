"""Writes the page: one file, which needs no network and no other file.

What is seen first stands first: style, text, the data of curves and lists, the program. The packed parts of the groups
follow, so that a browser paints before it has read them.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rl.report.groups import Packer
from rl.report.ledger import ledger_entries
from rl.report.packed import as_json, packed
from rl.report.run import CONFIG, about, curves, timeline, tokenizers
from rl.report.vocabulary import token_texts
from rollout.store import eventlog
from rollout.store.reading import FOLDER

WEB = Path(__file__).with_name("web")
SCRIPTS = ("format.js", "unpack.js", "curves.js", "timeline.js", "browse.js", "tokens.js", "main.js")
"""The program of the page, in this order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How many groups of a run the page holds, of how many."""

    run: Path
    groups: int
    total: int


def write_report(runs: Sequence[Path], target: Path, limit: float) -> list[Held]:
    """Write the page of one run, or of several beside each other. `limit`: the bytes that the groups of all runs may
    have; above it, each run has a sample of even distances.

    Raises:
        ValueError: one of them is no run directory, or cannot be read.
        OSError: the page cannot be written.
    """
    for run in runs:
        if not (run / CONFIG).is_file() or not (run / FOLDER).is_dir():
            raise ValueError(f"{run} is no run directory: it has no {CONFIG}, or no folder {FOLDER!r}")
    packers: list[Packer] = []
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        packers += [_packer(run, limit / len(runs)) for run in runs]
        with partial.open("w", encoding="utf-8") as file:
            for part in _page(runs, packers):
                file.write(part)
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
        for packer in packers:
            packer.close()
    return [
        Held(run=run, groups=len(packer.kept.index), total=packer.kept.total)
        for run, packer in zip(runs, packers, strict=True)
    ]


def _packer(run: Path, limit: float) -> Packer:
    try:
        return Packer(run, limit)
    except OSError as error:
        raise ValueError(f"{run} cannot be read: {error}") from error


def _page(runs: Sequence[Path], packers: Sequence[Packer]) -> Iterator[str]:
    shown = [_run(run, packer) for run, packer in zip(runs, packers, strict=True)]
    data = {"written": time.time(), "runs": shown}
    head, _, tail = (WEB / "page.html").read_text(encoding="utf-8").partition("<!-- data -->\n")
    yield head.replace("/* style */", (WEB / "style.css").read_text(encoding="utf-8"))
    yield _script("data", as_json(data).decode("ascii").replace("<", "\\u003c"), "application/json")
    yield f"<script>\n{''.join((WEB / name).read_text(encoding='utf-8') for name in SCRIPTS)}</script>\n"
    for number, (run, packer) in enumerate(zip(runs, packers, strict=True)):
        kept = {entry["task"] for entry in packer.kept.index}
        entries = {task: found for task, found in ledger_entries(run / eventlog.NAME).items() if task in kept}
        yield _script(f"ledger-{number}", packed(as_json(entries)))
        texts = token_texts(tokenizers(run), sorted(packer.kept.token_ids))
        yield _script(f"texts-{number}", packed(as_json(texts)))
        for group, messages, tokens in packer.parts():
            yield _script(f"messages-{number}-{group}", messages)
            yield _script(f"tokens-{number}-{group}", tokens)
    yield tail


def _script(name: str, content: str, kind: str = "text/plain") -> str:
    return f'<script type="{kind}" id="{name}">{content}</script>\n'


def _run(run: Path, packer: Packer) -> dict[str, Any]:
    kept = packer.kept
    return {
        **about(run),
        "directory": str(run),
        "curves": curves(run / "metrics.jsonl"),
        "timeline": timeline(run / "timeline.jsonl", kept.load),
        "total": kept.total,
        "stride": kept.stride,
        "groups": [{name: value for name, value in entry.items() if name != "ordinal"} for entry in kept.index],
    }
