"""Engines of these tests run without a guardian, so what vLLM leaves behind when it is killed is swept here."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from rl.processes.tree import new_run_id, resource_prefix, sweep_files


@pytest.fixture(scope="module", autouse=True)
def swept_temp_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Give the test module a temp directory of its own, as the guardian does for a run, and sweep it at the end."""
    tmp_path_factory.getbasetemp()  # make it now, or it would lie in this module's directory and be swept with it
    run_id, before = new_run_id(), os.environ.get("TMPDIR")
    folder = Path(tempfile.gettempdir()) / f"{resource_prefix(run_id)}tmp"
    folder.mkdir()
    os.environ["TMPDIR"], tempfile.tempdir = str(folder), None
    yield
    tempfile.tempdir = None
    if before is None:
        del os.environ["TMPDIR"]
    else:
        os.environ["TMPDIR"] = before
    sweep_files(run_id)
