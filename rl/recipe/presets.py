"""Presets: the sections that `algorithm: NAME` stands for.

A preset names an advantage estimator, a loss and a correction, with settings where they differ from the defaults. The
recipe's own sections win. A section that names the preset's extension, or none, is merged over the preset's settings.
A section that names another extension replaces the preset's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewards.extension import nearest

Section = Mapping[str, Any]

PRESETS: Mapping[str, Mapping[str, Section]] = {
    "grpo": {"advantage": {"name": "grpo"}, "loss": {"name": "clipped"}, "correction": {"name": "none"}},
    "reinforce": {"advantage": {"name": "reinforce"}, "loss": {"name": "clipped"}, "correction": {"name": "none"}},
}


def fill_from_preset(data: dict[str, Any], algorithm: str) -> None:
    """Write the sections of a preset into a recipe's data.

    Raises:
        ValueError: there is no such preset.
    """
    if algorithm not in PRESETS:
        known = ", ".join(repr(name) for name in PRESETS)
        raise ValueError(f"algorithm={algorithm!r} is no preset; there are {known}{nearest(algorithm, list(PRESETS))}")
    for key, preset in PRESETS[algorithm].items():
        written = data.get(key) or {}
        if isinstance(written, dict) and written.get("name", preset["name"]) == preset["name"]:
            data[key] = dict(preset) | written
