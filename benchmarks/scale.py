"""Predict runs of GLM-4.5 on clusters by a simulation, and compare the simulation with small real runs.

table   64 to 2,048 GPUs, up to 100,000 open trajectories: the table of docs/scale.md
check   a real run's directory (quickstart), or several: their steps against the simulation's. The first run gives the
        constants for all: its trajectories, its engine's speed, its times of training and pushing

.venv/bin/python -m benchmarks.scale table [--sizes 64:3072,128:6144] [--steps 7] [--write]
.venv/bin/python -m benchmarks.scale check RUN [RUN …]
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.scale_check import compared
from benchmarks.scale_cluster import (
    BUFFER_S,
    BUFFER_TAKE_S,
    GROUP,
    MAX_STALENESS,
    SAMPLE_BYTES,
    STORE_BYTES,
    STORE_PER_S,
    Training,
    cluster,
)
from benchmarks.scale_simulation import Simulation, Step, Use
from rl.paths import REPOSITORY

DOCUMENT = REPOSITORY / "docs" / "scale.md"
BEGIN, END = "<!-- table: begin -->\n", "<!-- table: end -->\n"
SIZES = "64:3072,128:1536,128:6144,256:12288,512:24576,512:100000,1024:12288,1024:49152,2048:100000"
SHARE_THAT_WAITS = 0.25
"""Requests that wait for room in a cache for more than this share of their trajectory's life are its bottleneck."""
IDLE = 0.6
"""Engines that are busy for less than this share of the time wait for something else."""
COLUMNS = (
    "GPUs | open trajectories | groups a step | step, s | of it waiting / training / pushing | sampled tokens/s | "
    "staleness, mean | oldest | finished groups waiting | engines busy | trainer busy | "
    "driver | buffer | store, GB an hour | to the trainer, MB/s | first bottleneck"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """Steps after the first ones, and all that engines did."""

    gpus: int
    steps: Sequence[Step]
    use: Use
    engine_s: float
    half: Training

    @property
    def seconds(self) -> float:
        return sum(step.step_s for step in self.steps)

    def mean(self, name: str) -> float:
        return sum(getattr(step, name) for step in self.steps) / len(self.steps)

    def share(self, name: str) -> float:
        """The share of the steps' time."""
        return sum(getattr(step, name) for step in self.steps) / self.seconds

    @property
    def busy(self) -> float:
        return (self.use.busy - self.use.paused) / self.engine_s

    def bottleneck(self) -> str:
        parts = {name: self.share(name) for name in ("wait_s", "handling_s", "train_s", "push_s")}
        largest = max(parts, key=lambda name: parts[name])
        if largest == "train_s":
            return self.half.largest(round(self.mean("tokens")))
        return {"handling_s": "driver and buffer", "push_s": "push of the weights"}.get(largest) or self.engines()

    def engines(self) -> str:
        """Why rollouts take longer than the trainer."""
        use = self.use
        if self.busy < IDLE:
            return "the slowest trajectories: engines wait for tools and for the gate"
        parts = {
            "engines: prompts": use.prompts,
            "engines: caches computed again, for want of room": use.lost,
            "engines: caches computed again after a push": use.after_push,
            "engines: decoding": use.busy - use.paused - use.prompts - use.lost - use.after_push,
        }
        largest = max(parts, key=lambda name: parts[name])
        waits = largest == "engines: decoding" and use.queued > SHARE_THAT_WAITS * use.alive
        return "engines: room for caches (requests wait for it)" if waits else largest


def predict(gpus: int, concurrency: int, steps: int, seed: int = 0) -> Prediction:
    """Simulate so many steps. The first ones, which fill the buffer, are left out."""
    run, half = cluster(gpus, concurrency, steps, seed)
    simulation = Simulation(run)
    taken = simulation.go()[MAX_STALENESS + 1 :]
    seconds = run.engines * simulation.clock.now
    return Prediction(gpus=gpus, steps=taken, use=simulation.use, engine_s=seconds, half=half)


def row(gpus: int, concurrency: int, steps: int) -> str:
    """The table's row."""
    found = predict(gpus, concurrency, steps)
    trajectories = sum(step.trajectories for step in found.steps) / found.seconds
    tokens = sum(step.tokens for step in found.steps) / found.seconds
    per_step = found.steps[0].trajectories // GROUP
    times = " / ".join(f"{found.share(name):.0%}" for name in ("wait_s", "train_s", "push_s"))
    ready = f"{found.mean('ready'):,.0f} (at most {max(step.ready for step in found.steps):,})"
    assert tokens * STORE_BYTES < STORE_PER_S, "the shared file system is full"
    note = " (its optimizer on the host)" if found.half.on_host else ""
    cells = (
        f"{gpus:,}{note}",
        f"{per_step * GROUP * (MAX_STALENESS + 1):,}",
        f"{per_step:,}",
        f"{found.mean('step_s'):,.0f}",
        times,
        f"{sum(step.sampled for step in found.steps) / found.seconds:,.0f}",
        f"{found.mean('mean_age'):.2f}",
        str(max(step.oldest for step in found.steps)),
        ready,
        f"{found.busy:.0%}",
        f"{found.share('train_s'):.0%}",
        f"{found.share('handling_s'):.2%}",
        f"{trajectories * (BUFFER_S + BUFFER_TAKE_S):.2%}",
        f"{tokens * STORE_BYTES * 3600 / 1e9:,.1f}",
        f"{tokens * SAMPLE_BYTES / 1e6:,.1f}",
        found.bottleneck(),
    )
    return f"| {' | '.join(cells)} |"


def table(sizes: str, steps: int) -> str:
    """The rows of `GPUS:TRAJECTORIES,…`, below their head."""
    rows = []
    for size in sizes.split(","):
        rows.append(row(*map(int, size.split(":")), steps))
        print(rows[-1], file=sys.stderr, flush=True)
    return "\n".join([f"| {COLUMNS} |", f"|{'---|' * (COLUMNS.count('|') + 1)}", *rows]) + "\n"


def write(path: Path, content: str) -> None:
    """Replace the document's table."""
    before, _, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}{content}{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    tables = parts.add_parser("table")
    tables.add_argument("--sizes", default=SIZES, help="GPUS:TRAJECTORIES, comma-separated")
    tables.add_argument("--steps", type=int, default=7)
    tables.add_argument("--write", action="store_true", help="into docs/scale.md")
    parts.add_parser("check").add_argument("runs", nargs="+", type=Path, help="run directories")
    options = parser.parse_args()
    if options.part == "check":
        print(compared(options.runs))
        return
    content = table(options.sizes, options.steps)
    print(content)
    if options.write:
        write(DOCUMENT, content)


if __name__ == "__main__":
    main()
