"""As the engine's tests: these start engines, too."""

from __future__ import annotations

from tests.rollout.engine.conftest import swept_temp_dir

__all__ = ["swept_temp_dir"]
