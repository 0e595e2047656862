"""Skips what this machine cannot run: tests marked `gpu` where no NVIDIA GPU is seen."""

from __future__ import annotations

import pytest

from rl.preflight import gpu_names


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    wanting = [item for item in items if item.get_closest_marker("gpu")]
    if wanting and not gpu_names():
        for item in wanting:
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and none is seen here"))
