"""A checkpoint is complete or not there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from rl.paths import REPOSITORY
from rl.rundir import atomic
from rl.rundir.checkpoint import CheckpointStore
from tests.rl.rundir.crashing_publish import CRASH


def write(store: CheckpointStore, step: int) -> Path:
    folder = store.begin(step)
    for name in "ab":
        (folder / name).write_text(f"old {step}")
    return store.publish(step)


def test_only_published_checkpoints_are_seen_and_the_newest_are_kept(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    assert store.latest() is None
    for step in (3, 9, 10, 200):
        assert write(store, step) == store.latest()
    (store.begin(300) / "data").write_text("half")
    assert store.latest() is not None and store.latest().name == "step-000200"  # type: ignore[union-attr]
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("step-*")) == ["step-000010", "step-000200"]


def test_a_crash_leaves_no_trace_once_the_next_checkpoint_is_published(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    (store.begin(1) / "data").write_text("half")
    (store.begin(1) / "other").write_text("begun again")
    assert sorted(path.name for path in store.publish(1).iterdir()) == ["other"]
    store.begin(2)
    write(store, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000003"]


def test_publishing_a_step_again_replaces_it(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path, keep=2)
    write(store, 5)
    (store.begin(5) / "data").write_text("new")
    assert (store.publish(5) / "data").read_text() == "new"


@pytest.mark.parametrize("step", [5, 6], ids=["the newest again", "a new one"])
def test_whatever_change_a_crash_comes_before_every_checkpoint_is_whole(tmp_path: Path, step: int) -> None:
    """Kill the publishing process before each rename, removal and new directory in turn, then open the store again."""
    for change in range(100):
        root = tmp_path / str(change)
        store = CheckpointStore(root, keep=2)
        for earlier in (3, 4, 5):
            write(store, earlier)
        command = [sys.executable, "-m", "tests.rl.rundir.crashing_publish", str(root), str(step), str(change)]
        code = subprocess.run(command, cwd=REPOSITORY).returncode
        assert code in (0, CRASH)
        again = CheckpointStore(root, keep=2)
        latest = again.latest()
        assert latest is not None and latest.name in ("step-000005", f"step-{step:06d}")
        for path in root.iterdir():
            contents = {file.read_text() for file in path.iterdir()}
            number = int(path.name.removeprefix("step-"))
            assert len(list(path.iterdir())) == 2 and contents in ({f"old {number}"}, {f"new {number}"})
        if code == 0:
            assert {file.read_text() for file in latest.iterdir()} == {f"new {step}"}
            assert change > 3
            return
        shutil.rmtree(root)
    raise AssertionError("it never finished")


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The paths that were synced to disk, in order, by their names at that moment. A test cannot cut the power, so it
    looks at these calls."""
    paths: list[Path] = []
    fsync = os.fsync

    def watched(descriptor: int) -> None:
        paths.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    return paths


def test_a_checkpoints_files_are_on_disk_before_its_name_and_its_name_before_older_ones_go(
    tmp_path: Path, synced: list[Path]
) -> None:
    store = CheckpointStore(tmp_path, keep=1)
    write(store, 1)
    synced.clear()
    folder = store.begin(2)
    (folder / "inner").mkdir()
    for file in (folder / "a", folder / "inner" / "b"):
        file.touch()
    store.publish(2)
    assert set(synced[:-1]) == {folder, folder / "a", folder / "inner", folder / "inner" / "b"}
    assert synced[-2:] == [folder, tmp_path]


def test_an_atomic_write_syncs_the_file_and_then_its_new_name(tmp_path: Path, synced: list[Path]) -> None:
    atomic.atomic_write_bytes(tmp_path / "file", b"content")
    temporary, folder = synced
    assert temporary.parent == tmp_path and temporary.name.startswith(".file.") and folder == tmp_path
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
