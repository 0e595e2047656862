"""Size of the report's page, and the time to its first picture: `.venv/bin/python -m benchmarks.report_page RUN`.

A run of many long trajectories is made of the real groups of RUN, which are laid end to end until they have the length
that is asked, and written through the product's own writers. Chromium then opens its page from the file, `--times`
times, each time in a fresh process.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from rl.report.page import write_report
from rollout.store import eventlog, read
from rollout.store.reading import FOLDER, Stored
from rollout.store.segments import Segment, seal
from rollout.store.trained import FOLDER as TRAINED
from rollout.store.trained import TrainedLog, TrainedReader, TrainedSample
from rollout.types import SAMPLE_DTYPES, Address, Group, Sample, Trajectory

CHROMIUM = "/usr/bin/chromium"
GROUPS_A_STEP = 8
FIRST_PICTURE = """() => new Promise((found) => new PerformanceObserver((list) => {
  const paint = list.getEntriesByName('first-contentful-paint')[0];
  if (paint) found(paint.startTime);
}).observe({ type: 'paint', buffered: true }))"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--trajectories", type=int, default=5000)
    parser.add_argument("--tokens", type=int, default=1000)
    parser.add_argument("--times", type=int, default=5)
    parser.add_argument("--keep", type=Path, help="leave the made run and its page in this folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = options.keep or Path(scratch) / "run"
        tokens, trajectories = make_run(options.run, run, options.trajectories, options.tokens)
        began = time.monotonic()
        write_report([run], run / "report.html", 200e6)
        wrote = time.monotonic() - began
        size = (run / "report.html").stat().st_size
        first, whole = zip(*(opened(run / "report.html") for _ in range(options.times)), strict=True)
    found = {
        "trajectories": trajectories,
        "tokens_each": round(tokens / trajectories),
        "page_mb": round(size / 1e6, 1),
        "written_s": round(wrote, 1),
        "first_picture_s": [round(statistics.median(first), 2), round(max(first), 2)],
        "whole_page_read_s": [round(statistics.median(whole), 2), round(max(whole), 2)],
    }
    print(json.dumps(found))


def make_run(origin: Path, run: Path, trajectories: int, tokens: int) -> tuple[int, int]:
    """Write the run. Returns how many tokens and trajectories it has."""
    run.mkdir(parents=True)  # never one that is there
    for name in ("config.yaml", "metrics.jsonl", "timeline.jsonl", "summary.json"):
        shutil.copy(origin / name, run / name)
    if (origin / "checkpoints").is_dir():
        (run / "checkpoints").symlink_to((origin / "checkpoints").absolute())
    real = [stored for stored in read(origin) if stored.step is not None]
    pool = list(_pieces(real, TrainedReader(origin)))
    chance = random.Random(0)
    members = len(real[0].group.trajectories)
    ledger, trained, segment = (
        eventlog.EventLog(run / eventlog.NAME),
        TrainedLog(run / TRAINED, 1e9),
        Segment(run / FOLDER),
    )
    ledger.append("started", start=1, seed=0)
    total = 0
    for number in range(trajectories // members):
        step = 1 + number // GROUPS_A_STEP
        made = [_joined(pool, tokens, chance) for _ in range(members)]
        group = _group(real[number % len(real)].group, f"g1-{number:06d}", [trajectory for trajectory, _ in made])
        address = segment.append(group, "train")
        _events(ledger, group, address, step)
        trained.append([_trained(step, address, place, one) for place, (_, one) in enumerate(made)])
        total += sum(len(trajectory.samples[0]) for trajectory, _ in made)
    segment.sync()
    segment.close()
    seal(segment.path)
    trained.close()
    return total, members * (trajectories // members)


Piece = tuple[Trajectory, Sample, TrainedSample]


def _pieces(stored: Sequence[Stored], reader: TrainedReader) -> Iterator[Piece]:
    """The trained trajectories of one sample."""
    for one in stored:
        assert one.step is not None
        found = reader.of(one.step, one.address)
        first = 0
        for member in one.group.trajectories:
            if len(member.samples) == 1 and first in found:
                yield member, member.samples[0], found[first]
            first += len(member.samples)


def _joined(pool: Sequence[Piece], tokens: int, chance: random.Random) -> tuple[Trajectory, TrainedSample]:
    """Real trajectories end to end, with at least so many tokens."""
    pieces: list[Piece] = []
    while sum(len(sample) for _, sample, _ in pieces) < tokens:
        pieces.append(chance.choice(pool))
    arrays: dict[str, Any] = {
        name: np.concatenate([getattr(sample, name) for _, sample, _ in pieces]) for name in SAMPLE_DTYPES
    }
    first = pieces[0][0]
    messages = tuple(message for member, _, _ in pieces for message in member.messages)
    made = replace(first, samples=(Sample(**arrays),), messages=messages, turns=())
    parts = [one for _, _, one in pieces]
    return made, replace(
        parts[0],
        sample=0,
        advantages=np.concatenate([one.advantages for one in parts]),
        logprobs=np.concatenate([one.logprobs for one in parts]),
    )


def _group(like: Group, name: str, members: Sequence[Trajectory]) -> Group:
    return Group(id=name, task=like.task, trajectories=tuple(replace(member, group_id=name) for member in members))


def _trained(step: int, address: Address, place: int, one: TrainedSample) -> TrainedSample:
    return replace(one, step=step, address=address, sample=place)


def _events(ledger: eventlog.EventLog, group: Group, address: Address, step: int) -> None:
    ledger.append("issued", id=group.id, task=asdict(group.task), position=0, version=step - 1)
    ledger.append("finished", id=group.id, address=[address.segment, address.record], versions=[step - 1, step - 1])
    ledger.append("taken", version=step - 1, ids=[group.id])
    ledger.append("trained", step=step, ids=[group.id])


def opened(page: Path) -> tuple[float, float]:
    """Open a page in a fresh Chromium. Returns the seconds to its first picture, and until it is read whole."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        shown = browser.new_page(viewport={"width": 1280, "height": 900})
        shown.goto(page.absolute().as_uri(), wait_until="load")
        first = float(shown.evaluate(FIRST_PICTURE))
        whole = float(shown.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd"))
        browser.close()
    return first / 1000, whole / 1000


if __name__ == "__main__":
    main()
