"""For all tests: those marked `gpu` are skipped on machines without one, and those marked `long` unless -m is given.
Those of a folder stay together under pytest-xdist, and Hypothesis' examples have no time limit."""

from __future__ import annotations

import os
from typing import Any

import pytest
from hypothesis import settings

from rl.recipe.machine import gpu_names

# By default Hypothesis fails an example that takes over 200 ms. On a busy machine that says nothing about the code.
settings.register_profile("sluice", deadline=None)
settings.register_profile("few", deadline=None, max_examples=10)  # used by tests/test_interpreters.py
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "sluice"))


@pytest.hookimpl(optionalhook=True)  # tests/test_interpreters.py has no pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from tests.by_folder import ByFolder

    return ByFolder(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("long") and not config.option.markexpr:
            item.add_marker(pytest.mark.skip(reason="takes minutes more; ./launch.sh test -m long runs it"))
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting and not gpu_names():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and none is seen here"))
