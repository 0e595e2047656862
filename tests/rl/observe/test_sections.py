from __future__ import annotations

from rl.observe.metrics import REGISTRY
from rl.observe.sections import SECTIONS, in_order, laid_out, section_of


def test_every_metric_has_exactly_one_section() -> None:
    prefixes = [prefix for of_section in SECTIONS.values() for prefix in of_section]
    assert sorted(prefixes) == sorted({name.split("/")[0] for name in REGISTRY})
    assert {section_of(name) for name in REGISTRY} == set(SECTIONS)
    assert sorted(name for names in laid_out(REGISTRY).values() for name in names) == sorted(REGISTRY)


def test_concrete_names_stand_in_the_order_of_sections_registry_and_alphabet() -> None:
    names = [
        "memory/driver_rss_mb",
        "reward/part/b",
        "reward/part/a",
        "reward/mean",
        "eval/success/x",
        "tools/calls_mean",
    ]
    assert in_order(names) == [names[4], names[3], names[2], names[1], names[5], names[0]]
    assert laid_out(names) == {
        "Learning": [names[4], names[3], names[2], names[1]],
        "Tools": [names[5]],
        "Memory": [names[0]],
    }
