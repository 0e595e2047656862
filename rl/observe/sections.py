"""The sections that people look at metrics in: wandb's workspace and the report lay their charts out by them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rl.observe.metrics import REGISTRY, metric_for

SECTIONS: Mapping[str, tuple[str, ...]] = {
    "Learning": ("eval", "reward", "policy", "loss", "optim"),
    "Mismatch and staleness": ("mismatch", "staleness"),
    "Rollouts": ("rollout", "tokens", "error"),
    "Tools": ("tools",),
    "MoE": ("moe",),
    "Speed": ("perf", "time"),
    "Memory": ("memory",),
}
"""The first parts of the names in each section, in order."""


def section_of(name: str) -> str:
    """The section of a metric, or of a family."""
    first = name.split("/")[0]
    return next(section for section, prefixes in SECTIONS.items() if first in prefixes)


def in_order(names: Iterable[str]) -> list[str]:
    """Names of metrics or families in the order of SECTIONS, then in that of the registry, then in the alphabet's.

    Raises:
        ValueError: a name is not registered.
    """
    places = {name: place for place, name in enumerate(REGISTRY)}
    prefixes = [prefix for of_section in SECTIONS.values() for prefix in of_section]

    def place(name: str) -> tuple[int, int, str]:
        entry = name if name in places else metric_for(name).name
        return prefixes.index(name.split("/")[0]), places[entry], name

    return sorted(set(names), key=place)


def laid_out(names: Iterable[str]) -> dict[str, list[str]]:
    """`in_order`, by section. Sections without a name are left out."""
    found: dict[str, list[str]] = {}
    for name in in_order(names):
        found.setdefault(section_of(name), []).append(name)
    return found
