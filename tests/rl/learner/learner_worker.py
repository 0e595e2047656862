"""One rank of a learner under test: `python -m tests.rl.learner.learner_worker RANK_DIR SCENARIO…`.

The torch.distributed environment is set by `run_ranks` below, which also owns the deadline and the clean-up. A
scenario is a function of `tests.rl.learner.learner_scenarios`; what they return is saved as `result-<rank>.pt`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.ports import free_port

ROOT = Path(__file__).resolve().parents[3]


def run_ranks(scenarios: Sequence[str], ranks: int, directory: Path, deadline_s: float = 900.0) -> list[dict[str, Any]]:
    """Run scenarios one after the other in `ranks` fresh processes. Return each rank's results by scenario. If a rank
    fails, show all logs."""
    directory.mkdir(parents=True, exist_ok=True)
    environment = dict(os.environ, MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()), WORLD_SIZE=str(ranks))
    environment.update(DS_ACCELERATOR="cpu", LOCAL_RANK="0", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")
    processes = []
    for rank in range(ranks):
        with open(directory / f"log-{rank}.txt", "w") as log:
            command = [sys.executable, "-m", "tests.rl.learner.learner_worker", str(directory), *scenarios]
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env={**environment, "RANK": str(rank)}, stdout=log, stderr=log)
            )
    try:
        codes = [process.wait(timeout=deadline_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    logs = "\n".join(f"--- rank {r}\n{(directory / f'log-{r}.txt').read_text()[-4000:]}" for r in range(ranks))
    assert codes == [0] * ranks, f"{scenarios} ended with {codes}\n{logs}"
    return [torch.load(directory / f"result-{rank}.pt", weights_only=False) for rank in range(ranks)]


def main() -> None:
    from tests.rl.learner import learner_scenarios

    directory, scenarios = Path(sys.argv[1]), sys.argv[2:]
    results = {scenario: getattr(learner_scenarios, scenario)(directory) for scenario in scenarios}
    torch.save(results, directory / f"result-{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main()
