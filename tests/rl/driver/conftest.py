"""A local Ray instance for the tests that spawn actors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rl.driver import cluster as module
from rl.driver.cluster import Cluster
from rl.driver.config import RunConfig
from rl.processes.tree import kill_run, new_run_id


@pytest.fixture(scope="module")
def ray_instance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    run_id = new_run_id()
    cluster = Cluster(tmp_path_factory.mktemp("logs"), run_id)
    with pytest.MonkeyPatch.context() as environment:
        for name in ("TMPDIR", "PYTHONPATH", "RAY_worker_niceness"):  # so that what `connect` sets is put back
            environment.setenv(name, "")
            environment.delenv(name)
        # Further machines join it in test_late_engines.py, and nobody could at 127.0.0.1.
        environment.setattr(module, "LOOPBACK", "127.0.0.9")
        cluster.connect(RunConfig(), 100 * 2**20)
        yield
        cluster.close()
    kill_run(run_id)
