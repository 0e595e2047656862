"""Whole runs share one cold start, and one longer run that many tests look at."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.dense import make_dense
from tests.e2e.harness import Run, launch


@pytest.fixture(scope="session")
def cold_start_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which cold starts are cached: the first run that needs one makes it, the others find it."""
    return tmp_path_factory.mktemp("cold-start")


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory, cold_start_cache: Path) -> Run:
    """The quickstart with fewer steps, but enough to see it learn. A benchmark runs the full length over several
    seeds."""
    directory = tmp_path_factory.mktemp("quickstart") / "run"
    run = launch(directory, cold_start_cache, "run.steps=20", "checkpoint.every=8")
    assert run.code == 0, run.output[-4000:]
    return run


@pytest.fixture(scope="session")
def cold_start(quickstart: Run, cold_start_cache: Path) -> Path:
    """The model that the quickstart's reinforcement learning starts from: it succeeds now and then."""
    (model,) = cold_start_cache.glob("sft-*")
    return model


@pytest.fixture(scope="session")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random dense model (tests.e2e.dense)."""
    path = tmp_path_factory.mktemp("dense")
    make_dense(path)
    return path
