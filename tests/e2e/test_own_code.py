"""The pages on rewards and tools of one's own: their code and their recipes run as they stand there."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from rl.paths import REPOSITORY
from rollout.store import read
from tests.e2e.harness import ONE_RANK, QUICKSTART, launch

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

BLOCK = re.compile(r"```\w+\n# ([\w.]+)[^\n]*\n(.*?)```", re.DOTALL)
ROW = re.compile(r"# (\{.*\})$", re.MULTILINE)
SMALL = ("sft=null", "tasks.eval_size=4", "trainer.groups_per_step=2", "rollout.group_size=4", *ONE_RANK)


def write_page(name: str, folder: Path) -> Path:
    """Write the files of a page into a folder. Its recipe is the quickstart's, with the page's sources."""
    page = (REPOSITORY / "docs" / name).read_text()
    files = dict(BLOCK.findall(page))
    (folder / "rows.jsonl").write_text("\n".join(numbered(json.loads(ROW.findall(page)[0]))))
    sources = files.pop("recipe.yaml")
    for file, content in files.items():
        (folder / file).write_text(content)
    recipe = (REPOSITORY / QUICKSTART).read_text()
    begin = recipe.index("\ntasks:\n") + 1
    rest = re.split(r"\n(?=\w)", recipe[begin:], maxsplit=1)[1]
    (folder / "recipe.yaml").write_text(f"{recipe[:begin]}{sources}\n{rest}")
    return folder / "recipe.yaml"


def numbered(row: dict[str, object]) -> list[str]:
    return [json.dumps(row | {"prompt": f"{number}: {row['prompt']}"}) for number in range(40)]


@pytest.mark.parametrize(
    ("page", "parts", "metric"),
    [("rewards.md", {"accuracy", "brevity"}, "characters"), ("tools.md", {"Lamp", "untouched"}, None)],
)
def test_a_page_runs(tmp_path: Path, page: str, parts: set[str], metric: str | None) -> None:
    recipe = write_page(page, tmp_path)
    dataset = f"tasks.sources.0.dataset={tmp_path / 'rows.jsonl'}"
    run = launch(tmp_path / "run", tmp_path / "cache", *SMALL, dataset, "run.steps=2", recipe=str(recipe))
    assert run.code == 0, run.output[-3000:]
    assert run.leftovers == ()
    for part in parts:
        assert len(run.column(f"reward/part/{part}")) == 2
    if metric is not None:
        assert len(run.column(f"reward/metric/{metric}")) == 2
    scored = [one.group for one in read(tmp_path / "run")]
    assert {name for group in scored for t in group.usable for name in t.reward_parts} == parts
    if page == "rewards.md":
        again = subprocess.run(
            ["./launch.sh", "reward-test", str(tmp_path / "run")],
            cwd=REPOSITORY,
            env=os.environ | {"SLUICE_VENV": sys.prefix},
            capture_output=True,
            text=True,
        )
        assert again.returncode == 0 and " 0 of them change, in 0 groups" in again.stdout, again
    if page == "tools.md":
        assert all(t.messages[0]["content"].endswith(" The lamp is on.") for group in scored for t in group.usable)
