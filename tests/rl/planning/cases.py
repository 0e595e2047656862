"""Recipes of these tests."""

from __future__ import annotations

from rl.paths import REPOSITORY

CLUSTER = REPOSITORY / "recipes" / "agent_rl.yaml"
QUICKSTART = REPOSITORY / "recipes" / "quickstart.yaml"
SHRUNK = (
    "run.device=cpu",
    "model.dtype=float32",
    "trainer.ranks=2",
    "trainer.expert_parallel=1",
    "inference.replicas=1",
    "inference.tensor_parallel=1",
)
"""With these overrides CLUSTER runs on any CPU."""
