"""Alerts: sent once, and again after the metric has been fine."""

from __future__ import annotations

import pytest

from rl.observe.alerts import Alerts
from rl.observe.config import AlertsConfig


def sent(steps: list[dict[str, float]], **config: float | None) -> list[tuple[str, str]]:
    told: list[tuple[str, str]] = []
    alerts = Alerts(AlertsConfig(**config), lambda *alert: told.append(alert))  # type: ignore[arg-type]
    for number, values in enumerate(steps, start=1):
        alerts.step(number, values)
    return told


MISMATCH = "mismatch/logprob_abs_mean"


def test_an_alert_comes_once_for_each_time_that_it_is_bad() -> None:
    told = sent([{MISMATCH: value} for value in (0.01, 0.2, 0.3, 0.1, 0.5)] + [{}])
    assert [text for _, text in told] == [
        "step 2: mismatch/logprob_abs_mean is 0.2, above 0.1 (alerts.mismatch)",
        "step 5: mismatch/logprob_abs_mean is 0.5, above 0.1 (alerts.mismatch)",
    ]


@pytest.mark.parametrize(
    ("steps", "title"),
    [
        ([{"policy/entropy": 2.0}, {}, {"policy/entropy": 0.11}, {"policy/entropy": 0.09}], "entropy has collapsed"),
        ([{"error/infra_share": 0.25}, {"error/infra_share": 0.26}], "lost to infrastructure"),
    ],
)
def test_each_danger_has_its_bound(steps: list[dict[str, float]], title: str) -> None:
    ((found, text),) = sent(steps)
    assert title in found and text.startswith(f"step {len(steps)}: ")


def test_null_turns_an_alert_off() -> None:
    bad = [{"policy/entropy": 2.0, MISMATCH: 9.0, "error/infra_share": 0.9}, {"policy/entropy": 0.0}]
    assert sent(bad, mismatch=None, entropy_share=None, failures=None) == []
    assert len(sent(bad)) == 3
