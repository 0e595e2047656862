"""The directory of this repository. Only this file computes it, so that other modules can be moved freely."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
