"""Datasets of the hub, from a small hub on loopback that real `datasets` asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rl.paths import REPOSITORY
from tests.rollout.tasks.small_hub import Files, Hub, commit, serving

CARD = b"""---
configs:
- config_name: main
  data_files:
  - {split: train, path: data/train.jsonl}
  - {split: test, path: data/test.jsonl}
---
"""
READER = """
import json, sys
from tests.support import rows_of

for keys in json.loads(sys.argv[1]):
    try:
        print(json.dumps([[row.where, row.values["prompt"]] for row in rows_of("me/sums", **keys)]))
    except ValueError as error:
        print(json.dumps(str(error)))
"""


def rows(word: str, count: int) -> bytes:
    return b"".join(b'{"prompt": "%s %d", "hint": null}\n' % (word.encode(), number) for number in range(count))


NOW: Files = {"README.md": CARD, "data/train.jsonl": rows("now", 40), "data/test.jsonl": rows("test", 5)}
BEFORE: Files = {"data/train.jsonl": rows("before", 30)}
CASES: tuple[dict[str, Any], ...] = (
    {},
    {"subset": "main", "split": "test"},
    {"split": "train[:10%]"},
    {"revision": "v1"},
    {"revision": commit(BEFORE), "split": "train[28:]"},
    {"streaming": True, "split": "test[2:4]"},
    {"streaming": True, "revision": "v1"},
    {"split": "dev"},
    {"subset": "other"},
    {"revision": "v2"},
    {"revision": "empty"},
)


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving({"me/sums": {"main": NOW, "v1": BEFORE, "empty": {"README.md": b"no rows"}}}) as served:
        yield served


@pytest.fixture(scope="module")
def found(hub: Hub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process, which learns where the hub is from its environment, reads for each case."""
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(tmp_path_factory.mktemp("hub")),
        "PYTHONPATH": str(REPOSITORY),
    }
    command = [sys.executable, "-c", READER, json.dumps(CASES)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr
    return {json.dumps(case): json.loads(line) for case, line in zip(CASES, ended.stdout.splitlines(), strict=True)}


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        (0, [f"now {i}" for i in range(40)]),
        (1, [f"test {i}" for i in range(5)]),
        (2, [f"now {i}" for i in range(4)]),
        (3, [f"before {i}" for i in range(30)]),
        (4, ["before 28", "before 29"]),
        (5, ["test 2", "test 3"]),
        (6, [f"before {i}" for i in range(30)]),
    ],
)
def test_a_split_of_a_revision_arrives(found: dict[str, Any], case: int, expected: list[str]) -> None:
    read = found[json.dumps(CASES[case])]
    assert [prompt for _, prompt in read] == expected
    assert read[0][0] == "dataset me/sums row 0"


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        (7, "dev"),
        (8, "'other' not found"),
        (9, "Revision 'v2' doesn't exist"),
        (10, "the hub did not give revision empty, and what is cached here is another one"),
    ],
)
def test_what_the_hub_does_not_have_is_told_in_a_line(found: dict[str, Any], case: int, reason: str) -> None:
    told = found[json.dumps(CASES[case])]
    assert isinstance(told, str) and told.startswith("dataset me/sums: no such file, and not a Hugging Face dataset")
    assert reason in told and "\n" not in told and len(told) < 700


def test_a_folder_has_no_revision_and_a_saved_dataset_no_subset(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from tests.support import rows_of

    datasets.Dataset.from_list([{"a": 1}]).save_to_disk(tmp_path / "saved")
    for keys, reason in (({"revision": "v1"}, "a folder has no revisions"), ({"subset": "x"}, "has no subsets")):
        with pytest.raises(ValueError, match=rf"saved: cannot be loaded \(ValueError: .*{reason}"):
            rows_of(str(tmp_path / "saved"), **keys)
