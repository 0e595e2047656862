"""The generators come back exactly from JSON."""

from __future__ import annotations

import json
import random

import numpy as np
import torch

from rl.learner.rng import restore_rng, rng_state


def draw() -> tuple[float, ...]:
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.standard_normal(), torch.rand(1).item()


def test_generators_come_back_from_json_exactly() -> None:
    draw()  # leaves half a pair of Gaussian numbers in the state
    saved = json.loads(json.dumps(rng_state()))
    expected = [draw() for _ in range(3)]
    assert [draw() for _ in range(3)] != expected
    restore_rng(saved)
    assert [draw() for _ in range(3)] == expected
