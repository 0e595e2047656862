"""The best model so far is kept, and outlives its checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from rl.rundir.best import ABOUT, best_success, keep_best


def checkpoint(folder: Path, content: str, name: str = "hf") -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "model.safetensors").write_text(content)
    (folder / "trainer").mkdir()
    (folder / "trainer" / "state").write_text("large")
    return folder


@pytest.mark.parametrize("linked", [True, False])
def test_a_better_model_replaces_the_best(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, linked: bool) -> None:
    if not linked:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    best = tmp_path / "best"
    assert best_success(best) < 0
    first = checkpoint(tmp_path / "step-1", "one")
    assert keep_best(best, first, 1, 0.0), "the first is the best, even if it never succeeds"
    shutil.rmtree(first)
    assert not keep_best(best, checkpoint(tmp_path / "step-2", "two"), 2, 0.0), "an equal one does not replace it"
    assert (best / "hf" / "model.safetensors").read_text() == "one"
    assert keep_best(best, checkpoint(tmp_path / "step-3", "three", "adapter"), 3, 0.5)
    assert not keep_best(best, checkpoint(tmp_path / "step-4", "four"), 4, 0.25)
    assert json.loads((best / ABOUT).read_text()) == {"step": 3, "success": 0.5}
    assert {path.name for path in best.iterdir()} == {"adapter", ABOUT}
    assert (best / "adapter" / "model.safetensors").read_text() == "three"


def test_an_evaluation_without_a_checkpoint_changes_nothing(tmp_path: Path) -> None:
    assert not keep_best(tmp_path / "best", tmp_path / "step-1", 1, 1.0)
    assert list(tmp_path.iterdir()) == []


def test_what_a_crash_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".best.partial").mkdir()
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / ABOUT).write_text("{torn")
    assert keep_best(tmp_path / "best", checkpoint(tmp_path / "step-1", "one"), 1, 0.1)
    assert best_success(tmp_path / "best") == 0.1
