"""A checkpoint is complete or not there."""

from __future__ import annotations

from pathlib import Path

from rl.checkpoint import CheckpointStore


def write(store: CheckpointStore, step: int) -> Path:
    (store.begin(step) / "data").write_text(str(step))
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
