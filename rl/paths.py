"""Where this repository lies. The one place that knows it: modules move, this file does not."""

from __future__ import annotations

from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
